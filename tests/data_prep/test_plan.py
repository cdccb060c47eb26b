"""Plans: splits by speaker that stay when recordings are added, and shards that hold every recording once."""

import numpy as np
import pytest

from audio_ct.errors import InputError
from data_prep import plan
from data_prep.corpus import SPLITS, Candidate
from data_prep.options import PrepOptions


def candidates(count: int, speakers: int = 1, split: str | None = None) -> list[Candidate]:
    return [Candidate(f"{i:04d}.wav", f"{i:04d}", f"s{i % speakers}", 1000, split=split) for i in range(count)]


def splits(found: list[Candidate], **options: object) -> dict[str, str]:
    chosen = plan.plan_splits(found, PrepOptions(**options))  # type: ignore[arg-type]
    return {candidate.name: split for candidate, split in zip(found, chosen, strict=True)}


def test_splits_have_their_share_and_depend_on_seed_and_name_only() -> None:
    found = candidates(4000)
    split_of = splits(found, validation_fraction=0.1, test_fraction=0.05)
    counts = {split: list(split_of.values()).count(split) for split in SPLITS}
    assert abs(counts["validation"] - 400) < 60
    assert abs(counts["test"] - 200) < 45
    assert splits(found[::-1], validation_fraction=0.1, test_fraction=0.05) == split_of
    assert splits(found, validation_fraction=0.1, test_fraction=0.05, seed=1) != split_of


def test_nothing_moves_when_recordings_are_added() -> None:
    before = splits(candidates(500))
    after = splits(candidates(5000))
    assert {name: after[name] for name in before} == before


def test_no_speaker_stands_in_two_splits_unless_asked() -> None:
    found = candidates(1000, speakers=40)
    split_of = splits(found)
    of_speaker: dict[str, set[str]] = {}
    for candidate in found:
        of_speaker.setdefault(candidate.speaker, set()).add(split_of[candidate.name])
    assert all(len(each) == 1 for each in of_speaker.values())
    assert set.union(*of_speaker.values()) == set(SPLITS)
    split_of = splits(found, split_by="recording")
    assert any(len({split_of[c.name] for c in found if c.speaker == f"s{i}"}) > 1 for i in range(40))


@pytest.mark.parametrize("speakers", [1, 2, 3, 5])
def test_every_split_gets_something(speakers: int) -> None:
    for count in range(max(3, speakers), 30):
        for fraction in (0.001, 0.05, 0.49):
            found = splits(candidates(count, speakers), validation_fraction=fraction, test_fraction=fraction)
            assert set(found.values()) == set(SPLITS)
    with pytest.raises(InputError, match="2 usable recordings"):
        splits(candidates(2))


def test_official_splits_are_kept_and_missing_ones_are_drawn_from_training() -> None:
    official = [
        *candidates(30, 10, "train"),
        Candidate("v", "v", "x", 1, split="validation"),
        Candidate("t", "t", "y", 1, split="test"),
    ]
    assert splits(official) == {candidate.name: candidate.split for candidate in official}
    found = splits(official[:-1])
    assert found["v"] == "validation"
    assert set(found.values()) == set(SPLITS)
    drawn = {candidate.speaker for candidate in official[:-2] if found[candidate.name] == "test"}
    assert all(found[c.name] == "test" for c in official[:-2] if c.speaker in drawn)


def test_shards_hold_every_recording_once_in_reading_order() -> None:
    sizes = np.random.default_rng(0).integers(1, 40 << 20, 300).tolist()
    found = [Candidate(f"{i:03d}", f"{i:03d}", "a", size) for i, size in enumerate(sizes)]
    shards = plan.plan_shards(found, PrepOptions())
    assert sorted(c.name for shard in shards for c in shard.candidates) == [c.name for c in found]
    assert len({shard.name for shard in shards}) == len({shard.key for shard in shards}) == len(shards)
    for shard in shards:
        names = [candidate.name for candidate in shard.candidates]
        assert names == sorted(names)
        assert len(names) == 1 or sum(c.num_bytes for c in shard.candidates) <= plan.MAXIMUM_SHARD_BYTES
    assert {a.key for a in shards} & {b.key for b in plan.plan_shards(found, PrepOptions(bits=10))} == set()
    assert {a.key for a in shards} == {b.key for b in plan.plan_shards(found, PrepOptions(jobs=7))}
