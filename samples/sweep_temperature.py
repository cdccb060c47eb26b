"""Hear and measure what the temperature does: the same seeds at several temperatures, beside the numbers.

python samples/sweep_temperature.py runs/wavenet --out samples/out --temperatures 0.8 0.9 1.0
"""

import argparse
from pathlib import Path

import audio_ct
from audio_ct.audio.statistics import average, statistics
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

    model = audio_ct.load(arguments.checkpoint)
    codec = model.codec
    for temperature in arguments.temperatures:
        samples = write_samples(
            model.model,
            codec,
            arguments.out,
            stem=f"temperature-{temperature:g}",
            num=arguments.num,
            num_tokens=codec.num_tokens(seconds=arguments.seconds),
            seed=0,
            filters=Filters(temperature=temperature),
            about={"recipe": model.recipe.name},
        )
        means = average(statistics(codec.decode(sample.tokens), codec.sample_rate_hz) for sample in samples)
        shown = ", ".join(f"{name} {value:.3g}" for name, value in means.items() if value is not None)
        print(f"temperature {temperature:g}: {shown}")


if __name__ == "__main__":
    main()
