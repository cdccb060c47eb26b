"""Training with two threads, alone and beside a busy process, with OpenMP's threads spinning while they wait or not.

    python -m benchmarks.busy --store stores/speech --out benchmarks/results/busy.json

Each case is a fresh process: the policy is read when torch is loaded.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

RECIPE = "recipes/small/wavenet.yaml"
NUM_WINDOWS = 60
BUSY = "while True: pass"


def main() -> None:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    found = []
    for policy in ("ACTIVE", "PASSIVE"):
        for num_busy in (0, 1):
            others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(num_busy)]
            try:
                speed = tokens_per_second(arguments.store, policy)
            finally:
                for other in others:
                    other.kill()
            found.append({"OMP_WAIT_POLICY": policy, "busy_processes": num_busy, "tokens_per_second": speed})
            print(found[-1], flush=True)
    arguments.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def tokens_per_second(store: str, policy: str) -> float:
    """Train so many windows of the recipe in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        changes = {
            "corpus.store": store,
            "training.max_tokens": NUM_WINDOWS * 1024,
            "training.num_threads": 2,
            "training.log_every_windows": NUM_WINDOWS // 2,
            "training.sample_every_windows": 0,
            "evaluation.max_validation_tokens": 1000,
            "tracking.enabled": "false",
        }
        settings = [word for key, value in changes.items() for word in ("--set", f"{key}={value}")]
        command = [sys.executable, "-m", "audio_ct", "train", RECIPE, "--run-dir", f"{folder}/run", *settings]
        environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
        subprocess.run(command, check=True, capture_output=True, env=environment | {"OMP_WAIT_POLICY": policy})
        lines = Path(folder, "run/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    first, last = (row for row in rows if "training_bits_per_sample" in row)
    return (last["tokens"] - first["tokens"]) / (last["time"] - first["time"])


if __name__ == "__main__":
    main()
