"""The tables and pictures of `audio-ct inspect`, from what `inspection.py` found."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from audio_ct.durable import write_whole
from audio_ct.html import picture

LABELS = {"compressed_memory": "compressed", "memory": "memory", "segment": "segment"}
COLOURS = {"compressed_memory": "#c2703d", "memory": "#2b7a78", "segment": "#888888"}
# More layers than these are not told apart by colour.
MAX_NAMED_LAYERS = 8
MAX_LISTED_GROUPS = 20


def markdown(found: dict[str, Any]) -> str:
    """The tables of an inspection as Markdown."""
    unit = found["unit"]
    lines = [
        f"# {found['recipe']}: how memory is used",
        "",
        f"{found['checkpoint']}, {found['tokens']:,} {unit}s of {found['recordings']} {found['split']} "
        f"recordings of store {found['store']} ({found['store_digest'][:16]}), the first "
        f"{found['cold_start_samples']:,} of each left out; audio-ct {found['version']}, commit "
        f"{found['commit'] or 'unknown'}, {found['created']}.",
        "",
        f"## Bits per {unit} with other memories than in training",
        "",
        f"| memories | bits per {unit} | more than as trained [95 %] |",
        "|---|---|---|",
    ]
    for row in found["memory"]:
        more = "" if row["name"] == "as trained" else f"{row['loss']:+.4f}"
        lines.append(f"| {row['name']} | {row['bits_per_sample']:.4f} | {more}{_ends(row)} |")
    kinds = [key["kind"] for key in found["attention"][0]["keys"]]
    lines += ["", "## Where attention goes", "", "| layer | " + " | ".join(kinds) + " | compression loss |"]
    lines.append("|---" * (len(kinds) + 2) + "|")
    for number, layer in enumerate(found["attention"]):
        shares = [f"{layer['share'][kind]:.1%}" for kind in kinds]
        loss = found["compression_losses"].get(str(number))
        lines.append(f"| {number} | " + " | ".join(shares) + f" | {'' if loss is None else f'{loss:.3g}'} |")
    for other, groups in found["gains"].items():
        lines += [
            "",
            f"## Gain over {other}",
            "",
            f"| | {unit}s | bits per {unit} | gain [95 %] | |",
            "|---|---|---|---|---|",
        ]
        for row in (row for by in ("all", "onset", "class", "speaker") for row in groups[by][:MAX_LISTED_GROUPS]):
            percent = "" if row["gain_percent"] is None else f"{row['gain_percent']:.1f} %"
            bits, gain = f"{row['bits_per_sample']:.3f}", f"{row['gain']:.4f}{_ends(row)}"
            lines.append(f"| {row['name']} | {row['samples']:,} | {bits} | {gain} | {percent} |")
    return "\n".join(lines) + "\n"


def _ends(row: dict[str, Any]) -> str:
    return "" if row["interval"] is None else f" [{row['interval'][0]:.4f}, {row['interval'][1]:.4f}]"


def draw(found: dict[str, Any], out: Path) -> None:
    """Write the pictures of an inspection: attention, memory and, where there is something, compression and gain."""
    figures = {"attention": _attention_figure(found), "memory": _memory_figure(found)}
    if found["compression_losses"]:
        figures["compression"] = _compression_figure(found)
    if all(groups["onset"] for groups in found["gains"].values()):
        figures["gain"] = _gain_figure(found)
    for name, figure in figures.items():
        write_whole(out / f"{name}.png", picture(figure)[0])


def _attention_figure(found: dict[str, Any]) -> Figure:
    layers = found["attention"]
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    weights = np.array([[bucket["weight"] for bucket in layer["buckets"]] for layer in layers])
    kinds = [bucket["kind"] for bucket in layers[0]["buckets"]]
    error = weights.std(axis=0) / np.sqrt(len(layers))
    colours = [COLOURS[kind] for kind in kinds]
    left.bar(range(len(kinds)), weights.mean(axis=0), yerr=error, color=colours, width=0.9, capsize=2)
    left.set_xticks([kinds.index(kind) for kind in dict.fromkeys(kinds)])
    left.set_xticklabels([LABELS[kind] for kind in dict.fromkeys(kinds)], ha="left")
    left.set_xlabel("buckets of keys, oldest first")
    left.set_ylabel("mean attention of a key")
    left.set_title("mean over layers, bars: standard error", fontsize=9)
    for number, layer in enumerate(layers):
        right.plot(np.arange(-len(layer["weights"]), 0), layer["weights"], linewidth=0.8, label=f"layer {number}")
    for edge in -np.cumsum([key["length"] for key in reversed(layers[0]["keys"])]):
        right.axvline(edge, color="#bbbbbb", linewidth=0.8)
    right.set_yscale("log")
    right.set_xlabel("key, counted back from the segment's end")
    right.set_ylabel("attention of a sample that sees it")
    if len(layers) <= MAX_NAMED_LAYERS:
        right.legend(fontsize=8)
    return figure


def _compression_figure(found: dict[str, Any]) -> Figure:
    losses = found["compression_losses"]
    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.subplots()
    axes.bar(list(losses), list(losses.values()), color=COLOURS["compressed_memory"])
    axes.set_xlabel("layer")
    axes.set_ylabel("attention-reconstruction loss")
    return figure


def _memory_figure(found: dict[str, Any]) -> Figure:
    rows = found["memory"][1:]
    figure = Figure(figsize=(7, 0.8 + 0.28 * len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.barh(
        [row["name"].replace("_", " ") for row in rows],
        [row["loss"] for row in rows],
        color=[COLOURS.get(row["name"].split(" ")[0], "#444444") for row in rows],
    )
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xscale("symlog", linthresh=0.01)
    axes.set_xlabel(f"bits per {found['unit']} more than as trained (linear within 0.01)")
    return figure


def _gain_figure(found: dict[str, Any]) -> Figure:
    gains = found["gains"]
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    panels = figure.subplots(1, 2)
    width = 0.8 / len(gains)
    titles = {"onset": "by time since the first sound", "class": "by class of sound"}
    for axes, (by, title) in zip(panels, titles.items(), strict=True):
        for at, (other, groups) in enumerate(gains.items()):
            # All gains are of the same samples, so that they have the same groups.
            values = np.array([row["gain"] for row in groups[by]])
            # No bar where an interval is unknown, as that of a single recording is.
            low, high = np.array([row["interval"] or (np.nan, np.nan) for row in groups[by]], dtype=np.float64).T
            # Percentiles of resampled gains may all lie on one side of the gain.
            errors = np.maximum([values - low, high - values], 0)
            axes.bar(np.arange(len(values)) + at * width, values, width, yerr=errors, capsize=2, label=f"over {other}")
        rows = next(iter(gains.values()))[by]
        names = [row["name"] if row["interval"] else f"{row['name']}\n(interval unknown)" for row in rows]
        axes.set_xticks(np.arange(len(names)) + 0.4 - 0.4 / len(gains))
        axes.set_xticklabels(names, rotation=25, ha="right", fontsize=8)
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_ylabel(f"gain, bits per {found['unit']}")
        axes.set_title(title, fontsize=9)
    panels[1].legend(fontsize=8)
    return figure
