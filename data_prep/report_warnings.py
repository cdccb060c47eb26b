"""What a corpus's user should be warned of: a line each, with how much it is and what can be done."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from audio_ct.html import duration, percent

from .options import PrepOptions

# A band that ends this close below the store's own is called full.
FULL_BAND = 0.85
# Less than this of the audio is not warned of.
LEAST_SHARE = 0.01
LIMITED_SHARE = 0.001
# Levels of the speakers between whom most of the audio lies may differ by so much.
LEVEL_RANGE_DB = 15.0
LEVEL_SHARES = (0.02, 0.98)
SILENT_SHARE = 0.4
# A held-out split of so many times what was asked, or so little of it.
SPLIT_FACTOR = 2.0
# Rates that a corpus may have been sampled at before it was brought to another.
USUAL_RATES_HZ = (8000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
MAXIMUM_NAMED = 4

Content = Mapping[str, Any]


def warnings_of(content: Content, options: PrepOptions) -> list[str]:
    """Look through what report.json holds for what a user should know before training on it.

    Args:
        content: Of report.json.
        options: How the corpus was prepared.
    """
    checks = (_sampled_below, _filtered, _clipped, _limited, _levels, _silence, _held_out, _same)
    return [line for check in checks for line in check(content, options)]


def _sampled_below(content: Content, options: PrepOptions) -> Iterator[str]:
    narrow, total, rate_hz = content["narrow"], content["audio_seconds"], content["sample_rate_hz"]
    seconds = narrow["by_rate_seconds"]
    if seconds < LEAST_SHARE * total:
        return
    commonest, lowest = narrow["commonest_rate_hz"], narrow["lowest_rate_hz"]
    rates = f"at {commonest} Hz" if lowest == commonest else f"mostly at {commonest} Hz, lowest: {lowest} Hz"
    yield (
        f"{_part(seconds, total)} were sampled below {rate_hz} Hz ({rates}): above {commonest / 2000:g} kHz there is "
        f"nothing, and a model learns that too; {_remedy(seconds / total, commonest)}."
    )


def _filtered(content: Content, options: PrepOptions) -> Iterator[str]:
    narrow, total = content["narrow"], content["audio_seconds"]
    seconds, end_hz = narrow["by_filter_seconds"], narrow["end_hz"]
    if seconds < LEAST_SHARE * total:
        return
    fits_hz = next(rate for rate in (*USUAL_RATES_HZ, content["sample_rate_hz"]) if rate / 2 >= end_hz)
    if fits_hz > FULL_BAND * content["sample_rate_hz"]:
        remedy = "leave them out if you want the top of the band"
    else:
        remedy = _remedy(seconds / total, fits_hz)
    yield (
        f"{_part(seconds, total)} have the rate but not the band: their spectrum ends near {end_hz / 1000:.1f} kHz, so "
        f"they were upsampled or filtered ({_named(narrow)}); {remedy}."
    )


def _remedy(share: float, rate_hz: int) -> str:
    if share >= 0.5:
        return f"--sample-rate-hz {rate_hz} suits them"
    return f"leave them out, or prepare all with --sample-rate-hz {rate_hz}"


def _clipped(content: Content, options: PrepOptions) -> Iterator[str]:
    clipped, total = content["clipped_sources"], content["audio_seconds"]
    if clipped["seconds"] >= LEAST_SHARE * total:
        yield (
            f"{_part(clipped['seconds'], total)} were clipped before they came here, {percent(clipped['share'], 1)} of "
            f"their samples at full scale ({_named(clipped)}); a model learns the distortion; leave them out."
        )


def _limited(content: Content, options: PrepOptions) -> Iterator[str]:
    limited = content["limited"]
    if limited["share"] > LIMITED_SHARE:
        yield (
            f"{percent(limited['share'], 2)} of all samples, in {limited['num_recordings']} recordings, were beyond "
            "full scale and are limited to it; --loudness-lufs -23 makes room for them."
        )


def _levels(content: Content, options: PrepOptions) -> Iterator[str]:
    if options.loudness_lufs is not None:
        return
    groups = sorted(content["groups"], key=lambda group: group["level_dbfs"])
    seconds = np.cumsum([group["seconds"] for group in groups])
    # Those with next to nothing in them decide nothing.
    lowest, highest = (groups[int(np.searchsorted(seconds, share * seconds[-1]))] for share in LEVEL_SHARES)
    difference_db = highest["level_dbfs"] - lowest["level_dbfs"]
    if difference_db > LEVEL_RANGE_DB:
        yield (
            f"levels differ by {difference_db:.0f} dB between speakers ({lowest['name']!r} "
            f"{lowest['level_dbfs']:.0f} dBFS, {highest['name']!r} {highest['level_dbfs']:.0f} dBFS); "
            "--loudness-lufs -23 evens them out."
        )


def _silence(content: Content, options: PrepOptions) -> Iterator[str]:
    if options.maximum_pause_seconds is not None:
        return
    share = content["silent_share"]
    if share > SILENT_SHARE:
        yield (
            f"{percent(share)} of the audio is silent, 35 dB or more below the loud parts of its recording; "
            "--maximum-pause-seconds 0.5 shortens long pauses."
        )


def _held_out(content: Content, options: PrepOptions) -> Iterator[str]:
    for split, row in content["splits"].items():
        if row["asked"] is None or row["asked"] / SPLIT_FACTOR <= row["share"] <= row["asked"] * SPLIT_FACTOR:
            continue
        if options.split_by == "speaker" and content["num_speakers"] >= 3:
            drawn, remedy = "speakers", "--split-by recording comes nearer, but puts speakers into several splits"
        else:
            drawn, remedy = "recordings", "another --seed draws others"
        yield (
            f"{split} holds {percent(row['share'], 1)} of the audio where {percent(row['asked'], 1)} was asked, since "
            f"whole {drawn} are drawn; {remedy}."
        )


def _same(content: Content, options: PrepOptions) -> Iterator[str]:
    found = content["duplicates"]
    if found["num_near_across_splits"]:
        first = next(pair for pair in found["near"] if pair["split"] != pair["other_split"])
        yield (
            f"recordings that are nearly the same as one of another split: {found['num_near_across_splits']}, such as "
            f"{first['name']!r} ({first['split']}) and {first['other']!r} ({first['other_split']}): what is held out "
            "is known in part; leave one of each out of the source."
        )
    inside = found["num_identical"] + found["num_near"] - found["num_near_across_splits"]
    if inside >= LEAST_SHARE * content["num_recordings"]:
        yield (
            f"recordings that are the same, or nearly, as another of their split: {inside} "
            f"({percent(inside / content['num_recordings'])}); report.html names some."
        )


def _part(seconds: float, total: float) -> str:
    return f"{duration(seconds)} of {duration(total)} ({percent(seconds / total)})"


def _named(found: Mapping[str, Any]) -> str:
    """Names of some groups, and how many there are besides."""
    more = found["num_groups"] - MAXIMUM_NAMED
    names = ", ".join(repr(group["name"]) for group in found["groups"][:MAXIMUM_NAMED])
    return names + (f" and {more} more" if more > 0 else "")
