"""The tables and pictures of `audio-ct inspect`, from what `inspection.py` found."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

LABELS = {"memory": "memory", "compressed_memory": "compressed", "twice_compressed_memory": "twice compressed"}
COLOURS = {
    "twice_compressed_memory": "#7b3294",
    "compressed_memory": "#c2703d",
    "memory": "#2b7a78",
    "segment": "#888888",
}


def markdown(found: dict[str, Any]) -> str:
    """Return the tables of an inspection as Markdown."""
    lines = [
        f"# {found['recipe']}: how memory is used",
        "",
        f"{found['checkpoint']}, {found['tokens']:,} {found['unit']}s of {found['recordings']} {found['split']} "
        f"recordings of store {found['store']} ({found['store_digest'][:16]}), the first "
        f"{found['cold_start_samples']:,} of each left out; audio-ct {found['version']}, commit "
        f"{found['commit'] or 'unknown'}, {found['created']}.",
        "",
        f"## Bits per {found['unit']} with other memories than in training",
        "",
        f"| memories | bits per {found['unit']} | more than as trained [95 %] |",
        "|---|---|---|",
    ]
    for row in found["memory"]:
        ends = "" if row["interval"] is None else f" [{row['interval'][0]:.4f}, {row['interval'][1]:.4f}]"
        more = "" if row["name"] == "as trained" else f"{row['loss']:+.4f}"
        lines.append(f"| {row['name']} | {row['bits_per_sample']:.4f} | {more}{ends} |")
    lines += ["", "## Where attention goes", "", "| layer | " + " | ".join(_kinds(found)) + " | compression loss |"]
    lines.append("|---" * (len(_kinds(found)) + 2) + "|")
    for number, layer in enumerate(found["attention"]):
        shares = [f"{layer['share'][kind]:.1%}" if kind in layer["share"] else "" for kind in _kinds(found)]
        loss = found["compression_losses"].get(str(number))
        lines.append(f"| {number} | " + " | ".join(shares) + f" | {'' if loss is None else f'{loss:.3g}'} |")
    for other, groups in found["gains"].items():
        lines += [
            "",
            f"## Gain over {other}",
            "",
            f"| | {found['unit']}s | bits per {found['unit']} | gain [95 %] | |",
            "|---|---|---|---|---|",
        ]
        for by in ("all", "onset", "class", "speaker"):
            for row in groups[by][:20]:
                ends = "" if row["interval"] is None else f" [{row['interval'][0]:.4f}, {row['interval'][1]:.4f}]"
                percent = "" if row["gain_percent"] is None else f"{row['gain_percent']:.1f} %"
                lines.append(
                    f"| {row['name']} | {row['samples']:,} | {row['bits_per_sample']:.3f} | {row['gain']:.4f}{ends} | "
                    f"{percent} |"
                )
    return "\n".join(lines) + "\n"


def _kinds(found: dict[str, Any]) -> list[str]:
    kinds = [key["kind"] for layer in found["attention"] for key in layer["keys"]]
    return list(dict.fromkeys(kinds))


def draw(found: dict[str, Any], out: Path) -> None:
    """Write the pictures of an inspection: attention, compression, memory and gain, as far as there is something."""
    for name, figure in {
        "attention": _attention_figure(found),
        "compression": _compression_figure(found),
        "memory": _memory_figure(found),
        "gain": _gain_figure(found),
    }.items():
        if figure is not None:
            figure.savefig(out / f"{name}.png", dpi=120)


def _attention_figure(found: dict[str, Any]) -> Figure:
    layers = found["attention"]
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    # Layers with other memories have other buckets: the mean is over those that are like the first with the most.
    most = max(len(layer["buckets"]) for layer in layers)
    alike = [layer for layer in layers if len(layer["buckets"]) == most]
    weights = np.array([[bucket["weight"] for bucket in layer["buckets"]] for layer in alike])
    kinds = [bucket["kind"] for bucket in alike[0]["buckets"]]
    mean, spread = weights.mean(axis=0), weights.std(axis=0) / np.sqrt(len(alike))
    left.bar(range(len(mean)), mean, yerr=spread, color=[COLOURS[kind] for kind in kinds], width=0.9, capsize=2)
    left.set_xticks([at for at, kind in enumerate(kinds) if at == 0 or kinds[at - 1] != kind])
    left.set_xticklabels([LABELS.get(kind, kind) for kind in dict.fromkeys(kinds)], ha="left")
    left.set_xlabel("buckets of keys, oldest first")
    left.set_ylabel("mean attention of a key")
    left.set_title("mean over layers, bars: standard error", fontsize=9)
    for number, layer in enumerate(layers):
        keys = np.arange(len(layer["weights"])) - len(layer["weights"])
        right.plot(keys, layer["weights"], linewidth=0.8, label=f"layer {number}" if len(layers) <= 8 else None)
    edge = 0
    for key in reversed(alike[0]["keys"]):
        edge -= key["length"]
        right.axvline(edge, color="#bbbbbb", linewidth=0.8)
    right.set_yscale("log")
    right.set_xlabel("key, counted back from the segment's end")
    right.set_ylabel("attention of a sample that sees it")
    if len(layers) <= 8:
        right.legend(fontsize=8)
    return figure


def _compression_figure(found: dict[str, Any]) -> Figure | None:
    losses = found["compression_losses"]
    if not losses:
        return None
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
    kinds = [row["name"].split(" ")[0] for row in rows]
    axes.barh(
        [row["name"].replace("_", " ") for row in rows],
        [row["loss"] for row in rows],
        color=[COLOURS.get(kind, "#444444") for kind in kinds],
    )
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xscale("symlog", linthresh=0.01)
    axes.set_xlabel(f"bits per {found['unit']} more than as trained (linear within 0.01)")
    return figure


def _gain_figure(found: dict[str, Any]) -> Figure | None:
    gains = {other: groups for other, groups in found["gains"].items() if groups["onset"]}
    if not gains:
        return None
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, by in zip(panels, ("onset", "class"), strict=True):
        names = list(dict.fromkeys(row["name"] for groups in gains.values() for row in groups[by]))
        for at, (other, groups) in enumerate(gains.items()):
            rows = {row["name"]: row for row in groups[by]}
            values = [rows[name]["gain"] if name in rows else np.nan for name in names]
            ends = [rows[name]["interval"] if name in rows else None for name in names]
            errors = np.array(
                [
                    [0, 0] if end is None else [abs(v - end[0]), abs(end[1] - v)]
                    for v, end in zip(values, ends, strict=True)
                ]
            ).T
            width = 0.8 / len(gains)
            axes.bar(np.arange(len(names)) + at * width, values, width, yerr=errors, capsize=2, label=f"over {other}")
        axes.set_xticks(np.arange(len(names)) + 0.4 - 0.4 / len(gains))
        axes.set_xticklabels(names, rotation=25, ha="right", fontsize=8)
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_ylabel(f"gain, bits per {found['unit']}")
    panels[0].set_title("by time since the first sound", fontsize=9)
    panels[1].set_title("by class of sound", fontsize=9)
    panels[1].legend(fontsize=8)
    return figure
