"""The expected cost of recipes, counted without running them: parameters, FLOPs of a token, hours on a GPU.

    python -m benchmarks.costs recipes/sc09 recipes/ljspeech recipes/vctk recipes/libritts

Hours are tokens x FLOPs of a token / (peak x utilisation). FLOPs are torch's count of a window's forward and backward
pass, as in `benchmarks.train`, with the attention that a GPU takes. The utilisation is an assumption: `python -m
benchmarks.train --parts recipes --recipes FOLDER` measures it.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from audio_ct.models.build import build_model
from audio_ct.models.settings import WaveNetSettings
from audio_ct.models.token_model import num_parameters
from audio_ct.recipe import Recipe
from benchmarks import measure
from benchmarks.measure import Row
from benchmarks.train import VOCABULARY_SIZE, changed, recipes_of

# bfloat16, without sparsity, by NVIDIA's data sheet of the H100 SXM.
H100_FLOPS_PER_SECOND = 989e12
UTILISATION = 0.1

COLUMNS = {
    **{"name": "recipe", "parameters": "parameters", "tokens": "tokens", "steps": "windows"},
    **{"flops_per_token": "FLOPs a token", "hours": "hours"},
}


def costs(recipe: Recipe, *, flops_per_second: float = H100_FLOPS_PER_SECOND * UTILISATION) -> Row:
    """Count what a recipe's training costs; evaluation and samples on the way are left out.

    Args:
        recipe: of 8-bit tokens, with a softmax.
        flops_per_second: that the device is assumed to keep up.
    """
    if not isinstance(recipe.model, WaveNetSettings):
        recipe = changed(recipe, model__attention_kernel="fused")
    num_samples = recipe.training.window_length
    # Nothing is computed on torch's device "meta": tensors have shapes only, which is all that counting needs.
    with torch.device("meta"):
        model = build_model(recipe.model, VOCABULARY_SIZE).train()
        tokens = torch.zeros(1, num_samples, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        output = model(tokens, model.initial_state(1, "meta"))
        loss = model.head.nats(output.logits, tokens).mean() + sum(output.auxiliary_losses.values())
        loss.backward()
    flops_per_token = counter.get_total_flops() / num_samples
    trained_on = recipe.training.num_steps * recipe.training.tokens_per_step
    return {
        "name": recipe.name,
        "parameters": num_parameters(model),
        "tokens": trained_on,
        "steps": recipe.training.num_steps,
        "flops_per_token": flops_per_token,
        "hours": trained_on * flops_per_token / flops_per_second / 3600,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Count and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="of recipes")
    parser.add_argument("--peak", type=float, default=H100_FLOPS_PER_SECOND, help="FLOP/s of the GPU (%(default)g)")
    parser.add_argument("--utilisation", type=float, default=UTILISATION, help="share of it kept up (%(default)g)")
    options = parser.parse_args(arguments)
    rows = [
        costs(recipe, flops_per_second=options.peak * options.utilisation)
        for folder in options.folders
        for recipe in recipes_of(folder)
    ]
    measure.show(f"Expected at {options.utilisation:g} of {options.peak:g} FLOP/s", rows, COLUMNS)


if __name__ == "__main__":
    main()
