"""Speed of training and sampling: every model of a folder of recipes, the same tokens, one process, one run.

    python benchmarks/speed.py --recipes recipes/small --out benchmarks/results/speed-small.json

Training is a window of every lane forward and backward with its optimiser step, on random tokens, as the recipe says
(batch, window, precision, compilation). Sampling is the cached step with drawing. Medians over repeats; compare
figures within one run only, since machines are noisy.
"""

import argparse
import json
import platform
import statistics
import time
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch.nn import functional as F

from audio_ct import __version__
from audio_ct.models.interface import num_parameters
from audio_ct.pretrained import choose_device
from audio_ct.provenance import commit
from audio_ct.recipe import Recipe, build_model, load_recipe
from audio_ct.sampling.engine import generate
from audio_ct.training.optimizer import make_optimizer

VOCABULARY_SIZE = 256


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def training_tokens_per_second(recipe: Recipe, device: torch.device, repeats: int) -> float:
    """Return the median speed of `repeats` steps, after two to warm up."""
    model = build_model(recipe.model, VOCABULARY_SIZE).to(device).train()
    optimizer = make_optimizer(model, recipe.optimizer)
    forward = torch.compile(model) if recipe.training.compile else model
    training = recipe.training
    tokens = torch.randint(0, VOCABULARY_SIZE, (training.batch_size, training.window_length + 1), device=device)
    state = model.initial_state(training.batch_size, device)
    precision = getattr(torch, training.precision)
    seconds = []
    for _ in range(repeats + 2):
        synchronise(device)
        began = time.perf_counter()
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            output = forward(tokens[:, :-1], state)
        loss = F.cross_entropy(output.logits.float().flatten(0, 1), tokens[:, 1:].flatten())
        (loss + sum(output.auxiliary_losses.values())).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), training.gradient_clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        state = output.state
        synchronise(device)
        seconds.append(time.perf_counter() - began)
    return training.batch_size * training.window_length / statistics.median(seconds[2:])


def sampling_samples_per_second(
    recipe: Recipe, device: torch.device, num_waveforms: int, num_samples: int, repeats: int
) -> float:
    """Return the median speed over all waveforms together."""
    model = build_model(recipe.model, VOCABULARY_SIZE).to(device)
    seconds = []
    for seed in range(repeats + 1):
        began = time.perf_counter()
        list(
            generate(
                model, num_waveforms=num_waveforms, num_samples=num_samples, start_token=128, seed=seed, device=device
            )
        )
        seconds.append(time.perf_counter() - began)
    return num_waveforms * num_samples / statistics.median(seconds[1:])


def main() -> None:
    """Run the benchmark, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", type=Path, default=Path("recipes/small"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/latest.json"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--samples", type=int, default=1200, help="samples of each waveform")
    arguments = parser.parse_args()

    device = choose_device()
    rows = []
    for path in sorted(arguments.recipes.glob("*.yaml")):
        recipe = load_recipe(path)
        row = {
            "name": recipe.name,
            "parameters": num_parameters(build_model(recipe.model, VOCABULARY_SIZE)),
            "batch_size": recipe.training.batch_size,
            "window_length": recipe.training.window_length,
            "precision": recipe.training.precision,
            "compile": recipe.training.compile,
            "training_tokens_per_second": training_tokens_per_second(recipe, device, arguments.repeats),
        }
        for num_waveforms in (1, 16):
            row[f"sampling_{num_waveforms}_samples_per_second"] = sampling_samples_per_second(
                recipe, device, num_waveforms, arguments.samples, arguments.repeats
            )
        rows.append(row)
        print(
            f"{row['name']}: {row['parameters'] / 1e6:.2f}M parameters, "
            f"{row['training_tokens_per_second']:,.0f} tokens/s training, "
            f"{row['sampling_1_samples_per_second']:,.0f} samples/s sampling one waveform, "
            f"{row['sampling_16_samples_per_second']:,.0f} samples/s sampling sixteen",
            flush=True,
        )
    result = {
        "created": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "version": __version__,
        "commit": commit(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "rows": rows,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(arguments.out)


if __name__ == "__main__":
    main()
