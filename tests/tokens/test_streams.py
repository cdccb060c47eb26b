"""Lanes read every token of an epoch once, in order, and where they stand is a function of the step alone."""

import tracemalloc
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from audio_ct.errors import InputError
from audio_ct.tokens.codec import MuLawCodec
from audio_ct.tokens.store import Recording, TokenStore
from audio_ct.tokens.store_builder import TokenStoreBuilder
from audio_ct.tokens.streams import Streams

SILENCE = 1 << 15


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """Twelve recordings of four speakers, 2 to 60 tokens long; token values count up over all of them."""
    lengths = [60, 2, 31, 17, 44, 5, 9, 23, 58, 12, 3, 40]
    offsets = np.cumsum([0, *lengths])
    path = tmp_path_factory.mktemp("streams") / "store"
    with TokenStoreBuilder(path, MuLawCodec(24_000, bits=16)) as builder:
        rows = [
            Recording(f"{'dacb'[i % 4]}/{i}", "dacb"[i % 4], f"{i}.wav", None, 0, int(offset), length)
            for i, (offset, length) in enumerate(zip(offsets[:-1], lengths, strict=True))
        ]
        builder.add_shard("train", np.arange(100, 100 + offsets[-1], dtype=np.uint16), rows)
        for split in ("validation", "test"):
            recording = Recording(split, "a", "x.wav", None, 0, 0, 5)
            builder.add_shard(split, np.arange(5, dtype=np.uint16), [recording])
        return builder.commit()


def streams(store: TokenStore, **changes: int) -> Streams:
    settings = {"num_lanes": 3, "window_length": 8, "seed": 0, "reset_every_windows": 0} | changes
    return Streams(store, "train", **settings)


@pytest.mark.parametrize(("num_lanes", "window_length"), [(1, 1), (1, 304), (3, 8), (4, 76), (7, 5)])
def test_an_epoch_is_the_corpus_without_the_remainder(store: TokenStore, num_lanes: int, window_length: int) -> None:
    total = store.num_tokens("train")
    lanes = streams(store, num_lanes=num_lanes, window_length=window_length)
    assert lanes.windows_per_epoch == total // num_lanes // window_length
    for epoch in range(3):
        steps = range(epoch * lanes.windows_per_epoch, (epoch + 1) * lanes.windows_per_epoch)
        targets = torch.cat([lanes.window(step).targets for step in steps], dim=1)
        assert targets.shape == (num_lanes, lanes.windows_per_epoch * window_length)
        seen = targets.flatten().tolist()
        assert len(set(seen)) == len(seen), "a token was read twice"
        assert set(seen) <= set(range(100, 100 + total))
        assert total - len(seen) < num_lanes * (window_length + 1)


def test_recordings_are_whole_and_in_order_within_a_lane(store: TokenStore) -> None:
    lanes = streams(store, num_lanes=1, window_length=1)
    line = torch.cat([lanes.window(step).targets for step in range(lanes.windows_per_epoch)], dim=1)[0].tolist()
    starts = {100 + recording.offset: recording for recording in store.recordings("train")}
    place, order = 0, []
    while place < len(line):
        recording = starts[line[place]]
        assert line[place : place + recording.length] == list(range(line[place], line[place] + recording.length))
        order.append(recording)
        place += recording.length
    assert len(order) == 12
    speakers = [recording.speaker for recording in order]
    changes = sum(a != b for a, b in pairwise(speakers))
    assert changes == 3, f"one speaker's recordings are together: {speakers}"


def order_slowly(store: TokenStore, seed: int, epoch: int) -> list[Recording]:
    """An epoch's recordings in order, one after the other."""
    random = np.random.default_rng((seed, epoch))
    by_speaker: dict[str, list[Recording]] = {}
    for recording in store.recordings("train"):
        by_speaker.setdefault(recording.speaker, []).append(recording)
    speakers = sorted(by_speaker)
    return [
        by_speaker[speakers[speaker]][i]
        for speaker in random.permutation(len(speakers))
        for i in random.permutation(len(by_speaker[speakers[speaker]]))
    ]


@pytest.mark.parametrize("seed", range(3))
def test_the_order_of_an_epoch_is_that_of_lists(store: TokenStore, seed: int) -> None:
    lanes = streams(store, num_lanes=1, window_length=16, seed=seed)
    for epoch in range(3):
        steps = range(epoch * lanes.windows_per_epoch, (epoch + 1) * lanes.windows_per_epoch)
        line = torch.cat([lanes.window(step).targets[0] for step in steps]).tolist()
        tokens = [store.tokens("train", recording) for recording in order_slowly(store, seed, epoch)]
        assert line == np.concatenate(tokens)[: len(line)].tolist()


