"""16-bit samples from recordings to a comparison page, through the real commands."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

pytestmark = pytest.mark.xdist_group("pitch")

MODELS = {
    "ct": "{kind: compressive_transformer, num_layers: 1, d_model: 16, num_heads: 2, d_ff: 16, segment_length: 64, "
    "memory_length: 64, compressed_memory_length: 16, compression_rate: 4, embedding: sinusoidal, "
    "output: mixture_of_logistics, linear_prediction: {}}",
    "net": "{kind: wavenet, num_stacks: 1, layers_per_stack: 4, residual_channels: 8, skip_channels: 8, "
    "embedding: sinusoidal, output: mixture_of_logistics}",
}
RECIPE = """
name: {name}
corpus: {{store: {store}}}
model: {model}
optimizer: {{learning_rate: 1e-3}}
training: {{precision: float32, batch_size: 2, window_length: 256, max_tokens: 1024, log_every_windows: 1,
  sample_every_windows: 2}}
evaluation: {{max_validation_tokens: 1000}}
sampling: {{seconds: 0.02}}
tracking: {{enabled: false}}
"""


Command = Callable[..., int]


@pytest.fixture(scope="module")
def runs(recordings_folder: Path, tmp_path_factory: pytest.TempPathFactory, command: Command) -> Path:
    folder = tmp_path_factory.mktemp("sixteen-bit")
    options = ["--bits", 16, "--jobs", 1, "--validation-fraction", 0.2, "--test-fraction", 0.2]
    assert command("prep", "folder", recordings_folder, "--out", folder / "store", *options) == 0
    for name, model in MODELS.items():
        store = json.dumps(str(folder / "store"))
        (folder / f"{name}.yaml").write_text(RECIPE.format(name=name, store=store, model=model))
        assert command("train", folder / f"{name}.yaml", "--run-dir", folder / name) == 0
    return folder


@pytest.mark.parametrize("name", MODELS)
def test_fewer_bits_are_scored_as_fewer(
    name: str, runs: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    def bits_per_sample(*options: object) -> float:
        capsys.readouterr()
        shortened = ["--max-tokens", 1, "--cold-start-samples", 16]
        assert command("evaluate", runs / name, *options, *shortened, "--json") == 0
        return float(json.loads(capsys.readouterr().out)["bits_per_sample"])

    whole = bits_per_sample()
    assert bits_per_sample("--at-bits", 16) == pytest.approx(whole)
    at_8, at_4 = (bits_per_sample("--at-bits", bits) for bits in (8, 4))
    assert 0 < at_4 < at_8 < whole
    assert command("evaluate", runs / name, "--at-bits", 17) == 2
    assert "at-bits=17" in capsys.readouterr().err


def test_samples_and_a_page_can_be_made(runs: Path, command: Command) -> None:
    assert command("sample", runs / "ct", "--out", runs / "samples", "--seconds", 0.05) == 0
    assert command("sample", runs / "ct", "--out", runs / "filtered", "--seconds", 0.002, "--top-p", 0.9) == 0
    waveform, rate_hz = soundfile.read(runs / "samples/ct-00.wav")
    assert len(waveform) == 0.05 * rate_hz
    assert len(np.unique(waveform)) > 256, "finer than 8 bits"
    options = ["--num", 1, "--seconds", 0.01, "--max-tokens", 1, "--cold-start-samples", 16]
    assert command("compare", runs / "ct", runs / "net", "--out", runs / "page", *options) == 0
    comparison = json.loads((runs / "page/comparison.json").read_text())
    assert comparison["reference_lines"]["uniform"] == 16
    assert comparison["reference_lines"]["order_2"] is None
