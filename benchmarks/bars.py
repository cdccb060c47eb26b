"""The bars that audio-ct sets itself, and whether what was measured meets them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Bar:
    """A figure to be reached.

    Attributes:
        name: as it is reported.
        comparison: of the measured value with the threshold.
        threshold: the figure.
    """

    name: str
    comparison: Literal[">=", "<="]
    threshold: float

    def is_met(self, value: float) -> bool:
        """Compare a measured value with the bar."""
        return value >= self.threshold if self.comparison == ">=" else value <= self.threshold


# Beyond these many bytes resident memory has grown: allocators keep some pages of their own.
MEMORY_TOLERANCE_BYTES = 8 << 20

GPU_BARS = {
    "gpu_training_over_wavenet": Bar(
        "GPU, paper's size: training tokens/s, Compressive Transformer over WaveNet, both compiled", ">=", 1.0
    ),
    "gpu_training_over_peer": Bar(
        "GPU, paper's size: training tokens/s over compressive-transformer-pytorch", ">=", 10.0
    ),
    "gpu_share_of_ceiling": Bar(
        "GPU, paper's size: training FLOP/s as a share of the measured bfloat16 matmul ceiling", ">=", 0.4
    ),
    "gpu_linear_prediction_share": Bar("GPU: linear prediction's share of a training step", "<=", 0.1),
    "gpu_one_stream": Bar("GPU, one stream, 40M parameters: samples/s, real time", ">=", 24_000.0),
    "gpu_one_stream_plain": Bar("GPU, one stream, 40M parameters: samples/s, a third of real time", ">=", 8_000.0),
    "gpu_many_streams": Bar("GPU, many streams, 40M parameters: samples/s in total", ">=", 1e6),
}
CPU_BARS = {
    "cpu_training_over_peer": Bar(
        "CPU, 6.6M parameters: training tokens/s over compressive-transformer-pytorch as it ships", ">=", 3.0
    ),
    "cpu_linear_prediction_share": Bar("CPU: linear prediction's share of a training step", "<=", 0.1),
    "cpu_sampling_over_peer": Bar(
        "CPU, 1.7M parameters: sampling a second of audio over compressive-transformer-pytorch's generate()", ">=", 50.0
    ),
    "cpu_sampling_flat": Bar(
        "CPU, 1.7M parameters: cost of a sample in the last second asked for over that in the first", "<=", 1.1
    ),
    "preparation": Bar("preparation of 48 kHz FLAC: times real time, per core", ">=", 300.0),
    "memory_growth": Bar(
        "training memory: growth of resident bytes over the windows after warm-up", "<=", MEMORY_TOLERANCE_BYTES
    ),
}
BARS = GPU_BARS | CPU_BARS


def judge(key: str, value: float | None, note: str | None = None) -> dict[str, Any]:
    """Make an entry of a result's `bars`: key, name, value, comparison, bar, met, and a note where there is one.

    Args:
        key: one of `BARS`.
        value: as measured; None where it could not be, which meets nothing.
        note: a remark on the value, or the reason why there is none.
    """
    bar = BARS[key]
    assert value is not None or note, "a value that is missing needs a reason"
    entry = {
        "key": key,
        "name": bar.name,
        "value": value,
        "comparison": bar.comparison,
        "bar": bar.threshold,
        "met": value is not None and bar.is_met(value),
    }
    return entry | ({"note": note} if note else {})


def ratio(key: str, ours: Sequence[dict[str, Any]], others: Sequence[dict[str, Any]], measure: str) -> dict[str, Any]:
    """Judge the best of our rows over the best of the others', by the column `measure`.

    A note names the best of ours and has its ratio to each of the others.
    """
    known, others_known = ([row for row in rows if row[measure] is not None] for rows in (ours, others))
    if not known or not others_known:
        return judge(key, None, "; ".join(row.get("note", "") for row in [*ours, *others] if row[measure] is None))
    best = max(known, key=lambda row: row[measure])
    over = ", ".join(f"{best[measure] / row[measure]:.3g} times {row['name']}" for row in others_known)
    note = f"{best['name']} of {best['parameters'] / 1e6:.2f}M parameters is {over}"
    return judge(key, best[measure] / max(row[measure] for row in others_known), note)
