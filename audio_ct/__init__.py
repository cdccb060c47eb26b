"""Models of raw speech, sample by sample: a Compressive Transformer beside Transformer-XL and WaveNet.

From a token store, as `audio-ct prep demo --out stores/demo` makes one, to new speech:

    >>> store = audio_ct.TokenStore.open("stores/demo")
    >>> store.splits
    ('train', 'validation', 'test')
    >>> recipe = audio_ct.load_recipe("recipes/demo/wavenet.yaml", ["corpus.store=stores/demo"])
    >>> checkpoint = audio_ct.train(recipe, "runs/wavenet")
    >>> model = audio_ct.load("runs/wavenet")
    >>> [waveform] = audio_ct.sample(model, seconds=0.1)
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from audio_ct.api import (
        TokenStore,
        bits_per_sample,
        build_model,
        compare,
        continue_waveform,
        evaluate,
        load,
        load_recipe,
        sample,
        train,
    )

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


def __getattr__(name: str) -> Any:
    """Import a public name at its first use: torch takes seconds to import."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from audio_ct import api

    return getattr(api, name)


def __dir__() -> list[str]:
    """The public names."""
    return [*__all__, "__version__"]
