"""Hear and measure what the temperature does: the same seeds at several temperatures, beside the numbers.

python samples/sweep_temperature.py runs/wavenet --out samples/out --temperatures 0.8 0.9 1.0
"""

import argparse
from pathlib import Path

from audio_ct.evaluation.waveform_statistics import average, statistics
from audio_ct.pretrained import choose_device, load
from audio_ct.sampling.filters import Filters
from audio_ct.sampling.writing import write_samples


def main() -> None:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.8, 0.9, 1.0])
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--num", type=int, default=4)
    arguments = parser.parse_args()

    device = choose_device()
    model = load(arguments.checkpoint, device)
    for temperature in arguments.temperatures:
        samples = write_samples(
            model.model,
            arguments.out,
            stem=f"temperature-{temperature:g}",
            sample_rate_hz=model.sample_rate_hz,
            bits=model.bits,
            num_waveforms=arguments.num,
            seconds=arguments.seconds,
            seed=0,
            filters=Filters(temperature=temperature),
            device=device,
            about={"recipe": model.recipe.name},
        )
        means = average(statistics(sample.waveform, model.sample_rate_hz) for sample in samples)
        shown = ", ".join(f"{name} {value:.3g}" for name, value in means.items() if value is not None)
        print(f"temperature {temperature:g}: {shown}")


if __name__ == "__main__":
    main()
