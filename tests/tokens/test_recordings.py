"""The table of recordings: what is not exactly a table is refused, and columns and rows say the same."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np
import pytest

from audio_ct.tokens.recordings import MAX_LINE_BYTES, Recording, Recordings, cover

ROW = Recording("b/1", "böb", "b/1.wav", 'say "}"\n', 0, 0, 5)
ROWS = [ROW, Recording("a/2", "anna", "a/2.wav", None, 0, 5, 7), Recording("b/3", "böb", "b/3.wav", "", 1, 0, 1)]


def lines(*rows: Recording | dict[str, object]) -> bytes:
    return "".join(json.dumps(row if isinstance(row, dict) else asdict(row)) + "\n" for row in rows).encode()


def test_rows_and_columns() -> None:
    table = Recordings.from_jsonl(lines(*ROWS), 3)
    assert list(table) == [table[index] for index in range(3)] == ROWS
    assert (table[-1], table[np.int64(1)]) == (ROWS[2], ROWS[1])
    assert table[1:] == tuple(ROWS[1:])
    assert table[::-1] == tuple(ROWS[::-1])
    assert (len(table), ROWS[1] in table, table.index(ROWS[2])) == (3, True, 2)
    assert table.names == ["b/1", "a/2", "b/3"]
    assert table.speakers == ("anna", "böb")
    for column, dtype, expected in (
        (table.shards, np.int32, [0, 0, 1]),
        (table.offsets, np.int64, [0, 5, 0]),
        (table.lengths, np.int64, [5, 7, 1]),
        (table.speaker_codes, np.int32, [1, 0, 1]),
    ):
        assert (column.dtype, column.tolist()) == (dtype, expected)
    assert table.place(1) == (0, 5, 7)
    for wrong in (3, -4):
        with pytest.raises(IndexError):
            table[wrong]
    with pytest.raises(TypeError):
        table["b/1"]  # type: ignore[call-overload]
    assert list(Recordings.from_rows(ROWS)) == ROWS


def test_a_table_that_is_read_in_blocks() -> None:
    rows = [Recording(f"s{i % 7}/{i}", f"s{i * 31 % 101}", f"{i}.wav", "x" * (i % 300), 0, i, 1) for i in range(40_000)]
    content = lines(*rows)
    assert len(content) > 2 * MAX_LINE_BYTES
    table = Recordings.from_jsonl(content, len(rows))
    assert list(table) == rows
    assert [table[index] for index in range(0, len(rows), 997)] == rows[::997]
    assert [table.speakers[code] for code in table.speaker_codes] == [row.speaker for row in rows]


WRONG = (
    *({name: value} for name in ("name", "speaker", "source") for value in (None, 3, ["a"], {"a": 1}, True)),
    *({"text": value} for value in (3, ["a"], {"a": 1}, False)),
    *({name: value} for name in ("shard", "offset", "length") for value in (None, "0", 0.0, True, 1e30, [0])),
    *({name: 2**64} for name in ("offset", "length")),
    {"shard": 2**32},
    {"text": "\ud800"},
    {"name": "\udc00"},
    {"more": 1},
)


@pytest.mark.parametrize("change", WRONG, ids=repr)
def test_a_row_with_other_fields_is_refused(change: dict[str, object]) -> None:
    for row in ({**asdict(ROW), **change}, {**change, **asdict(ROW), **change}):
        with pytest.raises(ValueError, match=r"\S"):
            Recordings.from_jsonl(lines(ROW, row, ROW), 3)


@pytest.mark.parametrize("name", list(asdict(ROW)))
def test_a_field_that_is_missing_or_there_twice_is_refused(name: str) -> None:
    row = {key: value for key, value in asdict(ROW).items() if key != name}
    with pytest.raises(ValueError, match=r"\S"):
        Recordings.from_jsonl(lines(ROW, row), 2)
    twice = lines(ROW)[:-2] + f', "{name}": {json.dumps(asdict(ROW)[name])}}}\n'.encode()
    with pytest.raises(ValueError, match=r"\S"):
        Recordings.from_jsonl(lines(ROW) + twice, 2)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"\n", b"null", b"null\n" * 2, b"5\n" * 2, b"[]\n[]\n", b"{}\n{}\n", b"\xff\n\xff\n"),
        *(lines(ROW) + wrong for wrong in (b"", b"\n", b"null\n", b"null", b"5\n", b"{", b"[" * 100_000)),
        *(wrong + lines(ROW) for wrong in (b"null", b"null\n", b"\n", b" ", b'{"name":' * 100_000)),
        lines(ROW)[:-1] * 2 + b"\n",
        lines(ROW)[:-1] + b"null\n" + lines(ROW),
        lines(*ROWS),
        lines(ROW, ROW)[:-2],
        lines(ROW, ROW).replace(b"b/1.wav", b"b/\xff.wav"),
        lines(ROW, ROW).replace(b"b/1.wav", b"b/\xed\xa0\x80.wav"),
        lines(ROW, replace(ROW, text="x" * (3 * MAX_LINE_BYTES))),
    ],
    ids=range(27),
)
def test_what_is_no_table_of_two_lines_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        Recordings.from_jsonl(content, 2)


def covers_slowly(recordings: Sequence[Recording], counts: Sequence[int]) -> bool:
    """One recording after the other."""
    filled = [0] * len(counts)
    shard = 0
    for recording in recordings:
        if not shard <= recording.shard < len(counts):
            return False
        shard = recording.shard
        if recording.offset != filled[shard] or recording.length < 1:
            return False
        filled[shard] += recording.length
    return filled == list(counts)


def test_recordings_cover_their_shards() -> None:
    random = np.random.default_rng(0)
    seen = {True: 0, False: 0}
    for _ in range(600):
        counts, rows = [], []
        for shard in range(random.integers(1, 4)):
            lengths = random.integers(1, 5, random.integers(1, 4))
            offsets = np.cumsum([0, *lengths])
            counts.append(int(offsets[-1]))
            rows += [
                Recording("a", "a", "a", None, shard, int(offset), int(length))
                for offset, length in zip(offsets, lengths, strict=False)
            ]
        if random.random() < 0.7:
            at = int(random.integers(len(rows)))
            match random.integers(5):
                case 0:
                    field = str(random.choice(["shard", "offset", "length"]))
                    change = int(random.integers(-2, 3))
                    rows[at] = replace(rows[at], **{field: getattr(rows[at], field) + change})
                case 1:
                    del rows[at]
                case 2:
                    rows.insert(at, rows[at])
                case 3:
                    counts[random.integers(len(counts))] += int(random.integers(-1, 2))
                case 4:
                    rows.reverse()
        expected = covers_slowly(rows, counts)
        seen[expected] += 1
        assert cover(rows, counts) == expected, (rows, counts)
        if rows:
            assert cover(Recordings.from_rows(rows), counts) == expected, (rows, counts)
    assert min(seen.values()) > 150


def test_numbers_that_would_overflow_do_not_cover() -> None:
    most = 2**62
    rows = [Recording("a", "a", "a", None, 0, offset, most) for offset in (0, most, -most, -most + most)]
    rows.append(Recording("a", "a", "a", None, 0, 0, 5))
    assert not cover(Recordings.from_rows(rows), [5])
    assert not cover(rows, [5])
    assert not cover([], [5])
    assert not cover(rows, [])
    assert cover([], [])
