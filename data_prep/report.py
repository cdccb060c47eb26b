"""The report on a corpus: what is in it, what was left out of it and why, and what to be warned of."""

import heapq
import json
import operator
import posixpath
import struct
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy
import soundfile
import soxr

from audio_ct import html
from audio_ct.audio.spectrum_end import BAND_HZ, decibels, spectrum_end_hz

from .corpus import SPLITS, Corpus, Encoded, Reject
from .duplicates import Duplicates
from .measures import LETTERS, MAXIMUM_BANDS, spectrum_db
from .options import PrepOptions
from .report_figure import draw
from .report_speakers import about_speakers, named, seconds_by_split
from .report_warnings import FULL_BAND, warnings_of

UNKNOWN_SPEAKER = "unknown"
# Groups beyond so many have one spectrum between them, and report.json does not name those with the least audio.
MAXIMUM_GROUPS = 10_000
ROWS_AT_ONCE = 4096
# A group's recordings together have fewer gaps than one, so that a smaller drop is a sign: without a filter it was at
# most 13 dB, behind one at least 39 dB.
DROP_OF_A_GROUP_DB = 20.0
MAXIMUM_LISTED = 20
MAXIMUM_LISTED_REJECTS = 5
MAXIMUM_LISTED_GROUPS = 200
QUANTILES = {"minimum": 0.0, "5%": 0.05, "median": 0.5, "95%": 0.95, "maximum": 1.0}
# A recording with more clipped samples than this share is called clipped.
CLIPPED_SHARE = 0.005
# What is kept of each recording.
MEASURED = ("level_dbfs", "peak", "offset", "bandwidth_hz", "rolloff_hz", "clipped", "silent")
ROW = struct.Struct(f"<BIQQI{len(MEASURED)}f")
COLUMNS = np.dtype(
    [("split", "u1"), ("group", "<u4"), ("length", "<u8"), ("num_limited", "<u8"), ("sample_rate_hz", "<u4")]
    + [(name, "<f4") for name in MEASURED]
)

Array = npt.NDArray[Any]


