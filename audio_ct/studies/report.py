"""A study's report: study.json with everything, table.md to read, and two figures to see."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import EngFormatter

from audio_ct import __version__
from audio_ct.durable import write_whole
from audio_ct.html import picture
from audio_ct.provenance import commit
from audio_ct.studies.plan import BUDGET, Study, Variant
from audio_ct.studies.runs import Outcome
from audio_ct.studies.seeds import Mean, difference_over_seeds, mean_over_seeds
from audio_ct.tokens.store import TokenStore

REPORT_FILES = RECORD_FILE, TABLE_FILE, FIGURE_FILE, CURVES_FILE = "study.json", "table.md", "figure.png", "curves.png"
MAX_LISTED_CHANGES = 4
UNKNOWN = "\N{EN DASH}"
# Curves are shown from this share of training on: before it they fall so far that the rest would be one line.
CURVES_FROM_FRACTION = 0.2
LINE_STYLES = ("-", "--", ":", "-.")
NUM_COLOURS = 10


def summarise(
    study: Study, outcomes: Mapping[str, Outcome], store: TokenStore, parameters: Mapping[str, int]
) -> dict[str, Any]:
    """Everything that is known of a study, as JSON; outcomes by the runs' names, parameters by the variants'."""
    by_variant = {
        variant.name: [outcomes[run.name] for run in study.runs if run.variant == variant.name]
        for variant in study.variants
    }
    baseline = study.baseline
    return {
        "study": study.name,
        "command": study.options.command,
        "created": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "version": __version__,
        "commit": commit(),
        "store": store.name,
        "store_digest": store.digest,
        "unit": store.codec.unit,
        **study.options.scoring,
        "seeds": list(study.options.seeds),
        "settings": list(study.options.settings),
        "baseline": baseline.name,
        "training_tokens": baseline.recipe.training.max_tokens,
        "variants": [
            _summarise_variant(variant, baseline, parameters[variant.name], by_variant) for variant in study.variants
        ],
    }


def _summarise_variant(
    variant: Variant, baseline: Variant, parameters: int, by_variant: Mapping[str, Sequence[Outcome]]
) -> dict[str, Any]:
    outcomes, differences = by_variant[variant.name], variant.differences(baseline)
    bits = _by_seed(outcomes, "bits_per_sample")
    difference = None
    if variant is not baseline:
        difference = difference_over_seeds(bits, _by_seed(by_variant[baseline.name], "bits_per_sample"))
    mean, validation, speed = (
        mean_over_seeds(list(_by_seed(outcomes, figure).values()))
        for figure in ("bits_per_sample", "validation_bits_per_sample", "training_tokens_per_second")
    )
    return {
        "name": variant.name,
        "description": variant.description,
        "changes": {key: value for key, value in differences.items() if key not in BUDGET},
        "budget_differs": {key: value for key, value in differences.items() if key in BUDGET},
        "parameters": parameters,
        "num_seeds": len(bits),
        "bits_per_sample": mean.value if mean else None,
        "half_width": mean.half_width if mean else None,
        "difference": asdict(difference) if difference else None,
        "validation_bits_per_sample": validation.value if validation else None,
        "training_tokens_per_second": speed.value if speed else None,
        "curve": _mean_curve([outcome.curve for outcome in outcomes if outcome.curve]),
        "runs": [
            {"seed": outcome.run.recipe.seed, "state": outcome.state, "error": outcome.error, **(outcome.figures or {})}
            for outcome in outcomes
        ],
    }


def _by_seed(outcomes: Sequence[Outcome], figure: str) -> dict[int, float]:
    return {
        outcome.run.recipe.seed: outcome.figures[figure]
        for outcome in outcomes
        if outcome.figures is not None and outcome.figures[figure] is not None
    }


def _mean_curve(curves: Sequence[Sequence[dict[str, float | None]]]) -> list[dict[str, float]]:
    """Validation bits over training, where every seed has them: mean, lowest and highest."""
    found: defaultdict[float, list[float]] = defaultdict(list)
    for curve in curves:
        # Where a run was resumed, the last figure for a place counts.
        for tokens, bits in {point["tokens"]: point["validation_bits"] for point in curve}.items():
            if tokens is not None and bits is not None:
                found[tokens].append(bits)
    return [
        {"tokens": tokens, "mean": sum(bits) / len(bits), "lowest": min(bits), "highest": max(bits)}
        for tokens, bits in sorted(found.items())
        if len(bits) == len(curves)
    ]


def write_table(summary: Mapping[str, Any], out: Path) -> None:
    """Write study.json and table.md, each whole or not at all."""
    record = json.dumps(summary, indent=1, allow_nan=False)
    write_whole(out / RECORD_FILE, record.encode() + b"\n")
    write_whole(out / TABLE_FILE, _table(summary).encode())


def _table(summary: Mapping[str, Any]) -> str:
    unit, baseline, variants = summary["unit"], summary["baseline"], summary["variants"]
    header = [
        *("variant", "what differs", "parameters", "seeds", f"{summary['split']} bits per {unit}"),
        *(f"less {baseline}", "validation", "training tokens/s"),
    ]
    lines = [f"# {_cell(summary['study'])}", "", _row(header), _row(["---"] * 2 + ["---:"] * (len(header) - 2))]
    lines += [_row(_cells(variant, baseline)) for variant in variants]
    scored = "all recordings"
    if summary["max_tokens"] is not None:
        scored = f"whole recordings up to {summary['max_tokens']:,} {unit}s"
    seeds = ", ".join(map(str, summary["seeds"]))
    lines += [
        "",
        f"Means over seeds ({seeds}), ± half of the 95 % Student t interval over them; a single seed has none. "
        f"Differences to {baseline} are paired by seed. Each run has {summary['training_tokens']:,} {unit}s "
        f"of training unless its row says otherwise, and is scored at its best checkpoint by validation, on {scored} "
        f"of the {summary['split']} split, their first {summary['cold_start_samples']:,} {unit}s left out.",
    ]
    unfinished = [
        f"- {variant['name']}, seed {run['seed']}: {run['state']}" + (f": {run['error']}" if run["error"] else "")
        for variant in variants
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


def _cells(variant: Mapping[str, Any], baseline: str) -> list[str]:
    bits, difference = variant["bits_per_sample"], variant["difference"]
    validation, speed = variant["validation_bits_per_sample"], variant["training_tokens_per_second"]
    return [
        variant["name"],
        _differences(variant, is_baseline=variant["name"] == baseline),
        f"{variant['parameters']:,}",
        str(variant["num_seeds"]),
        UNKNOWN if bits is None else f"{Mean(bits, variant['half_width'], variant['num_seeds']):.4f}",
        UNKNOWN if difference is None else f"{Mean(**difference):+.4f}",
        UNKNOWN if validation is None else f"{validation:.4f}",
        UNKNOWN if speed is None else f"{speed:,.0f}",
    ]


def _differences(variant: Mapping[str, Any], *, is_baseline: bool) -> str:
    changes = [f"{key}={value}" for key, value in variant["changes"].items()]
    if len(changes) > MAX_LISTED_CHANGES:
        changes[MAX_LISTED_CHANGES:] = [f"and {len(changes) - MAX_LISTED_CHANGES} more"]
    parts = [variant["description"] or ", ".join(changes) or ("the baseline" if is_baseline else "")]
    if variant["budget_differs"]:
        budget = ", ".join(f"{key}={value}" for key, value in variant["budget_differs"].items())
        parts.append(f"**differs: {budget}**")
    return "; ".join(part for part in parts if part)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_cell, cells))} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def write_figures(summary: Mapping[str, Any], out: Path) -> None:
    """Write figure.png, each variant's seeds and their mean, and curves.png, validation over training."""
    for name, figure in ((FIGURE_FILE, _draw_variants(summary)), (CURVES_FILE, _draw_curves(summary))):
        write_whole(out / name, picture(figure)[0])


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1))
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", lw=0.4, alpha=0.3)
    return figure, axes


