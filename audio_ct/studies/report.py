"""What a study found: study.json with everything, table.md to read, and two figures to see."""

import itertools
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import EngFormatter

from audio_ct import __version__
from audio_ct.durable import write_whole
from audio_ct.provenance import commit
from audio_ct.studies.plan import Study, Variant
from audio_ct.studies.runs import Outcome
from audio_ct.studies.seeds import Mean, mean_over_seeds, paired_difference

RECORD_FILE, TABLE_FILE, FIGURE_FILE, CURVES_FILE = "study.json", "table.md", "figure.png", "curves.png"
MAX_LISTED_CHANGES = 4
UNKNOWN = "\N{EN DASH}"
# Curves are shown from this share of training on: before it they fall so far that the rest would be one line.
CURVES_FROM_FRACTION = 0.2
LINE_STYLES = ("-", "--", ":", "-.")
NUM_COLOURS = 10


@dataclass(frozen=True)
class Corpus:
    """What all runs of a study learn from.

    Attributes:
        name: the token store's.
        digest: the token store's.
        unit: what a token stands for, "sample" or "byte".
        parameters: of each variant's model for its vocabulary, by the variant's name.
    """

    name: str
    digest: str
    unit: str
    parameters: Mapping[str, int]


def report_paths(out: Path) -> list[Path]:
    """Return the files of a study's report."""
    return [out / name for name in (RECORD_FILE, TABLE_FILE, FIGURE_FILE, CURVES_FILE)]


def summarise(study: Study, outcomes: Mapping[str, Outcome], corpus: Corpus) -> dict[str, Any]:
    """Return everything that is known of a study, as JSON holds it.

    Args:
        study: what was asked for.
        outcomes: by the runs' names.
        corpus: what all runs learn from.
    """
    by_variant = {
        variant.name: [outcomes[run.name] for run in study.runs if run.variant == variant.name]
        for variant in study.variants
    }
    options = study.options
    (baseline,) = [variant for variant in study.variants if variant.name == study.baseline]
    return {
        "study": study.name,
        "command": options.command,
        "created": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "version": __version__,
        "commit": commit(),
        "store": corpus.name,
        "store_digest": corpus.digest,
        "unit": corpus.unit,
        "split": options.split,
        "max_tokens": options.max_tokens,
        "cold_start_samples": options.cold_start_samples,
        "seeds": list(options.seeds),
        "settings": list(options.settings),
        "baseline": study.baseline,
        "training_tokens": baseline.recipe.training.max_tokens,
        "variants": [
            _summarise_variant(variant, by_variant[variant.name], by_variant[study.baseline], corpus)
            for variant in study.variants
        ],
    }


def _summarise_variant(
    variant: Variant, outcomes: Sequence[Outcome], baseline: Sequence[Outcome], corpus: Corpus
) -> dict[str, Any]:
    bits, baseline_bits = _by_seed(outcomes, "bits_per_sample"), _by_seed(baseline, "bits_per_sample")
    mean = mean_over_seeds(list(bits.values()))
    speed = mean_over_seeds(list(_by_seed(outcomes, "training_tokens_per_second").values()))
    validation = mean_over_seeds(list(_by_seed(outcomes, "validation_bits_per_sample").values()))
    return {
        "name": variant.name,
        "description": variant.description,
        "changes": variant.changes,
        "budget_differs": variant.budget,
        "parameters": corpus.parameters[variant.name],
        "num_seeds": len(bits),
        "bits_per_sample": mean.value if mean else None,
        "half_width": mean.half_width if mean else None,
        "difference": _as_dict(None if outcomes is baseline else paired_difference(bits, baseline_bits)),
        "validation_bits_per_sample": validation.value if validation else None,
        "training_tokens_per_second": speed.value if speed else None,
        "curve": _mean_curve([each.curve for each in outcomes if each.curve]),
        "runs": [
            {"seed": each.run.recipe.seed, "state": each.state, "error": each.error, **(each.figures or {})}
            for each in outcomes
        ],
    }


def _as_dict(mean: Mean | None) -> dict[str, Any] | None:
    return None if mean is None else asdict(mean)