class Report:
    """Gathers what there is to say of a corpus, in some 50 bytes a recording and 500 a speaker.

    A group is a speaker, or a folder of recordings whose speaker is not known.

    Args:
        corpus: As its file declares it.
        options: How it is prepared.
        sample_rate_hz: The store's rate.
        official_splits: It came with splits of its own, as large as they may be.
    """

    def __init__(
        self, corpus: Corpus, options: PrepOptions, sample_rate_hz: int, *, official_splits: bool = False
    ) -> None:
        self._corpus = corpus
        self._options = options
        self._rate_hz = sample_rate_hz
        self._official_splits = official_splits
        self._table = bytearray()
        self._groups: dict[tuple[str, str], int] = {}
        self._waiting_spectra = bytearray()
        self._spectra = np.zeros((16, MAXIMUM_BANDS), np.float32)
        self._most_limited: list[tuple[int, int, str]] = []
        self._truncated: list[str] = []
        self._num_truncated = 0
        self._rejects = bytearray()
        self._reasons: Counter[str] = Counter()
        self._examples: dict[str, list[str]] = {}
        self._notes: list[str] = []
        self._duplicates: dict[str, Any] = {"num_identical": 0, "identical": [], "num_near": 0, "near": []}
        self._duplicates["num_near_across_splits"] = 0

    def add(self, split: str, encoded: Encoded) -> None:
        """Take in a recording of the store, in its order."""
        measures = encoded.measures
        known = encoded.speaker != UNKNOWN_SPEAKER
        group = (
            ("speaker", encoded.speaker) if known else ("folder", posixpath.dirname(encoded.source) or UNKNOWN_SPEAKER)
        )
        self._table += ROW.pack(
            SPLITS.index(split),
            self._groups.setdefault(group, len(self._groups)),
            encoded.length,
            encoded.num_limited,
            measures.sample_rate_hz,
            *_measured(measures),
        )
        self._waiting_spectra += measures.spectrum.encode("ascii").ljust(MAXIMUM_BANDS)
        if len(self._waiting_spectra) >= ROWS_AT_ONCE * MAXIMUM_BANDS:
            self._pool_spectra()
        if encoded.num_limited:
            # The earlier one stays where two are alike.
            item = (encoded.num_limited, -len(self._table), encoded.name)
            push = heapq.heappush if len(self._most_limited) < MAXIMUM_LISTED else heapq.heappushpop
            push(self._most_limited, item)
        if encoded.truncated:
            self._num_truncated += 1
            if len(self._truncated) < MAXIMUM_LISTED:
                self._truncated.append(encoded.name)

    def reject(self, reject: Reject) -> None:
        """Take in what was left out."""
        self._rejects += json.dumps(asdict(reject)).encode() + b"\n"
        self._reasons[reject.reason] += 1
        examples = self._examples.setdefault(reject.reason, [])
        if len(examples) < MAXIMUM_LISTED_REJECTS:
            examples.append(reject.detail if reject.source in reject.detail else f"{reject.source}: {reject.detail}")

    def note(self, text: str) -> None:
        """Take in a line that is said as a warning."""
        self._notes.append(text)

    def duplicates(self, duplicates: Duplicates) -> None:
        """Take in which recordings are the same."""
        identical, near = duplicates.within_splits(), duplicates.near()
        # Those across splits first: they are what makes a held-out split worth less.
        near.sort(key=lambda pair: pair.split == pair.other_split)
        self._duplicates = {
            "num_identical": sum(len(group) - 1 for group in identical),
            "identical": [list(group[:MAXIMUM_LISTED]) for group in identical[:MAXIMUM_LISTED]],
            "num_near": len(near),
            "num_near_across_splits": sum(pair.split != pair.other_split for pair in near),
            "near": [asdict(pair) for pair in near[:MAXIMUM_LISTED]],
        }

    def write(self, folder: Path) -> dict[str, Any]:
        """Write report.json, report.png, report.html and rejects.jsonl into a folder.

        Returns:
            num_recordings, audio_seconds, num_rejects, rejects (count by reason) and warnings.
        """
        self._pool_spectra()
        rows = np.frombuffer(self._table, COLUMNS)
        table = {name: np.ascontiguousarray(rows[name]) for name in COLUMNS.names or ()}
        table["seconds"] = table["length"] / self._rate_hz
        spectra = self._spectra[: min(len(self._groups), MAXIMUM_GROUPS)]
        # Of rates of 96 kHz and the like nobody wants to know more.
        highest_hz = max(MAXIMUM_BANDS * BAND_HZ, self._rate_hz / 2)
        ends_hz = np.minimum(_ends_hz(spectra), highest_hz)
        table["end_hz"] = np.minimum(table["bandwidth_hz"], ends_hz[_rows(table["group"])])
        content = self._content(table)
        content["warnings"] = self._notes + warnings_of(content, self._options)
        figure = draw(content, table, spectra)
        png, address = html.picture(figure)
        page = html.render(
            Path(__file__).with_name("report.html.jinja"),
            report=content,
            figure=address,
            examples=self._examples,
            groups=content["groups"][:MAXIMUM_LISTED_GROUPS],
            full_hz=FULL_BAND * self._rate_hz / 2,
        )
        (folder / "report.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        (folder / "report.png").write_bytes(png)
        (folder / "report.html").write_bytes(page)
        (folder / "rejects.jsonl").write_bytes(self._rejects)
        summary = ("num_recordings", "audio_seconds", "num_rejects", "rejects", "warnings")
        return {name: content[name] for name in summary}

    def _content(self, table: dict[str, Array]) -> dict[str, Any]:
        """All that report.json holds, but for the warnings."""
        seconds, rates_hz = table["seconds"], table["sample_rate_hz"]
        rates, of_rate = np.unique(rates_hz, return_inverse=True)
        corpus = self._corpus
        by_split = seconds_by_split(table["split"], table["group"], seconds, len(self._groups))
        return {
            "corpus": {
                "name": corpus.name,
                "title": corpus.title,
                "licence": self._options.licence or corpus.licence,
                "citation": corpus.citation,
                "address": corpus.address,
                "synthetic": corpus.synthetic,
            },
            "sample_rate_hz": self._rate_hz,
            "num_recordings": len(seconds),
            "audio_seconds": round(float(seconds.sum()), 3),
            "num_speakers": _num_speakers(list(self._groups)),
            "speakers": about_speakers(list(self._groups), by_split),
            "num_rejects": self._reasons.total(),
            "rejects": dict(sorted(self._reasons.items())),
            "warnings": [],
            "splits": self._splits(table, by_split > 0),
            "source_sample_rates_hz": {str(rate): int(n) for rate, n in zip(rates, np.bincount(of_rate), strict=True)},
            "source_seconds": {
                str(rate): round(float(total), 3)
                for rate, total in zip(rates, np.bincount(of_rate, seconds), strict=True)
            },
            "seconds": _quantiles(seconds),
            **{name: _quantiles(table[name]) for name in MEASURED},
            "end_hz": _quantiles(table["end_hz"]),
            "narrow": self._narrow(table),
            "clipped_sources": self._clipped(table),
            "silent_share": float((table["silent"] * seconds).sum() / max(seconds.sum(), 1e-9)),
            "limited": {
                "num_recordings": int(np.count_nonzero(table["num_limited"])),
                "num_samples": int(table["num_limited"].sum()),
                "share": float(table["num_limited"].sum() / max(table["length"].sum(), 1)),
                "most": [{"name": name, "num_samples": n} for n, _, name in sorted(self._most_limited, reverse=True)],
            },
            "truncated": {"num_recordings": self._num_truncated, "first": self._truncated},
            "duplicates": {"num_left_out": self._reasons["duplicate"]} | self._duplicates,
            "num_groups": len(self._groups),
            "groups": self._group_rows(table, by_split),
            "options": self._options.preparation(),
            "software": {
                "soxr": soxr.__version__,
                "libsndfile": soundfile.__libsndfile_version__,
                "numpy": np.__version__,
                "scipy": scipy.__version__,
            },
        }

    def _splits(self, table: dict[str, Array], present: Array) -> dict[str, Any]:
        """Of each split, how much it holds, and of whom: `present` [groups, splits]."""
        groups = list(self._groups)
        options = self._options
        asked = dict(zip(SPLITS[1:], (options.validation_fraction, options.test_fraction), strict=True))
        found = {}
        for number, split in enumerate(SPLITS):
            chosen = table["split"] == number
            alone = present[:, number] & (present.sum(axis=1) == 1)
            seconds = float(table["seconds"][chosen].sum())
            found[split] = {
                "num_recordings": int(np.count_nonzero(chosen)),
                "seconds": round(seconds, 3),
                "share": seconds / max(float(table["seconds"].sum()), 1e-9),
                "asked": None if self._official_splits else asked.get(split),
                "num_speakers": _num_speakers([groups[index] for index in np.flatnonzero(present[:, number])]),
                "num_speakers_of_it_alone": _num_speakers([groups[index] for index in np.flatnonzero(alone)]),
            }
        return found

    def _narrow(self, table: dict[str, Array]) -> dict[str, Any]:
        """How much of the audio has less band than the store, for its rate or by a filter, and to where."""
        by_rate = table["sample_rate_hz"] < self._rate_hz
        by_filter = table["end_hz"] < FULL_BAND * np.minimum(table["sample_rate_hz"], self._rate_hz) / 2
        rates, of_rate = np.unique(table["sample_rate_hz"][by_rate], return_inverse=True)
        seconds_of_rate = np.bincount(of_rate, table["seconds"][by_rate])
        return {
            "by_rate_seconds": round(float(table["seconds"][by_rate].sum()), 3),
            "lowest_rate_hz": int(rates[0]) if len(rates) else None,
            "commonest_rate_hz": int(rates[seconds_of_rate.argmax()]) if len(rates) else None,
            "by_filter_seconds": round(float(table["seconds"][by_filter].sum()), 3),
            "end_hz": float(np.median(table["end_hz"][by_filter])) if by_filter.any() else None,
            **self._by_group(table, by_filter),
        }

    def _clipped(self, table: dict[str, Array]) -> dict[str, Any]:
        """How much was clipped before it came here, and how badly."""
        clipped = table["clipped"] > CLIPPED_SHARE
        seconds = table["seconds"][clipped]
        share = float((table["clipped"][clipped] * seconds).sum() / max(seconds.sum(), 1e-9))
        return {"seconds": round(float(seconds.sum()), 3), "share": share, **self._by_group(table, clipped)}

    def _by_group(self, table: dict[str, Array], chosen: Array) -> dict[str, Any]:
        """Of some recordings, the groups with most audio of them, and the number of these groups."""
        seconds = np.bincount(table["group"][chosen], table["seconds"][chosen], minlength=len(self._groups))
        order = np.argsort(-seconds, kind="stable")[: np.count_nonzero(seconds)]
        names = [name for _, name in self._groups]
        listed = [{"name": names[i], "seconds": round(float(seconds[i]), 3)} for i in order[:MAXIMUM_LISTED]]
        return {"num_groups": len(order), "groups": listed}

    def _group_rows(self, table: dict[str, Array], by_split: Array) -> list[dict[str, Any]]:
        """Of each group, the longest first, its figures: its seconds in each split, and means over its time."""
        group, seconds = table["group"], table["seconds"]
        total = np.bincount(group, seconds, minlength=len(self._groups))

        def mean(values: Array) -> Array:
            return np.bincount(group, seconds * values, minlength=len(self._groups)) / np.maximum(total, 1e-9)

        level_dbfs = 10 * np.log10(np.maximum(mean(10 ** (table["level_dbfs"].astype(np.float64) / 10)), 1e-20))
        clipped, silent, end_hz = mean(table["clipped"]), mean(table["silent"]), mean(table["end_hz"])
        limited = np.bincount(group, table["num_limited"], minlength=len(self._groups))
        count = np.bincount(group, minlength=len(self._groups))
        keys = list(self._groups)
        return [
            {
                "kind": keys[index][0],
                "name": keys[index][1],
                "num_recordings": int(count[index]),
                "seconds": round(float(total[index]), 3),
                "split_seconds": named(by_split[index]),
                "level_dbfs": round(float(level_dbfs[index]), 2),
                "clipped": round(float(clipped[index]), 6),
                "silent": round(float(silent[index]), 4),
                "num_limited": int(limited[index]),
                "end_hz": round(float(end_hz[index]), 1),
            }
            for index in np.argsort(-total, kind="stable")[:MAXIMUM_GROUPS]
        ]

    def _pool_spectra(self) -> None:
        """Add the spectra that wait to those of their groups: of each recording, its power's share in each band."""
        letters = np.frombuffer(self._waiting_spectra, np.uint8).reshape(-1, MAXIMUM_BANDS)
        if not len(letters):
            return
        table = np.frombuffer(self._table[-len(letters) * ROW.size :], COLUMNS)
        rows = _rows(table["group"])
        power = _POWER[letters]
        power *= (table["length"] / self._rate_hz / np.maximum(power.sum(axis=1), 1e-20))[:, None]
        while len(self._spectra) <= rows.max():
            self._spectra = np.concatenate([self._spectra, np.zeros_like(self._spectra)])
        np.add.at(self._spectra, rows, power)
        self._waiting_spectra = bytearray()


_measured = operator.attrgetter(*MEASURED)


def _rows(groups: Array) -> Array:
    """Rows of the groups' spectra."""
    return np.minimum(groups, MAXIMUM_GROUPS - 1)


def _ends_hz(spectra: Array) -> Array:
    """Where each spectrum ends; infinity where it does not, or is none."""
    ends = np.full(len(spectra), np.inf)
    for index, power in enumerate(spectra):
        heard = np.flatnonzero(power)
        if len(heard):
            ends[index] = spectrum_end_hz(decibels(power[: heard[-1] + 1]), DROP_OF_A_GROUP_DB) or np.inf
    return ends


def _num_speakers(groups: list[tuple[str, str]]) -> int:
    """Recordings whose speaker is not known count as one speaker's."""
    return sum(kind == "speaker" for kind, _ in groups) + any(kind != "speaker" for kind, _ in groups)


def _quantiles(values: Array) -> dict[str, float]:
    found = np.quantile(values, list(QUANTILES.values()))
    return {name: round(float(value), 3) for name, value in zip(QUANTILES, found, strict=True)}


def _power_of_letters() -> Array:
    """Power by a letter's byte, and 0 for a space, which stands for a band above half the rate."""
    power = np.zeros(128, np.float32)
    power[np.frombuffer(LETTERS.encode("ascii"), np.uint8)] = 10 ** (spectrum_db(LETTERS) / 10)
    return power


_POWER = _power_of_letters()
