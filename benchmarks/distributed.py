"""Training on several processes: measured on this machine, and what links between GPUs would allow.

    python -m benchmarks.distributed recipes/demo/compressive_transformer.yaml --processes 1 2 --out distributed.json

Measured: the same lanes shared by more processes, one thread each, over gloo. Computed: a step on N GPUs takes the time
of its lanes, as many on each, and then, hidden behind nothing, an all-reduce in a ring, in which each GPU sends and
receives 2 (N - 1) / N times the gradient. That is the worst case: DistributedDataParallel sends the gradients of later
layers while those of earlier ones are computed.

Source of the ring: Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of workstations".
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from audio_ct.device import choose_device
from audio_ct.models.footprint import outline
from audio_ct.models.token_model import num_parameters
from audio_ct.recipe import Recipe, load_recipe
from audio_ct.record import read_record
from benchmarks.measure import Row, machine

# Of the slowest link in the ring: bytes a second, seconds that a message takes, and the most GPUs that it joins. A ring
# enters and leaves each machine once, whatever GPUs are in it.
LINKS = {
    "NVLink 4, within a machine": (450e9, 5e-6, 8),
    "InfiniBand NDR, 400 Gb/s": (50e9, 1e-5, 128),
    "Ethernet, 100 Gb/s a machine": (12.5e9, 3e-5, 128),
    "Ethernet, 10 Gb/s a machine": (1.25e9, 5e-5, 128),
}
GPUS = (2, 8, 32, 128)
GRADIENT_BYTES = 4  # of a parameter
NUM_WINDOWS = 60


def main() -> None:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path, help="For what is measured.")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE")
    parser.add_argument("--processes", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--large", type=Path, default=Path("recipes/paper/compressive_transformer.yaml"))
    parser.add_argument("--lane-milliseconds", type=float, default=4.0, help="One lane's window of --large on a GPU.")
    parser.add_argument("--out", type=Path, help="Gets the figures as JSON.")
    arguments = parser.parse_args()
    measured = {size: tokens_per_second(arguments.recipe, arguments.settings, size) for size in arguments.processes}
    for size, speed in measured.items():
        print(f"{size} processes: {speed:,.0f} tokens/s, {speed / measured[arguments.processes[0]]:.2f} of the first")
    large = load_recipe(arguments.large)
    rows = efficiencies(large, arguments.lane_milliseconds / 1000)
    print(f"| {arguments.large}, lanes a GPU | link | {' | '.join(f'{num} GPUs' for num in GPUS)} |")
    print("|---|---|" + "---|" * len(GPUS))
    for row in rows:
        shares = " | ".join(f"{row['efficiency'][num]:.0%}" if num in row["efficiency"] else "" for num in GPUS)
        print(f"| {row['lanes']} | {row['link']} | {shares} |")
    if arguments.out is not None:
        found = {
            "machine": machine(choose_device()),
            "recipe": str(arguments.recipe),
            "tokens_per_second": measured,
            "computed": rows,
        }
        arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def tokens_per_second(recipe: Path, settings: list[str], size: int) -> float:
    """Train some windows with so many processes; the speed of the last half of them."""
    each = load_recipe(recipe, settings).training
    changes = {
        "training.max_tokens": NUM_WINDOWS * each.tokens_per_step,
        "training.log_every_windows": NUM_WINDOWS // 2,
        "training.sample_every_windows": 0,
        "evaluation.max_validation_tokens": 1000,
        "tracking.enabled": "false",
    }
    words = [word for change in (*settings, *(f"{k}={v}" for k, v in changes.items())) for word in ("--set", change)]
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={size}", "-m"] if size > 1 else []
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            *launcher,
            "audio_ct",
            "train",
            str(recipe),
            "--run-dir",
            f"{folder}/run",
            *words,
        ]
        subprocess.run(command, check=True, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        lines = [line for line in read_record(Path(folder, "run")) if "training_bits_per_sample" in line]
    return float(lines[-1]["tokens_per_second"])


def efficiencies(recipe: Recipe, lane_seconds: float) -> list[Row]:
    """The share of N times one GPU's speed that N GPUs reach, by link and by the lanes that each has."""
    gradient = GRADIENT_BYTES * num_parameters(outline(recipe.model, 256))
    return [
        {
            "lanes": lanes,
            "link": link,
            "gradient_bytes": gradient,
            "efficiency": {
                num: _efficiency(lanes * lane_seconds, gradient, num, speed, delay) for num in GPUS if num <= most
            },
        }
        for lanes in (1, 16)
        for link, (speed, delay, most) in LINKS.items()
    ]


def _efficiency(
    step_seconds: float, gradient: float, num: int, bytes_per_second: float, message_seconds: float
) -> float:
    sent = 2 * (num - 1) / num * gradient / bytes_per_second + 2 * (num - 1) * message_seconds
    return step_seconds / (step_seconds + sent)


if __name__ == "__main__":
    main()
