r"""Curves through a study of sizes: bits against parameters and against samples, family by family, with intervals.

    python -m benchmarks.scaling runs/studies/scaling --out benchmarks/results/2026-11-28-scaling-cpu.json \
      --picture docs/pictures/scaling.png

Through all runs of a family goes one curve, Hoffmann et al. 2022 (2203.15556, section 3.3),

    bits = floor + by_parameters (parameters / 1M)^-a + by_samples (samples / 1M)^-b

with all five numbers positive and both exponents below 1. A run's own noise is the standard deviation between seeds, of
all variants that have several, or --noise. Every curve is fitted anew to points that are moved by such noise, 400
times; the middle 95 % of whatever is read from them is its interval. That counts what a seed may do to a run. It does
not count that the form may be wrong, which matters the more the further one reads beyond the points.
"""

import argparse
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy.optimize import least_squares

from audio_ct.errors import InputError
from benchmarks.measure import Row

NUM_REFITS = 400
MILLION = 1e6
# The paper's model, and 24.6 hours at 16 kHz: what the curves are asked for.
FAR_PARAMETERS, FAR_SAMPLES = 40e6, 24.6 * 3600 * 16_000
LEAST_POINTS = 6
START = (2.5, 0.1, 0.2, 0.3, 0.3)
UPPER = (8.0, 8.0, 8.0, 1.0, 1.0)


@dataclass(frozen=True)
class Points:
    """The runs of a family, as arrays of one length."""

    parameters: np.ndarray
    samples: np.ndarray
    bits: np.ndarray


def curve(fit: np.ndarray, parameters: np.ndarray | float, samples: np.ndarray | float) -> Any:
    """Bits by a fit of five numbers."""
    floor, by_parameters, by_samples, a, b = fit
    in_parameters = by_parameters * (np.asarray(parameters) / MILLION) ** -a
    return floor + in_parameters + by_samples * (np.asarray(samples) / MILLION) ** -b


def fitted(points: Points) -> np.ndarray:
    """The curve nearest to the points, by least squares."""
    found = least_squares(
        lambda fit: curve(fit, points.parameters, points.samples) - points.bits, START, bounds=((0,) * 5, UPPER)
    )
    fit: np.ndarray = found.x
    return fit


def families(study: Mapping[str, Any]) -> dict[str, Points]:
    """The runs of a study by family, which is a variant's name up to the number of its parameters.

    Raises:
        InputError: if a family has too few runs for a curve.
    """
    rows: dict[str, list[tuple[float, float, float]]] = {}
    for variant in study["variants"]:
        family = variant["name"].rsplit("-", 2)[0]
        done = [run for run in variant["runs"] if run.get("bits_per_sample") is not None]
        rows.setdefault(family, []).extend(
            (variant["parameters"], run["tokens"], run["bits_per_sample"]) for run in done
        )
    for family, points in rows.items():
        if len(points) < LEAST_POINTS:
            raise InputError(
                f"{family} has {len(points)} runs, and a curve needs {LEAST_POINTS}; run the study to its end."
            )
    return {family: Points(*np.array(points).T) for family, points in rows.items()}


def noise_between_seeds(study: Mapping[str, Any]) -> float | None:
    """The standard deviation of bits between seeds, from all variants that have several; None if none has."""
    squares = []
    for variant in study["variants"]:
        bits = [run["bits_per_sample"] for run in variant["runs"] if run.get("bits_per_sample") is not None]
        squares += [statistics.variance(bits)] * (len(bits) - 1) if len(bits) > 1 else []
    return math.sqrt(statistics.fmean(squares)) if squares else None


def refits(by_family: Mapping[str, Points], noise: float) -> dict[str, np.ndarray]:
    """Fits to points moved by noise, [NUM_REFITS, 5] a family; each family has noise of its own."""
    random = np.random.default_rng(0)
    found = {}
    for family, points in by_family.items():
        moved = points.bits + noise * random.standard_normal((NUM_REFITS, points.bits.size))
        found[family] = np.stack([fitted(Points(points.parameters, points.samples, bits)) for bits in moved])
    return found


def interval(values: Sequence[float] | np.ndarray) -> list[float]:
    """The middle 95 %."""
    return [float(end) for end in np.quantile(values, (0.025, 0.975))]