def _draw_variants(summary: Mapping[str, Any]) -> Figure:
    variants = summary["variants"]
    figure, axes = _figure(8, 1.4 + 0.42 * len(variants))
    for place, variant in enumerate(variants):
        bits = [run["bits_per_sample"] for run in variant["runs"] if run["state"] == "done"]
        is_baseline = variant["name"] == summary["baseline"]
        colour = "tab:red" if is_baseline else "tab:blue"
        axes.plot(bits, [place] * len(bits), "o", mfc="none", mec=colour, ms=5, alpha=0.6, zorder=2)
        mean, half_width = variant["bits_per_sample"], variant["half_width"]
        if mean is None:
            continue
        marker: dict[str, Any] = {"fmt": "o", "ms": 5} if half_width is None else {"fmt": "|", "ms": 14}
        axes.errorbar(mean, place, xerr=half_width, color=colour, capsize=4, zorder=3, **marker)
        if is_baseline:
            axes.axvline(mean, color=colour, lw=1, ls=":", zorder=1)
    axes.set_yticks(range(len(variants)), [variant["name"] for variant in variants])
    axes.set_ylim(len(variants) - 0.5, -0.5)
    axes.set_xlabel(
        f"bits per {summary['unit']}, {summary['split']} split (circles: seeds; bars: mean and 95 % t interval)"
    )
    axes.set_title(summary["study"], loc="left")
    axes.ticklabel_format(axis="x", useOffset=False)
    axes.grid(axis="y", lw=0.4, alpha=0.3)
    return figure


def _draw_curves(summary: Mapping[str, Any]) -> Figure:
    variants = [variant for variant in summary["variants"] if variant["curve"]]
    figure, axes = _figure(9, max(4.5, 1 + 0.24 * len(variants)))
    shown: list[float] = []
    for place, variant in enumerate(variants):
        tokens, mean, lowest, highest = (
            [point[key] for point in variant["curve"]] for key in ("tokens", "mean", "lowest", "highest")
        )
        colour, style = f"C{place % NUM_COLOURS}", LINE_STYLES[place // NUM_COLOURS % len(LINE_STYLES)]
        marker = "o" if len(tokens) == 1 else ""
        axes.plot(tokens, mean, style, marker=marker, color=colour, lw=1.4, label=variant["name"])
        axes.fill_between(tokens, lowest, highest, color=colour, alpha=0.12, lw=0)
        for token, low, high in zip(tokens, lowest, highest, strict=True):
            shown += [low, high] if token >= CURVES_FROM_FRACTION * tokens[-1] else []
    if shown:
        margin = 0.05 * (max(shown) - min(shown)) or 0.01
        axes.set_ylim(min(shown) - margin, max(shown) + margin)
        figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set(xlabel=f"{summary['unit']}s of training", ylabel=f"validation bits per {summary['unit']}")
    axes.set_title(f"{summary['study']}: mean over seeds, shaded from lowest to highest", loc="left", size=11)
    return figure
