"""The benchmark of a large store measures one that is whole, and takes no space for it."""

import json
from pathlib import Path

import pytest

from audio_ct.tokens.store import TokenStore
from benchmarks import scale


def test_shards_take_no_space_and_are_what_the_manifest_says(tmp_path: Path) -> None:
    store = scale.make_store(tmp_path / "store", hours=3, text_letters=20)
    assert [len(store.recordings(split)) for split in store.splits] == [1060, 10, 10]
    assert sum(store.num_tokens(split) for split in store.splits) == 3 * 3600 * scale.RATE_HZ
    assert [shard.num_bytes for shard in store.shards("train")][::4] == [256 * 240_000, 36 * 240_000]
    assert sum(file.stat().st_blocks * 512 for file in tmp_path.glob("store/*.bin")) < 1 << 20
    store.verify()
    names = [name for split in store.splits for name in store.recordings(split).names]
    assert len(set(names)) == 1080
    assert {len(row.text or "") for row in store.recordings("train")} == {20}


def test_opening_and_reading_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # One process instead of two, each of which imports torch.
    monkeypatch.setattr(scale, "TEXT_LETTERS", {"without texts": 0})
    scale.main(["--hours", "4", "--out", str(tmp_path / "out.json")])
    result = json.loads((tmp_path / "out.json").read_text())
    (row,) = result["scale"]["rows"]
    assert row["recordings"] == 1440
    assert 0 < row["open_seconds"] < 20
    assert 0 < row["order_peak_bytes"] < row["table_bytes"]
    assert row["first_window_seconds"] > 0
    assert "A store of 4 hours" in capsys.readouterr().out
    store = scale.make_store(tmp_path / "store", hours=1)
    assert isinstance(store, TokenStore)
