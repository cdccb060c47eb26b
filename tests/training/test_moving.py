"""Scoring while parameters move: a frozen model's bits are its loss, and moving it on what repeats lowers them."""

import math
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from audio_ct import cli
from audio_ct.errors import InputError
from audio_ct.models.interface import select_lanes
from audio_ct.pretrained import Pretrained, load
from audio_ct.recipe import parse_recipe
from audio_ct.tokens.store import TokenStore
from audio_ct.tokens.streams import Streams
from audio_ct.training.loop import train
from audio_ct.training.moving import bits_while_moving

RECIPE = """
name: tiny
corpus: {{store: {store}}}
model:
  {{kind: compressive_transformer, num_layers: 1, d_model: 16, num_heads: 2, d_ff: 16, segment_length: 64,
  memory_length: 64, compressed_memory_length: 32}}
optimizer: {{learning_rate: 3e-3}}
training: {{batch_size: 2, window_length: 128, max_tokens: 2048, precision: float32, reset_every_windows: 3}}
evaluation: {{max_validation_tokens: 1000}}
tracking: {{enabled: false}}
"""


@pytest.fixture(scope="module")
def trained(store_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Pretrained:
    run = tmp_path_factory.mktemp("moving") / "run"
    return load(train(parse_recipe(RECIPE.format(store=store_path)), run))


def test_a_frozen_models_bits_are_its_loss_over_the_stream(trained: Pretrained, store_path: Path) -> None:
    bits, tokens = bits_while_moving(trained, split="test", learning_rate=0, max_tokens=2048)
    assert tokens == 2048
    streams = Streams(
        TokenStore.open(store_path),
        "test",
        num_lanes=2,
        window_length=128,
        seed=0,
        reset_every_windows=3,
        start_token=128,
    )
    state, nats = trained.model.initial_state(2), []
    for step in range(8):
        window = streams.window(step)
        state = select_lanes(window.fresh, trained.model.initial_state(2), state)
        with torch.no_grad():
            output = trained.model(window.inputs, state)
        state = output.state
        nats.append(float(F.cross_entropy(output.logits.flatten(0, 1), window.targets.flatten())))
    assert bits == pytest.approx(sum(nats) / 8 / math.log(2), abs=1e-6)


def test_moving_learns_and_leaves_the_model_as_it_was(trained: Pretrained) -> None:
    before = {name: tensor.clone() for name, tensor in trained.model.state_dict().items()}
    frozen, _ = bits_while_moving(trained, split="test", learning_rate=0)
    moving, _ = bits_while_moving(trained, split="test", learning_rate=3e-3)
    # After 2,048 samples it has hardly begun to learn.
    assert moving < frozen - 0.1
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained.model.state_dict().items())
    assert not trained.model.training


def test_the_first_window_is_scored_before_anything_is_learned(trained: Pretrained) -> None:
    figures = [
        bits_while_moving(trained, split="test", learning_rate=rate, max_tokens=1)[0] for rate in (0.0, 1e-3, 1.0)
    ]
    assert figures[0] == pytest.approx(figures[1], abs=1e-6) == pytest.approx(figures[2], abs=1e-6)
    with pytest.raises(InputError, match="moving=-1 must be a learning rate, 0 or more"):
        bits_while_moving(trained, split="test", learning_rate=-1)


def test_the_command_prints_a_line_for_each(
    trained: Pretrained, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    moving = ["--moving", "0", "--moving", "1e-3", "--max-tokens", "1000"]
    monkeypatch.setattr(sys, "argv", ["audio-ct", "evaluate", str(trained.path), *moving])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert not exit_.value.code
    lines = capsys.readouterr().out.splitlines()
    assert [("frozen" in line, "moving at 0.001" in line) for line in lines] == [(True, False), (False, True)]
    monkeypatch.setattr(sys, "argv", ["audio-ct", "evaluate", str(trained.path), *moving, "--weights", "int8"])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 2
