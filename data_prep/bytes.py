"""Any file: its bytes are the tokens, as in the paper's experiment on enwik8, the first 10^8 bytes of a Wikipedia.

The splits are contiguous, as is the custom there: the file begins with training, then come validation and test.
"""

import hashlib
import json
import os
from dataclasses import fields
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from audio_ct.errors import InputError
from audio_ct.progress import Progress
from audio_ct.tokens.codec import ByteCodec, open_bytes
from audio_ct.tokens.store import Recording
from audio_ct.tokens.store_builder import TokenStoreBuilder

from .corpus import SPLITS
from .options import PrepOptions
from .plan import MAXIMUM_SHARD_BYTES, count_held_out
from .skeleton import write_store

# The length of a recording of the store. Short enough that validation can take a few, that evaluation reads some
# side by side and that there is something to resample; long enough that beginning anew costs nothing that counts:
# 0.00004 bits a byte for a small model, 0.0013 at 16 KiB.
STRETCH_BYTES = 1 << 18
# Text has 4 to 5.5 bits by the counts of its bytes.
COMPRESSED_ENTROPY_BITS = 7.9
OF_BYTES = {"validation_fraction", "test_fraction", "licence", "overwrite", "jobs"}

Counts = npt.NDArray[np.int64]


def prepare(source: Path | None, out: Path, *, options: PrepOptions, progress: bool = False) -> dict[str, Any]:
    """Prepare a token store whose tokens are the bytes of a file.

    Args:
        source: The file; read once, a stretch at a time, so it may be larger than memory.
        out: Where the store shall stand.
        options: The fractions of the file's bytes, the licence, and whether to overwrite; `jobs` changes nothing.
        progress: Show progress on standard error.

    Returns:
        A summary: num_bytes, distinct_bytes and entropy_bits_per_byte of the file and of each of `splits`, warnings,
        out, digest, num_tokens and wall_seconds.

    Raises:
        InputError: If the source is no regular file, cannot be read, or has fewer than three bytes, if an option is for
            recordings of sound, or if the store exists.
        MissingError: If the source is not there.
    """
    if source is None:
        raise InputError("corpus=bytes needs a source: the file whose bytes are the corpus.")
    for field in fields(PrepOptions):
        if field.name not in OF_BYTES and (value := getattr(options, field.name)) != field.default:
            raise InputError(f"{field.name}={value!r} is for recordings of sound; leave it out for corpus=bytes.")
    if Path(os.path.realpath(source)).is_relative_to(os.path.realpath(out)):
        raise InputError(f"out={str(out)!r} contains the source; choose a place outside it.")
    file, num_bytes = open_bytes(source, name="source")
    with file:
        if num_bytes < len(SPLITS):
            raise InputError(
                f"source={str(source)!r} has {num_bytes} bytes; at least 3 are needed, one for each split."
            )

        def fill(builder: TokenStoreBuilder) -> dict[str, Any]:
            file_name = os.fsencode(source.name).decode("utf-8", "backslashreplace")
            counts, sha256 = _copy(file, file_name, num_bytes, builder, options, progress)
            builder.metadata |= {
                "sources": [{"name": file_name, "kind": "file", "num_bytes": num_bytes, "sha256": sha256}],
                "synthetic": False,
            }
            summary = _report(counts, builder.work_folder / "report.json")
            builder.add_file(builder.work_folder / "report.json")
            return summary

        preparation = {
            "validation_fraction": options.validation_fraction,
            "test_fraction": options.test_fraction,
            "stretch_bytes": STRETCH_BYTES,
        }
        return write_store(
            fill,
            out,
            ByteCodec(),
            corpus="bytes",
            licence=options.licence,
            preparation=preparation,
            overwrite=options.overwrite,
        )


def _copy(
    file: BinaryIO, file_name: str, num_bytes: int, builder: TokenStoreBuilder, options: PrepOptions, progress: bool
) -> tuple[dict[str, Counts], str]:
    """Copy a file into shards, split after split, and count each split's bytes [256] and hash the file."""
    num_validation, num_test = count_held_out(num_bytes, options)
    sizes = (num_bytes - num_validation - num_test, num_validation, num_test)
    counts = {split: np.zeros(256, dtype=np.int64) for split in SPLITS}
    whole = hashlib.sha256()
    place = 0
    with Progress("copying", num_bytes, unit="bytes", shown=progress, tenths=True) as bar:
        for split, size in zip(SPLITS, sizes, strict=True):
            for shard_begin, shard_end in _cut(size, MAXIMUM_SHARD_BYTES):
                digest = hashlib.sha256()
                rows = []
                shard = builder.work_folder / "shard.bin"
                with shard.open("wb") as handle:
                    for offset, end in _cut(shard_end - shard_begin, STRETCH_BYTES):
                        block = file.read(end - offset)
                        if len(block) != end - offset:
                            raise InputError(
                                f"source={file_name!r} became shorter while it was read; prepare it when it is whole."
                            )
                        handle.write(block)
                        digest.update(block)
                        whole.update(block)
                        counts[split] += np.bincount(np.frombuffer(block, dtype=np.uint8), minlength=256)
                        name = f"{place}-{place + len(block)}"
                        rows.append(Recording(name, file_name, file_name, None, 0, offset, len(block)))
                        place += len(block)
                        bar.update(place)
                builder.add_shard_file(split, shard, digest.hexdigest(), rows)
    return counts, whole.hexdigest()


def _cut(size: int, at_most: int) -> list[tuple[int, int]]:
    """Cut a size into as few pieces as possible of about equal size; their beginnings and ends."""
    num = -(-size // at_most)
    return [(size * i // num, size * (i + 1) // num) for i in range(num)]


def _report(counts: dict[str, Counts], path: Path) -> dict[str, Any]:
    """Describe a file by the counts of its bytes, in a report with the counts; return it without them."""
    whole = sum(counts.values(), np.zeros(256, dtype=np.int64))
    warnings = []
    if _entropy_bits(whole) > COMPRESSED_ENTROPY_BITS:
        warnings.append(
            f"the bytes have {_entropy_bits(whole):.2f} bits of entropy, as those of a compressed file have, of which "
            "nothing can be learned; unpack it first."
        )
    if np.count_nonzero(whole) == 1:
        warnings.append("every byte is the same; there is nothing to learn.")
    summary = _describe(whole) | {"splits": {split: _describe(of) for split, of in counts.items()}}
    summary["warnings"] = warnings
    content = summary | {"byte_counts": {split: of.tolist() for split, of in counts.items()}}
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")
    return summary


def _describe(counts: Counts) -> dict[str, Any]:
    return {
        "num_bytes": int(counts.sum()),
        "distinct_bytes": int(np.count_nonzero(counts)),
        "entropy_bits_per_byte": round(_entropy_bits(counts), 4),
    }


def _entropy_bits(counts: Counts) -> float:
    """The entropy of bytes drawn independently by these counts: what a model that knows no context reaches."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum()) + 0.0
