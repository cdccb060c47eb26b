"""Models of raw speech, sample by sample: a Compressive Transformer beside Transformer-XL and WaveNet.

From a token store, as `audio-ct prep folder RECORDINGS --out stores/speech` makes one, to new speech:

    >>> store = audio_ct.TokenStore.open("stores/speech")
    >>> store.splits
    ('train', 'validation', 'test')
    >>> recipe = audio_ct.load_recipe("recipes/small/wavenet.yaml", ["corpus.store=stores/speech"])
    >>> checkpoint = audio_ct.train(recipe, "runs/wavenet")
    >>> model = audio_ct.load("runs/wavenet")
    >>> [waveform] = audio_ct.sample(model, seconds=0.1)
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

# OpenMP reads it when torch is loaded. Threads that spin while they wait, its default, starve whatever runs beside them
# and are starved by it; `python -m benchmarks.busy` measures that.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if TYPE_CHECKING:
    from audio_ct.api import bits_per_sample, build_model, continue_waveform, sample, train
    from audio_ct.evaluation.comparison import compare
    from audio_ct.evaluation.likelihood import evaluate
    from audio_ct.pretrained import load
    from audio_ct.recipe import load_recipe
    from audio_ct.tokens.store import TokenStore

__version__ = "0.1.0"
__all__ = [
    "TokenStore",
    "bits_per_sample",
    "build_model",
    "compare",
    "continue_waveform",
    "evaluate",
    "load",
    "load_recipe",
    "sample",
    "train",
]

_HOMES = {
    "TokenStore": "tokens.store",
    "compare": "evaluation.comparison",
    "evaluate": "evaluation.likelihood",
    "load": "pretrained",
    "load_recipe": "recipe",
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use: torch takes seconds to import."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"audio_ct.{_HOMES.get(name, 'api')}"), name)


def __dir__() -> list[str]:
    """The public names."""
    return [*__all__, "__version__"]
