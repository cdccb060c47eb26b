"""Let a model continue the beginning of a recording, several times.

python samples/continue_recording.py runs/wavenet speech.flac --out samples/out --prompt-seconds 1 --seconds 3
"""

import argparse
from pathlib import Path

import audio_ct
from audio_ct.sampling.writing import write_samples


def main() -> None:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("recording", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prompt-seconds", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--num", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    model = audio_ct.load(arguments.checkpoint)
    for sample in write_samples(
        model.model,
        model.codec,
        arguments.out,
        stem=f"{arguments.recording.stem}-continued",
        num=arguments.num,
        num_tokens=model.codec.num_tokens(seconds=arguments.seconds),
        seed=arguments.seed,
        prompt=model.codec.read_prompt(arguments.recording, max_seconds=arguments.prompt_seconds),
        about={"recipe": model.recipe.name, "prompt": arguments.recording.name},
        pictures=True,
    ):
        print(sample.path, *sample.warnings)


if __name__ == "__main__":
    main()
