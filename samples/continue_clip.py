"""Continue a clip that a model has learned by heart, and measure how much of it comes back.

    python samples/continue_clip.py runs/overfit_one_clip --out samples/out

Writes the clip, the model's continuation of its first tenth of a second, and, for scale, what the same prompt
followed by noise and by silence of the clip's level would measure. Distances are log spectral distances in dB over
mel bands, frame by frame: 0 is identical.
"""

import argparse
from pathlib import Path

import numpy as np

import audio_ct
from audio_ct.audio.files import AudioWriter
from audio_ct.audio.spectrogram import band_power

NUM_BANDS = 40
FLOOR_DB = -80.0


def log_spectral_distance_db(a: np.ndarray, b: np.ndarray, sample_rate_hz: int) -> float:
    """Compare two aligned waveforms frame by frame: the distance is small where one is recognisable in the other.

    For each frame the root mean square over 40 mel bands of the difference in dB; the mean over frames in which either
    is above the floor, which is 80 dB below the strongest band of the two waveforms. Level counts.

    Args:
        a: [num_samples].
        b: [num_samples], sample for sample beside a.
        sample_rate_hz: Sample rate of both.

    Returns:
        Distance in dB; 0 where both are silent.
    """
    power = np.stack([band_power(each.astype(np.float64), sample_rate_hz, NUM_BANDS) for each in (a, b)])
    floor = power.max(initial=0.0) * 10 ** (FLOOR_DB / 10)
    audible = (power > floor).any(axis=(0, 1))
    if not audible.any():
        return 0.0
    level_db = 10 * np.log10(np.maximum(power[:, :, audible], floor))
    return float(np.mean(np.sqrt(np.mean((level_db[0] - level_db[1]) ** 2, axis=0))))


def main() -> None:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="run folder of recipes/demo/overfit_one_clip.yaml")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prompt-seconds", type=float, default=0.1)
    parser.add_argument("--temperature", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    model = audio_ct.load(arguments.checkpoint)
    if model.recipe.corpus.clip_seconds is None:
        parser.error(f"{arguments.checkpoint} learned a whole corpus; name a run of recipes/demo/overfit_one_clip.yaml")
    rate_hz = model.codec.sample_rate_hz
    real = model.codec.decode(model.open_store().tokens("train", 0))
    num_prompt = round(arguments.prompt_seconds * rate_hz)
    if not 0 < num_prompt < len(real):
        parser.error(f"--prompt-seconds must be above 0 and below the clip's {len(real) / rate_hz:g} s")
    [continuation] = audio_ct.continue_waveform(
        model,
        real[:num_prompt],
        rate_hz,
        seconds=(len(real) - num_prompt) / rate_hz,
        seed=arguments.seed,
        temperature=arguments.temperature,
    )
    rest = real[num_prompt:]
    noise = np.random.default_rng(arguments.seed).normal(size=len(rest)).astype(np.float32) * rest.std()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name, waveform in (("clip", real), ("continuation", np.concatenate([real[:num_prompt], continuation]))):
        with AudioWriter(arguments.out / f"{name}.wav", rate_hz, overwrite=True) as writer:
            writer.write(waveform)
        print(arguments.out / f"{name}.wav")
    shifted = np.roll(rest, len(rest) // 2)
    for name, waveform in (
        ("continuation", continuation),
        ("the clip itself, moved by half its length", shifted),
        ("noise of the clip's level", noise),
        ("silence", np.zeros_like(rest)),
    ):
        print(f"{name}: {log_spectral_distance_db(rest, waveform, rate_hz):.1f} dB from the clip")


if __name__ == "__main__":
    main()
