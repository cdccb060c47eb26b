"""Learning beside the public package: the same tokens for all, and figures that say what was measured."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from audio_ct.errors import InputError
from audio_ct.tokens.store import TokenStore
from audio_ct.tokens.streams import Streams
from benchmarks import learning
from benchmarks.train import plain_recipe

TINY = {
    **{"num_layers": 2, "d_model": 8, "num_heads": 2, "segment_length": 8, "memory_length": 8},
    **{"compressed_memory_length": 8, "compression_rate": 2},
}
OPTIONS = [
    *(part for name, value in TINY.items() for part in (f"--{name.replace('_', '-')}", str(value))),
    *("--tokens", "160", "--batch-size", "2", "--warmup-steps", "2", "--validation-tokens", "600", "--device", "cpu"),
]


def run(out: Path, *options: object) -> dict[str, Any]:
    learning.main([*OPTIONS, *map(str, options), "--out", str(out)])
    return json.loads(out.read_text())


def test_a_missing_package_is_named_and_ours_is_measured(
    tmp_path: Path, store_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "compressive_transformer_pytorch", None)
    result = run(tmp_path / "out.json", "--store", store_path, "--seeds", 1)
    rows = {row["name"]: row for row in result["learning"]["rows"]}
    for name in (learning.PUBLIC, learning.THAWED):
        assert "cannot be imported" in rows[name]["note"]
        assert rows[name]["validation_bits"] is None
    ours = rows[learning.OURS]
    assert 0 < ours["validation_bits"]["value"] < 20
    # One seed says nothing about others.
    assert ours["validation_bits"]["half_width"] is None
    assert ours["tokens_per_second"] > 0
    assert result["machine"]["device"] == "cpu"
    assert result["learning"]["recipe"]["training"]["precision"] == "float32"


def test_only_the_packages_own_weights_freeze(tmp_path: Path, store_path: Path) -> None:
    pytest.importorskip("compressive_transformer_pytorch", reason="make bench-peers installs it")
    result = run(tmp_path / "out.json", "--store", store_path, "--seeds", 2)
    rows = {row["name"]: row for row in result["learning"]["rows"]}
    assert rows.keys() == set(learning.MODELS)
    assert result["learning"]["tokens"] == 160
    for name, row in rows.items():
        assert row["seeds"]["validation_bits"].keys() == {"0", "1"}
        moved = row["seeds"]["key_value_change"].values()
        assert {value > 0 for value in moved} == {name != learning.PUBLIC}
    ours, public = rows[learning.OURS]["seeds"], rows[learning.PUBLIC]["seeds"]
    apart = [public["validation_bits"][seed] - ours["validation_bits"][seed] for seed in "01"]
    assert rows[learning.PUBLIC]["validation_bits_over_ours"]["value"] == pytest.approx(sum(apart) / 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--tokens", 16), "--tokens=16 end with window 1"),
        (("--compressed-memory-length", 10_000), "fill the memories"),
    ],
)
def test_what_leaves_nothing_to_measure_is_refused(
    tmp_path: Path, store_path: Path, options: tuple[object, ...], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run(tmp_path / "out.json", "--store", store_path, *options)


def test_without_a_store_noise_is_made(tmp_path: Path) -> None:
    result = run(tmp_path / "out.json", "--models", learning.OURS, "--seeds", 1)
    assert result["store"] == "synthetic noise"


def test_a_validation_has_full_memories_and_is_carried(store_path: Path) -> None:
    recipe = plain_recipe(TINY, batch_size=2)
    torch.manual_seed(0)
    learner = learning.Ours(recipe, 256, torch.device("cpu"))
    store = TokenStore.open(store_path)
    lanes = learning.VALIDATION_LANES
    streams = Streams(store, "validation", num_lanes=lanes, seed=0, window_length=8, reset_every_windows=0)
    full, cold = learner.validate(streams, 5)
    # (8 + 2 * 8) / 8 = 3 windows fill the memories; all five are one stream.
    windows = [streams.window(step) for step in range(5)]
    inputs, targets = (torch.cat([getattr(each, name) for each in windows], dim=1) for name in ("inputs", "targets"))
    with torch.no_grad():
        logits = learner.network(inputs, learner.network.initial_state(lanes)).logits
    bits = torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none") / math.log(2)
    assert (cold, full) == pytest.approx((float(bits[:, :24].mean()), float(bits[:, 24:].mean())), rel=1e-5)
    assert learning.first_compression(recipe.model) == 1  # type: ignore[arg-type]
