"""Tables that corpora come with: CSV, TSV, and JSON with an object on each line, read a row at a time."""

import csv
import itertools
import json
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import TextIO

from audio_ct.errors import InputError, MissingError

from .source import Source, printable

Row = dict[str, str]


def read_table(source: Source, path: str) -> Iterator[Row]:
    """Yield a table's rows: text by column, white space around it removed, empty where a row has fewer columns.

    In a TSV a quotation mark is a character like any other, and only a line feed ends a row: corpora of sentences are
    written so.

    Args:
        source: Where it is.
        path: Its path, which ends in .csv, .tsv, .jsonl or .json; the last also has an object on each line.

    Raises:
        MissingError: If it is not there.
        InputError: If it is of another kind, cannot be read, or is malformed.
    """
    where = printable(f"{source.address.rstrip('/')}/{path}")
    suffix = PurePosixPath(path).suffix.lower()
    if suffix not in _READERS:
        raise InputError(f"{where!r} must be a table in {', '.join(_READERS)}; rename it, or convert it.")
    try:
        with (
            source.local(path) as file,
            file.open(encoding="utf-8-sig", newline="" if suffix == ".csv" else "\n") as lines,
        ):
            yield from _READERS[suffix](lines)
    except FileNotFoundError as error:
        raise MissingError(f"{where!r} is not there; check the name.") from error
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{where!r} cannot be read as {suffix}: {error}; get or write a whole one.") from error


def _read_csv(lines: TextIO) -> Iterator[Row]:
    for row in csv.DictReader(lines, restval=""):
        # Fields beyond the header's stand under None.
        yield {column.strip(): text.strip() for column, text in row.items() if column is not None}


def _read_tsv(lines: TextIO) -> Iterator[Row]:
    header = [column.strip() for column in next(lines, "").split("\t")]
    for line in lines:
        if line.strip():
            fields = line.split("\t")[: len(header)]
            yield {column: text.strip() for column, text in itertools.zip_longest(header, fields, fillvalue="")}


def _read_json_lines(lines: TextIO) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"line {number}: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f'line {number} is no JSON object, such as {{"path": "a.wav"}}')
            yield {column: str(value).strip() for column, value in row.items() if value is not None}


_READERS = {".csv": _read_csv, ".tsv": _read_tsv, ".jsonl": _read_json_lines, ".json": _read_json_lines}