def _by_seed(outcomes: Sequence[Outcome], figure: str) -> dict[int, float]:
    return {
        each.run.recipe.seed: each.figures[figure]
        for each in outcomes
        if each.figures is not None and each.figures[figure] is not None
    }


def _mean_curve(curves: Sequence[Sequence[dict[str, float | None]]]) -> list[dict[str, float]]:
    """Return validation bits over training, where every seed has them: mean, lowest and highest."""
    found: defaultdict[float, list[float]] = defaultdict(list)
    for curve in curves:
        # Where a run was resumed, the last figure for a place counts.
        for tokens, bits in {point["tokens"]: point["validation_bits"] for point in curve}.items():
            if tokens is not None and bits is not None:
                found[tokens].append(bits)
    return [
        {"tokens": tokens, "mean": float(np.mean(bits)), "lowest": min(bits), "highest": max(bits)}
        for tokens, bits in sorted(found.items())
        if len(bits) == len(curves)
    ]


def write_table(summary: Mapping[str, Any], out: Path) -> None:
    """Write study.json and table.md, each whole or not at all."""
    record = json.dumps(summary, indent=1, allow_nan=False)
    write_whole(out / RECORD_FILE, record.encode() + b"\n")
    write_whole(out / TABLE_FILE, _table(summary).encode())


def _table(summary: Mapping[str, Any]) -> str:
    one = summary["unit"]
    header = [
        *("variant", "what differs", "parameters", "seeds", f"{summary['split']} bits per {one}"),
        *(f"less {summary['baseline']}", "validation", "training tokens/s"),
    ]
    lines = [f"# {_cell(summary['study'])}", "", _row(header), _row(["---"] * 2 + ["---:"] * (len(header) - 2))]
    for variant in summary["variants"]:
        speed = variant["training_tokens_per_second"]
        difference = variant["difference"] or {}
        lines.append(
            _row(
                [
                    variant["name"],
                    _what_differs(variant, is_baseline=variant["name"] == summary["baseline"]),
                    f"{variant['parameters']:,}",
                    str(variant["num_seeds"]),
                    _with_interval(variant["bits_per_sample"], variant["half_width"]),
                    _with_interval(difference.get("value"), difference.get("half_width"), sign="+"),
                    _with_interval(variant["validation_bits_per_sample"], None),
                    UNKNOWN if speed is None else f"{speed:,.0f}",
                ]
            )
        )
    scored = (
        "all recordings"
        if summary["max_tokens"] is None
        else f"whole recordings up to {summary['max_tokens']:,} {one}s"
    )
    seeds = ", ".join(map(str, summary["seeds"]))
    lines += [
        "",
        f"Means over seeds ({seeds}), ± half of the 95 % Student t interval over them; a single seed has none. "
        f"Differences to {summary['baseline']} are paired by seed. Each run has {summary['training_tokens']:,} {one}s "
        f"of training unless its row says otherwise, and is scored at its best checkpoint by validation, on {scored} "
        f"of the {summary['split']} split, their first {summary['cold_start_samples']:,} {one}s left out.",
    ]
    unfinished = [
        f"- {variant['name']}, seed {run['seed']}: {run['state']}" + (f": {run['error']}" if run["error"] else "")
        for variant in summary["variants"]
        for run in variant["runs"]
        if run["state"] != "done"
    ]
    lines += ["", "Runs without figures:", "", *unfinished] if unfinished else []
    lines += [
        "",
        f"Store {summary['store']} ({summary['store_digest'][:16]}), audio-ct {summary['version']}, commit "
        f"{summary['commit'] or 'unknown'}, {summary['created']}.",
    ]
    lines += ["", f"    {summary['command']}"] if summary["command"] else []
    return "\n".join(lines) + "\n"


def _what_differs(variant: Mapping[str, Any], *, is_baseline: bool) -> str:
    changes = [f"{key}={value}" for key, value in variant["changes"].items()]
    if len(changes) > MAX_LISTED_CHANGES:
        changes[MAX_LISTED_CHANGES:] = [f"and {len(changes) - MAX_LISTED_CHANGES} more"]
    parts = [variant["description"] or ", ".join(changes) or ("the baseline" if is_baseline else "")]
    if variant["budget_differs"]:
        budget = ", ".join(f"{key}={value}" for key, value in variant["budget_differs"].items())
        parts.append(f"**differs: {budget}**")
    return "; ".join(part for part in parts if part)