def test_the_order_of_an_epoch_takes_less_memory_than_the_table(tmp_path: Path) -> None:
    lengths = np.random.default_rng(0).integers(1, 4, 20_000)
    offsets = np.cumsum([0, *lengths])
    with TokenStoreBuilder(tmp_path / "store", MuLawCodec(24_000, 8)) as builder:
        rows = [
            Recording(f"speaker-{i // 100}/{i}", f"speaker-{i // 100}", f"{i}.wav", None, 0, int(offset), int(length))
            for i, (offset, length) in enumerate(zip(offsets[:-1], lengths, strict=True))
        ]
        builder.add_shard("train", np.zeros(offsets[-1], dtype=np.uint8), rows)
        store = builder.commit()
    table_bytes = (tmp_path / "store/recordings-train.jsonl").stat().st_size
    lanes = streams(store)
    tracemalloc.start()
    lanes.window(0)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Two numbers for each recording, and a few more while it is drawn.
    assert kept < 16 * len(lengths) < peak < 32 * len(lengths) < table_bytes / 3


def test_windows_follow_on_and_targets_are_the_next_inputs(store: TokenStore) -> None:
    lanes = streams(store)
    before = None
    for step in range(lanes.windows_per_epoch):
        window = lanes.window(step)
        assert window.inputs.dtype == window.targets.dtype == torch.int64
        assert torch.equal(window.inputs[:, 1:], window.targets[:, :-1])
        if before is not None:
            assert torch.equal(window.inputs[:, 0], before.targets[:, -1])
        before = window


def test_a_window_is_a_function_of_seed_and_step(store: TokenStore) -> None:
    forwards, anew = streams(store), streams(store)
    num_steps = 3 * forwards.windows_per_epoch
    expected = [forwards.window(step) for step in range(num_steps)]
    for step in np.random.default_rng(0).permutation(num_steps):
        window = anew.window(int(step))
        assert torch.equal(window.inputs, expected[step].inputs)
        assert torch.equal(window.targets, expected[step].targets)
        assert torch.equal(window.fresh, expected[step].fresh)


def test_seeds_and_epochs_shuffle(store: TokenStore) -> None:
    def epoch(seed: int, number: int) -> tuple[int, ...]:
        lanes = streams(store, seed=seed)
        steps = range(number * lanes.windows_per_epoch, (number + 1) * lanes.windows_per_epoch)
        return tuple(torch.cat([lanes.window(step).targets for step in steps], dim=1).flatten().tolist())

    orders = {epoch(seed, number) for seed in range(3) for number in range(3)}
    assert len(orders) == 9


def test_the_first_window_is_fresh_and_begins_with_silence(store: TokenStore) -> None:
    lanes = streams(store)
    first = lanes.window(0)
    assert first.fresh.all()
    assert first.inputs[:, 0].tolist() == [SILENCE] * 3
    for step in range(1, 3 * lanes.windows_per_epoch):
        window = lanes.window(step)
        assert not window.fresh.any()
        # Only where lane 0 begins an epoch is there no token before.
        assert (window.inputs[0, 0] == SILENCE) == (step % lanes.windows_per_epoch == 0)


@pytest.mark.parametrize("every", [1, 2, 5, 6])
def test_resets_are_staggered_and_each_lane_is_reset_in_its_turn(store: TokenStore, every: int) -> None:
    lanes = streams(store, reset_every_windows=every)
    fresh = torch.stack([lanes.window(step).fresh for step in range(10 * every + 1)])
    for lane in range(3):
        turns = fresh[1:, lane].nonzero().flatten()
        assert len(turns) == 10
        assert every == 1 or set(turns.diff().tolist()) == {every}
    at_once = fresh[1:].sum(dim=1).max()
    assert at_once <= -(-3 // every)
    for step in range(1, 2 * every):
        window = lanes.window(step)
        assert torch.equal(window.inputs[:, 0] == SILENCE, window.fresh)
        assert torch.equal(window.targets, streams(store).window(step).targets), "a reset drops no token"


def test_a_message_can_name_the_recordings(store: TokenStore) -> None:
    lanes = streams(store)
    by_token = {
        100 + recording.offset + i: recording.name
        for recording in store.recordings("train")
        for i in range(recording.length)
    }
    for step in range(2 * lanes.windows_per_epoch):
        assert lanes.recordings_at(step) == tuple(by_token[int(row[0])] for row in lanes.window(step).targets)


def test_a_split_too_small_is_refused_with_the_numbers(store: TokenStore) -> None:
    with pytest.raises(InputError, match=r"batch_size=4 x training.window_length=77 needs at least 308 tokens.*304"):
        streams(store, num_lanes=4, window_length=77)
    with pytest.raises(InputError, match=r"batch_size=400"):
        streams(store, num_lanes=400)
