"""Is a model as sure as it may be? Predicted spread of the next token against its errors on a recording, and steps.

    python samples/calibration.py runs/compressive_transformer --split test --recording 1

A model that is calibrated on recordings and still samples badly drifts in its own company; one whose steps are not its
windows has a bug.
"""

import argparse
import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

import audio_ct

FAR_TOKENS = 20


def describe(name: str, logits: Tensor, tokens: Tensor) -> None:
    """Print bits, and errors against what was predicted of them, of logits [time, vocabulary] for tokens [time]."""
    probabilities = logits.double().softmax(-1)
    distance = torch.arange(logits.shape[-1]) - (probabilities @ torch.arange(logits.shape[-1]).double())[:, None]
    deviation = (probabilities * distance.square()).sum(-1).sqrt()
    error = distance.gather(-1, tokens[:, None])[:, 0]
    far = (probabilities * (distance.abs() > FAR_TOKENS)).sum(-1).mean()
    bits = F.cross_entropy(logits.double(), tokens) / math.log(2)
    normalised = (error / deviation).square().mean().sqrt()
    really_far = (error.abs() > FAR_TOKENS).double().mean()
    print(
        f"{name}: {bits:.6f} bits, rms of error over predicted deviation {normalised:.3f}, "
        f"over {FAR_TOKENS} tokens off: {far:.3%} predicted, {really_far:.3%} real"
    )


def main() -> None:
    """Print a line for windows and one for steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a checkpoint or a run folder")
    parser.add_argument("--split", default="test")
    parser.add_argument("--recording", type=int, default=0, help="its number among those that are long enough")
    parser.add_argument("--skip", type=int, default=20_480, help="samples read before (%(default)s)")
    parser.add_argument("--samples", type=int, default=4096, help="samples that are looked at (%(default)s)")
    options = parser.parse_args()

    loaded = audio_ct.load(options.checkpoint, "cpu")
    model = loaded.model
    skip, length = (-(-n // model.segment_length) * model.segment_length for n in (options.skip, options.samples))
    store = loaded.open_store()
    recordings = [each for each in store.recordings(options.split) if each.length >= skip + length]
    tokens = store.tokens(options.split, recordings[options.recording], 0, skip + length).astype(np.int64)
    inputs = torch.from_numpy(np.concatenate([[store.start_token], tokens[:-1]]))[None]
    targets = torch.from_numpy(tokens[skip:])
    with torch.no_grad():
        state = model(inputs[:, :skip], model.initial_state(1)).state
        describe("windows", model.head.distribution(model(inputs[:, skip:], state).logits[0]), targets)
        steps = []
        for t in range(skip, skip + length):
            logits, state = model.step(inputs[:, t], state)
            steps.append(logits)
        describe("steps", model.head.distribution(torch.cat(steps)), targets)


if __name__ == "__main__":
    main()
