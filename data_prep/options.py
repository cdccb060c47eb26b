"""The options of a preparation, each with its help and its rule. Imports nothing heavy: the command line reads it."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from audio_ct.errors import InputError

Rule = tuple[Callable[[Any], bool], str]


def _option(default: Any, text: str, rule: Rule | None = None, *, decides: bool = True) -> Any:
    """A field with its help, its rule, and whether it decides on the store's bytes."""
    return field(default=default, metadata={"help": text, "rule": rule, "decides": decides})


def _within(low: float, high: float, rule: str) -> Rule:
    return (lambda value: low <= value <= high, rule)


def _above_zero_or_none(value: float | None) -> bool:
    return value is None or 0 < value < math.inf


def _is_channel(value: str) -> bool:
    return value == "mean" or value.isdecimal()


@dataclass(frozen=True)
class PrepOptions:
    """The options of a preparation; a field's help says what it does."""

    sample_rate_hz: int = _option(24_000, "Recordings are resampled to it.", _within(4_000, 768_000, "4000 to 768000"))
    bits: int = _option(8, "mu-law depth.", _within(1, 16, "1 to 16; 8 is usual"))
    channel: str = _option(
        "mean",
        "Of recordings with several channels: mean, or a channel's number from 0.",
        (_is_channel, "mean or 0, 1"),
    )
    remove_dc: bool = _option(True, "Take a constant offset away, by a high-pass at 20 Hz.")
    loudness_lufs: float | None = _option(
        None,
        "Bring every recording to this loudness (ITU-R BS.1770), such as -23; by default levels are left alone.",
        (lambda value: value is None or -70 < value <= 0, "above -70 and at most 0"),
    )
    maximum_pause_seconds: float | None = _option(
        None,
        "Shorten longer pauses to it, and trim both edges to half of it, by voice activity; by default they stay.",
        (_above_zero_or_none, "above 0"),
    )
    minimum_seconds: float = _option(
        0.1, "Shorter recordings are rejected.", (lambda value: 0 <= value < math.inf, "0 or more")
    )
    maximum_seconds: float | None = _option(
        None,
        "Cut longer recordings at their quietest places into pieces of at most so much; by default they stay whole.",
        (lambda value: value is None or 1 <= value < math.inf, "1 or more"),
    )
    pad_to_seconds: float | None = _option(
        None, "Lengthen shorter recordings to it by silence.", (_above_zero_or_none, "above 0")
    )
    keep_truncated: bool = _option(False, "Keep what is there of files that end early, and count them.")
    split_by: Literal["speaker", "recording"] = _option(
        "speaker",
        "What the splits of a corpus without official ones are drawn from: no speaker in two, or recordings.",
        (lambda value: value in ("speaker", "recording"), "speaker or recording"),
    )
    validation_fraction: float = _option(
        0.05, "Share of speakers, recordings or bytes.", (lambda value: 0 < value < 1, "between 0 and 1")
    )
    test_fraction: float = _option(
        0.05, "Share of speakers, recordings or bytes.", (lambda value: 0 < value < 1, "between 0 and 1")
    )
    seed: int = _option(0, "Chooses what each split gets.")
    subsets: tuple[str, ...] = _option((), "Only this part of the corpus; may be repeated.")
    speaker_pattern: str | None = _option(
        None,
        "Regular expression searched in a recording's path, whose first group is the speaker; by default the folder "
        "that it lies in.",
    )
    metadata: str | None = _option(
        None, "Table of the recordings within the source: CSV, TSV or JSONL with path, speaker, text, split."
    )
    licence: str | None = _option(
        None, "The sources' licence, kept in the store; known for published corpora.", decides=False
    )
    jobs: int = _option(
        2, "Processes; does not change the result.", (lambda value: value >= 1, "at least 1"), decides=False
    )
    cluster: str | None = _option(
        None, "Address of a Dask scheduler whose workers encode instead, such as tcp://host:8786.", decides=False
    )
    overwrite: bool = _option(False, "Replace the store that stands there, or the unfinished one.", decides=False)

    def __post_init__(self) -> None:
        """Refuse values that no preparation can use.

        Raises:
            InputError: Naming the option, its value and the rule.
        """
        for each in fields(self):
            value, rule = getattr(self, each.name), each.metadata["rule"]
            if rule is not None and not rule[0](value):
                raise InputError(f"{each.name}={value!r} must be {rule[1]}.")
        if self.validation_fraction + self.test_fraction >= 1:
            raise InputError(
                f"validation_fraction={self.validation_fraction} and test_fraction={self.test_fraction} must leave "
                "something for training; their sum must be below 1."
            )

    def preparation(self) -> dict[str, Any]:
        """The options that decide on the store's bytes, as JSON holds them."""
        chosen = {each.name: getattr(self, each.name) for each in fields(self) if each.metadata["decides"]}
        return chosen | {"subsets": list(self.subsets)}