def summarise(points: Mapping[str, Points], many: Mapping[str, np.ndarray]) -> Row:
    """Curves, what they say far away, and the families' difference there."""
    fits = {family: fitted(each) for family, each in points.items()}
    result: Row = {"families": {}, "differences": []}
    for family, fit in fits.items():
        far = [curve(each, FAR_PARAMETERS, FAR_SAMPLES) for each in many[family]]
        result["families"][family] = {
            "runs": np.stack([points[family].parameters, points[family].samples, points[family].bits]).T.tolist(),
            **dict(zip(("floor", "by_parameters", "by_samples", "a", "b"), fit.tolist(), strict=True)),
            "exponents_interval": [interval(many[family][:, 3]), interval(many[family][:, 4])],
            "rms_left": float(np.sqrt(np.mean((curve(fit, *_sizes(points[family])) - points[family].bits) ** 2))),
            "far": float(curve(fit, FAR_PARAMETERS, FAR_SAMPLES)),
            "far_interval": interval(far),
        }
    first, second = sorted(fits)
    for parameters, samples in ((0.5e6, 1e6), (6.5e6, 1e6), (0.5e6, 4e6), (FAR_PARAMETERS, FAR_SAMPLES)):
        each = [
            curve(a, parameters, samples) - curve(b, parameters, samples)
            for a, b in zip(many[first], many[second], strict=True)
        ]
        at = float(curve(fits[first], parameters, samples) - curve(fits[second], parameters, samples))
        result["differences"].append(
            {"parameters": parameters, "samples": samples, "difference": at, "interval": interval(each)}
        )
    result["compared"] = f"{first} less {second}"
    return result


def _sizes(points: Points) -> tuple[np.ndarray, np.ndarray]:
    return points.parameters, points.samples


def draw(by_family: Mapping[str, Points], many: Mapping[str, np.ndarray]) -> Figure:
    """Bits against parameters after as many samples, and against samples at one size, with bands."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    by_parameters, by_samples = figure.subplots(1, 2, sharey=True)
    for number, (family, points) in enumerate(sorted(by_family.items())):
        fit, color = fitted(points), f"C{number}"
        size, length = (statistics.mode(each.tolist()) for each in _sizes(points))
        axes: Any
        for axes, along, at in (
            (by_parameters, points.parameters, lambda x, s=length: (x, s)),
            (by_samples, points.samples, lambda x, p=size: (p, x)),
        ):
            here = (points.samples == length) if axes is by_parameters else (points.parameters == size)
            axes.plot(along[here], points.bits[here], "o", color=color, label=family)
            x = np.geomspace(along.min() / 1.3, along.max() * 3, 60)
            axes.plot(x, curve(fit, *at(x)), color=color)
            ends = np.quantile([curve(each, *at(x)) for each in many[family]], (0.025, 0.975), axis=0)
            axes.fill_between(x, *ends, color=color, alpha=0.15)
    by_parameters.set(xscale="log", xlabel="parameters", ylabel="test bits per sample", title="after 1M samples")
    by_samples.set(xscale="log", xlabel="samples trained on", title="0.5M parameters")
    by_parameters.legend()
    return figure


def main() -> None:
    """Fit, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="a study's folder, or its study.json")
    parser.add_argument("--noise", type=float, help="standard deviation between seeds, where variants have but one")
    parser.add_argument("--out", type=Path, help="JSON")
    parser.add_argument("--picture", type=Path, help="PNG")
    arguments = parser.parse_args()
    path = arguments.study / "study.json" if arguments.study.is_dir() else arguments.study
    study = json.loads(path.read_text(encoding="utf-8"))
    noise = noise_between_seeds(study) or arguments.noise
    if noise is None:
        raise InputError("--noise: no variant of the study has several seeds; name the deviation between them.")
    points = families(study)
    many = refits(points, noise)
    result = {"noise": noise, **summarise(points, many)}
    for family, each in result["families"].items():
        ends, far = each["exponents_interval"], each["far_interval"]
        print(
            f"{family}: {each['floor']:.3f} + {each['by_parameters']:.3f} N^-{each['a']:.2f} "
            f"+ {each['by_samples']:.3f} D^-{each['b']:.2f} (a {ends[0][0]:.2f} to {ends[0][1]:.2f}, "
            f"b {ends[1][0]:.2f} to {ends[1][1]:.2f}); {each['rms_left']:.4f} left; "
            f"40M parameters, 24.6 h: {each['far']:.3f} [{far[0]:.3f}, {far[1]:.3f}]"
        )
    for each in result["differences"]:
        low, high = each["interval"]
        print(
            f"{result['compared']} at {each['parameters'] / MILLION:g}M parameters, {each['samples'] / MILLION:g}M "
            f"samples: {each['difference']:+.4f} [{low:+.4f}, {high:+.4f}]"
        )
    if arguments.out is not None:
        result = {"study": study["study"], "store": study["store"], "commit": study["commit"], **result}
        arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if arguments.picture is not None:
        draw(points, many).savefig(arguments.picture, dpi=110)


if __name__ == "__main__":
    main()
