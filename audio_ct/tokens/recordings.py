"""The recordings of a split: a table in columns, which shows its rows as `Recording`.

A thousand hours are some 360,000 recordings: as columns they take what their texts take, and are read in half a second.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Self, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.json

# A line that is longer may be refused.
MAX_LINE_BYTES = 1 << 22
ROWS_AT_ONCE = 4096

_TEXTS = {name: pa.string() for name in ("name", "speaker", "source", "text")}
_SCHEMA = pa.schema(_TEXTS | {"shard": pa.int32(), "offset": pa.int64(), "length": pa.int64()})


@dataclass(frozen=True)
class Recording:
    """A recording's place in its split's shards; offset and length are in tokens."""

    name: str
    speaker: str
    source: str
    text: str | None
    shard: int
    offset: int
    length: int


class Place(NamedTuple):
    """A recording without its texts."""

    shard: int
    offset: int
    length: int


class Recordings(Sequence[Recording]):
    """The recordings of a split in reading order, shard after shard; arrays are [num_recordings].

    Attributes:
        shards: int32, index of each recording's shard.
        offsets: int64, first token in the shard.
        lengths: int64, in tokens.
        speakers: The different speakers, sorted.
        speaker_codes: int32, index in `speakers`.
    """

    def __init__(self, table: pa.Table) -> None:
        """Keep a table with the columns of `Recording` and at least one row; use `from_jsonl` or `from_rows`."""
        self._texts = table.select(["name", "source", "text"])
        self.shards, self.offsets, self.lengths = (_array(table[name]) for name in ("shard", "offset", "length"))
        # Not dictionary_encode(): what it imports takes longer than this.
        found: dict[str, int] = {}
        codes = [
            np.array([found.setdefault(name, len(found)) for name in chunk.to_pylist()], dtype=np.int32)
            for chunk in table["speaker"].chunks
        ]
        self.speakers = tuple(sorted(found))
        ranks = np.empty(len(found), dtype=np.int32)
        ranks[[found[name] for name in self.speakers]] = np.arange(len(found))
        self.speaker_codes = ranks[np.concatenate(codes)]

    @classmethod
    def from_jsonl(cls, content: bytes, num_recordings: int) -> Self:
        """Read a table as it is stored: a line for each object, with the fields of `Recording` alone, the name first.

        Raises:
            ValueError: If it is anything else, or has another number of lines.
        """
        # Pyarrow dies of a segmentation fault where a block of lines begins with null, and takes a field that is
        # missing for null, which only a text may be.
        if not content.startswith(b'{"name"') or content.count(b'}\n{"name"') != num_recordings - 1:
            raise ValueError(f"not {num_recordings} lines of objects")
        if content.count(b', "text": ') != num_recordings:
            raise ValueError("a line without text, or with several")
        try:
            table = pyarrow.json.read_json(
                pa.BufferReader(content),
                read_options=pyarrow.json.ReadOptions(block_size=MAX_LINE_BYTES),
                parse_options=pyarrow.json.ParseOptions(explicit_schema=_SCHEMA, unexpected_field_behavior="error"),
            )
            # Refuses texts that are no UTF-8.
            table.validate(full=True)
        except pa.ArrowException as error:
            raise ValueError(str(error)) from error
        missing = [name for name in _SCHEMA.names if name != "text" and table[name].null_count]
        if missing or len(table) != num_recordings:
            raise ValueError(f"{len(table)} rows, null in {missing}")
        recordings = cls(table)
        del table
        # What reading took and did not keep.
        pa.default_memory_pool().release_unused()
        return recordings

    @classmethod
    def from_rows(cls, rows: Sequence[Recording]) -> Self:
        """Make a table of recordings, at least one."""
        return cls.from_jsonl("".join(json.dumps(asdict(row)) + "\n" for row in rows).encode(), len(rows))

    @property
    def names(self) -> list[str]:
        """The recordings' names, in order."""
        names: list[str] = self._texts["name"].to_pylist()
        return names

    def place(self, index: int) -> Place:
        """The place of a recording, at a fraction of the cost of all of it."""
        return Place(int(self.shards[index]), int(self.offsets[index]), int(self.lengths[index]))

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, index: int) -> Recording: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Recording, ...]: ...
    def __getitem__(self, index: int | slice) -> Recording | tuple[Recording, ...]:
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        # Refuses an index that is no integer or not there, and counts a negative one from the end.
        at = range(len(self))[index]
        return self._row(at, {name: self._texts[name][at].as_py() for name in self._texts.column_names})

    def __iter__(self) -> Iterator[Recording]:
        for start in range(0, len(self), ROWS_AT_ONCE):
            for at, texts in enumerate(self._texts.slice(start, ROWS_AT_ONCE).to_pylist(), start):
                yield self._row(at, texts)

    def _row(self, index: int, texts: dict[str, Any]) -> Recording:
        speaker = self.speakers[self.speaker_codes[index]]
        return Recording(speaker=speaker, **texts, **self.place(index)._asdict())


def cover(recordings: Sequence[Recording], counts: Sequence[int]) -> bool:
    """Check that recordings, in order, fill shards of these token counts without gap or overlap."""
    if not recordings or not counts:
        return not recordings and not counts
    if isinstance(recordings, Recordings):
        shards, offsets, lengths = recordings.shards, recordings.offsets, recordings.lengths
    else:
        places = np.array([(each.shard, each.offset, each.length) for each in recordings])
        shards, offsets, lengths = places.T
    most = max(counts)
    # First of all, since sums of larger numbers could overflow into anything.
    if offsets.min() < 0 or offsets.max() > most or lengths.min() < 1 or lengths.max() > most:
        return False
    steps, ends = np.diff(shards), offsets + lengths
    begins_shard = np.concatenate([[True], steps == 1])
    expected = np.where(begins_shard, 0, np.concatenate([[0], ends[:-1]]))
    return bool(
        shards[0] == 0
        and np.isin(steps, (0, 1)).all()
        and np.array_equal(offsets, expected)
        and np.array_equal(ends[np.append(begins_shard[1:], True)], counts)
    )


def _array(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    # Not to_numpy(), which imports pandas: a second, where all else takes half of one.
    return np.concatenate([np.from_dlpack(chunk) for chunk in column.chunks])
