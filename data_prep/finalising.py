"""From encoded shards to a store: identical recordings kept in one split, tables, and the report."""

import hashlib
import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from audio_ct.storage import Storage
from audio_ct.tokens.store import Recording, token_dtype
from audio_ct.tokens.store_builder import TokenStoreBuilder

from .corpus import Encoded, Reject
from .duplicates import Duplicates
from .encoding import record_name
from .measures import Measures
from .plan import Shard
from .report import Report


def finalise(builder: TokenStoreBuilder, shards: Sequence[Shard], report: Report) -> dict[str, Any]:
    """Enter all shards into a store and write its report.

    Records of shards are read one at a time: memory grows with the number of recordings by some hundred bytes each.

    Args:
        builder: Of the store; its storage holds the shards and their records.
        shards: In the plan's order.
        report: Knows the rejects and the notes so far.

    Returns:
        The report's summary.
    """
    duplicates = Duplicates()
    for shard, _, record in _records(builder.storage, shards):
        for encoded in record:
            duplicates.add(shard.split, encoded)
    left_out = {}
    for group in duplicates.across_splits():
        for copy in group.left_out:
            left_out[copy] = group.kept
    if left_out:
        report.note(
            f"{len(left_out)} recordings are the same as one of a more held-out split (train, validation, test) and "
            "were left out; rejects.jsonl names them."
        )
    for shard, digest, record in _records(builder.storage, shards):
        kept = [encoded for encoded in record if encoded.name not in left_out]
        for encoded in record:
            if encoded.name in left_out:
                detail = f"{encoded.source!r} is the same recording as {left_out[encoded.name]!r} of another split."
                report.reject(Reject(encoded.source, "duplicate", detail))
        if not kept:
            continue
        if len(kept) < len(record):
            digest = _leave_out(builder, shard.name, record, left_out)
        offset = 0
        rows = []
        for each in kept:
            rows.append(Recording(each.name, each.speaker, each.source, each.text, 0, offset, each.length))
            offset += each.length
            report.add(shard.split, each)
        builder.add_placed_shard(shard.split, shard.name, num_tokens=offset, sha256=digest, recordings=rows)
    report.duplicates(duplicates)
    with tempfile.TemporaryDirectory(prefix="report-", dir=builder.work_folder) as folder:
        summary = report.write(Path(folder))
        for file in sorted(Path(folder).iterdir()):
            builder.add_file(file)
    return summary


def _records(storage: Storage, shards: Iterable[Shard]) -> Iterator[tuple[Shard, str, list[Encoded]]]:
    """Yield every shard with the hash of its tokens and what was encoded into it."""
    for shard in shards:
        record = json.loads(storage.read(record_name(shard.name)))
        encoded = [Encoded(**each | {"measures": Measures(**each["measures"])}) for each in record["recordings"]]
        yield shard, str(record["sha256"]), encoded


def _leave_out(builder: TokenStoreBuilder, name: str, record: Sequence[Encoded], left_out: dict[str, str]) -> str:
    """Write a shard again without some of its recordings; return its hash."""
    digest = hashlib.sha256()
    itemsize = token_dtype(builder.codec).itemsize
    with tempfile.TemporaryDirectory(prefix="shard-", dir=builder.work_folder) as folder:
        whole, cut = Path(folder, "whole"), Path(folder, "cut")
        builder.storage.get(name, whole)
        with whole.open("rb") as old, cut.open("wb") as new:
            for encoded in record:
                tokens = old.read(encoded.length * itemsize)
                if encoded.name not in left_out:
                    new.write(tokens)
                    digest.update(tokens)
        builder.storage.put(cut, name)
    return digest.hexdigest()
