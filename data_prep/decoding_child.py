"""The process that decodes recordings: what is in them is not trusted, so it works under limits and may be killed.

It reads a request, a line of JSON, from standard input and answers with messages: a byte that names the kind, four
bytes of length, content. `data_prep.decoding` is the other end.
"""

import json
import resource
import struct
import sys
from typing import Any, BinaryIO

from audio_ct.audio.files import AudioReader, RejectedAudioError, Samples, resample_blocks
from audio_ct.errors import MissingError

from .corpus import plain
from .measures import Meter

HEADER = struct.Struct("<cI")
BLOCK, END, REJECT = b"B", b"E", b"R"
# Ten seconds of 768 kHz are 30 MB; the rest is for the libraries and what a decoder makes of a header.
MEMORY_BYTES = 2 << 30


def main() -> None:
    """Answer requests until standard input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    for line in sys.stdin.buffer:
        answer(json.loads(line), sys.stdout.buffer)


def answer(request: dict[str, Any], out: BinaryIO) -> None:
    """Decode one recording: blocks of float32 at the rate asked for, then its measures, or why it is rejected."""

    def send(kind: bytes, content: bytes) -> None:
        out.write(HEADER.pack(kind, len(content)))
        out.write(content)
        out.flush()

    try:
        with AudioReader(
            request["path"], channel=request["channel"], keep_truncated=request["keep_truncated"]
        ) as reader:
            meter = Meter(reader.sample_rate_hz)

            def heard(block: Samples) -> Samples:
                meter.update(block)
                return block

            blocks = map(heard, reader.blocks(spans=[tuple(span) for span in request["spans"]]))
            for block in resample_blocks(blocks, reader.sample_rate_hz, request["sample_rate_hz"]):
                send(BLOCK, block.tobytes())
            end = {"measures": plain(meter.result()), "truncated": reader.truncated}
        send(END, json.dumps(end).encode())
    except RejectedAudioError as error:
        send(REJECT, json.dumps({"reason": error.reason, "detail": str(error)}).encode())
    except MissingError as error:
        send(REJECT, json.dumps({"reason": "missing", "detail": str(error)}).encode())
    except MemoryError:
        detail = f"{request['path']!r} needs more than {MEMORY_BYTES >> 20} MiB to be decoded."
        send(REJECT, json.dumps({"reason": "memory", "detail": detail}).encode())


if __name__ == "__main__":
    main()
