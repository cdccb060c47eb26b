"""Small trained models, made by the real command when a test first asks for them."""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import soundfile

from data_prep.folder import CORPUS
from data_prep.options import PrepOptions
from data_prep.skeleton import prepare

RECIPE = """
name: {name}
corpus: {{store: {store}}}
model: {model}
optimizer: {{learning_rate: 1e-3}}
training: {{batch_size: 2, window_length: 256, max_tokens: 1024, precision: float32, log_every_windows: 1}}
evaluation: {{max_validation_tokens: 1000}}
tracking: {{enabled: false}}
"""
SIZES = "d_model: 16, num_heads: 2, d_ff: 16, segment_length: 256"
MODELS = {
    "ct": f"{{kind: compressive_transformer, num_layers: 2, {SIZES}, memory_length: 256, "
    "compressed_memory_length: 64}",
    "xl": f"{{kind: transformer_xl, num_layers: 1, {SIZES}, memory_length: 256}}",
    "used": f"{{kind: compressive_transformer, num_layers: 1, {SIZES}, memory_length: 256, "
    "compressed_memory_length: 64, compression: {function: most_used, loss: none}}",
    "compressed": f"{{kind: compressive_transformer, num_layers: 1, {SIZES}, memory_length: 0, "
    "compressed_memory_length: 16}",
    "none": f"{{kind: compressive_transformer, num_layers: 1, {SIZES}, memory_length: 0, compressed_memory_length: 0}}",
    "net": "{kind: wavenet, num_stacks: 1, layers_per_stack: 4, residual_channels: 8, skip_channels: 8}",
}


@pytest.fixture(scope="session")
def store_path(recordings_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The beginnings of the recordings, since whole splits are read here."""
    folder = tmp_path_factory.mktemp("beginnings")
    for path in recordings_folder.glob("*/*.wav"):
        waveform, rate_hz = soundfile.read(path, stop=7000)
        (folder / path.parent.name).mkdir(exist_ok=True)
        soundfile.write(folder / path.parent.name / path.name, waveform, rate_hz)
    out = tmp_path_factory.mktemp("stores") / "short"
    options = PrepOptions(split_by="recording", validation_fraction=0.2, test_fraction=0.2, seed=2, jobs=1)
    prepare(CORPUS, folder, out, options=options)
    return out


@pytest.fixture(scope="session")
def trained(
    store_path: Path, command: Callable[..., int], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """The run folder of one of MODELS, trained with settings like those of --set."""
    folder = tmp_path_factory.mktemp("runs")

    @functools.cache
    def train(name: str, *settings: str) -> Path:
        recipe, run_folder = folder / f"{name}.yaml", folder / "-".join((name, *settings))
        recipe.write_text(RECIPE.format(name=name, store=json.dumps(str(store_path)), model=MODELS[name]))
        options = [word for setting in settings for word in ("--set", setting)]
        assert command("train", recipe, "--run-dir", run_folder, *options) == 0
        return run_folder

    return train