def _with_interval(value: float | None, half_width: float | None, *, sign: str = "") -> str:
    if value is None:
        return UNKNOWN
    return f"{value:{sign}.4f}" + ("" if half_width is None else f" ± {half_width:.4f}")


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_cell, cells))} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def write_figures(summary: Mapping[str, Any], out: Path) -> None:
    """Write figure.png, each variant's seeds and their mean, and curves.png, validation over training."""
    _draw_variants(summary).savefig(out / FIGURE_FILE, dpi=130)
    _draw_curves(summary).savefig(out / CURVES_FILE, dpi=130)


def _draw_variants(summary: Mapping[str, Any]) -> Figure:
    variants = summary["variants"]
    figure = Figure(figsize=(8, 1.4 + 0.42 * len(variants)), layout=ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1))
    axes = figure.subplots()
    for place, variant in enumerate(variants):
        bits = [run["bits_per_sample"] for run in variant["runs"] if run["state"] == "done"]
        colour = "tab:red" if variant["name"] == summary["baseline"] else "tab:blue"
        axes.plot(bits, [place] * len(bits), "o", mfc="none", mec=colour, ms=5, alpha=0.6, zorder=2)
        if variant["bits_per_sample"] is not None:
            half_width = variant["half_width"]
            axes.errorbar(
                variant["bits_per_sample"],
                place,
                xerr=half_width,
                fmt="|" if half_width is not None else "o",
                color=colour,
                ms=14 if half_width is not None else 5,
                capsize=4,
                zorder=3,
            )
            if variant["name"] == summary["baseline"]:
                axes.axvline(variant["bits_per_sample"], color=colour, lw=1, ls=":", zorder=1)
    axes.set_yticks(range(len(variants)), [variant["name"] for variant in variants])
    axes.set_ylim(len(variants) - 0.5, -0.5)
    axes.set_xlabel(
        f"bits per {summary['unit']}, {summary['split']} split (circles: seeds; bars: mean and 95 % t interval)"
    )
    axes.set_title(summary["study"], loc="left")
    axes.ticklabel_format(axis="x", useOffset=False)
    _tidy(axes)
    axes.grid(axis="y", lw=0.4, alpha=0.3)
    return figure


def _draw_curves(summary: Mapping[str, Any]) -> Figure:
    variants = [variant for variant in summary["variants"] if variant["curve"]]
    figure = Figure(
        figsize=(9, max(4.5, 1 + 0.24 * len(variants))), layout=ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1)
    )
    axes = figure.subplots()
    shown: list[float] = []
    for place, variant in enumerate(variants):
        curve, colour = variant["curve"], f"C{place % NUM_COLOURS}"
        style = LINE_STYLES[place // NUM_COLOURS % len(LINE_STYLES)]
        tokens = [point["tokens"] for point in curve]
        marker = "o" if len(curve) == 1 else ""
        mean = [point["mean"] for point in curve]
        axes.plot(tokens, mean, style, marker=marker, color=colour, lw=1.4, label=variant["name"])
        lowest, highest = ([point[end] for point in curve] for end in ("lowest", "highest"))
        axes.fill_between(tokens, lowest, highest, color=colour, alpha=0.12, lw=0)
        first = CURVES_FROM_FRACTION * tokens[-1]
        shown += itertools.chain.from_iterable(
            (low, high) for token, low, high in zip(tokens, lowest, highest, strict=True) if token >= first
        )
    if shown:
        margin = 0.05 * (max(shown) - min(shown)) or 0.01
        axes.set_ylim(min(shown) - margin, max(shown) + margin)
        figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set(xlabel=f"{summary['unit']}s of training", ylabel=f"validation bits per {summary['unit']}")
    axes.set_title(f"{summary['study']}: mean over seeds, shaded from lowest to highest", loc="left", size=11)
    _tidy(axes)
    return figure


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", lw=0.4, alpha=0.3)
