"""A page of what a token store holds: its tables, and measures of a sample of its tokens."""

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imsave
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from audio_ct import html
from audio_ct.audio.levels import levels
from audio_ct.audio.spectrogram import COLOUR_MAP, COLOUR_RANGE_DB, mel_db, power_spectrogram
from audio_ct.audio.spectrum_end import BAND_HZ, decibels, power_of_bands, spectrum_end_hz
from audio_ct.durable import make_folder, write_whole
from audio_ct.evaluation.reference_lines import (
    MAX_VOCABULARY_SIZE_LINEAR_PREDICTION,
    CountingLine,
    LinearPredictionLine,
)
from audio_ct.storage import is_remote
from audio_ct.tokens.store import TokenStore

# A sample of so many tokens, a quarter of them of the held-out splits, from stretches of recordings: minutes' work.
SAMPLE_TOKENS = 16_000_000
HELD_OUT_SHARE = 0.25
MAXIMUM_STRETCH_TOKENS = 1 << 20
# Of a store that is elsewhere, a split's sample comes from so few of its shards: each is fetched whole.
MAXIMUM_REMOTE_SHARDS = 3
# Linear prediction reads some 100,000 tokens a second.
LINEAR_PREDICTION_TOKENS = 500_000
JUDGED_TOKENS = 500_000
# What the rounding of 8-bit mu-law leaves of a drop, and a voice without one stays below.
DROP_DB = 20.0
FULL_BAND = 0.85
# Below it an offset and hum.
LOWEST_SOUND_HZ = 80.0
MAXIMUM_SPECTRA = 2000
MAXIMUM_LISTED = 100
MAXIMUM_LINES = 40
NUM_PLAYERS = 6
PLAYER_SECONDS = 8.0
NUM_TOKEN_BARS = 256

COLOUR, SOFT, MARK = "#2f6db3", "#a9c3e2", "#c4551a"
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Stretch:
    """A part of a recording, the recording by its index in its split."""

    split: str
    index: int
    start: int
    stop: int


@dataclass
class Found:
    """What a sample of a store's tokens holds; speakers are numbered, the one with most tokens first."""

    histogram: Array
    num_tokens: int = 0
    levels_dbfs: list[float] = field(default_factory=list)
    clipped: float = 0.0
    spectra: dict[int, Array] = field(default_factory=dict)
    """Power in bands of 250 Hz, each stretch's shares times its length."""
    energies: dict[int, list[float]] = field(default_factory=dict)
    """Of each speaker, the sum of squares and the number of samples."""


def write_page(store: TokenStore, out: Path) -> Path:
    """Write `out`/index.html, which needs nothing else, and its pictures contents.png and tokens.png.

    Time and memory are bounded, but for the store's table of recordings: levels, spectra and tokens are those of a
    sample that hashes of the recordings' names choose, the same every time.

    Args:
        store: Any token store.
        out: A folder; made if it is missing.

    Returns:
        The path of index.html.

    Raises:
        InputError: If the folder cannot be made, or a store that is elsewhere cannot be read.
    """
    make_folder(out)
    splits = _table(store)
    speakers = _speakers(store)
    sample = {split: _choose(store, split, tokens) for split, tokens in _shares(store).items()}
    found = _measure(store, [stretch for stretches in sample.values() for stretch in stretches], list(speakers))
    entropies, counted, judged = _entropies(store, sample)
    rate_hz = store.codec.sample_rate_hz
    pictures = {"tokens": html.picture(_draw_tokens(found, entropies, store))}
    if rate_hz is not None:
        pictures = {
            "contents": html.picture(_draw_contents(found, store, list(speakers.values()), rate_hz)),
            **pictures,
        }
    page = html.render(
        Path(__file__).with_name("corpus_page.html.jinja"),
        store=store,
        about=_about(store),
        audio=rate_hz is not None,
        unit=store.codec.unit,
        splits=splits,
        speakers=_speaker_rows(found, speakers, rate_hz),
        num_speakers=len(speakers),
        found=found,
        entropies=entropies,
        counted=counted,
        judged=judged,
        full_hz=FULL_BAND * (rate_hz or 0) / 2,
        players=_players(store, sample) if rate_hz is not None else [],
        pictures={name: address for name, (_, address) in pictures.items()},
    )
    for name, (png, _) in pictures.items():
        write_whole(out / f"{name}.png", png)
    write_whole(out / "index.html", page)
    return out / "index.html"


def _about(store: TokenStore) -> dict[str, Any]:
    """What the manifest says of the corpus; what is missing, as in stores of bytes, is None."""
    texts = {
        name: store.corpus.get(name) for name in ("corpus", "title", "citation", "licence", "address", "synthetic")
    }
    return texts | {"preparation": dict(store.corpus.get("preparation") or {})}


def _table(store: TokenStore) -> dict[str, dict[str, Any]]:
    """Of each split, numbers of recordings, tokens and speakers."""
    return {
        split: {
            "num_recordings": len(store.recordings(split)),
            "num_tokens": store.num_tokens(split),
            "num_speakers": len(store.recordings(split).speakers),
            "num_shards": len(store.shards(split)),
        }
        for split in store.splits
    }


def _speakers(store: TokenStore) -> dict[str, int]:
    """Tokens of each speaker, the one with most first."""
    tokens: dict[str, int] = {}
    for split in store.splits:
        recordings = store.recordings(split)
        counts = np.bincount(recordings.speaker_codes, recordings.lengths, minlength=len(recordings.speakers))
        for speaker, count in zip(recordings.speakers, counts, strict=True):
            tokens[speaker] = tokens.get(speaker, 0) + int(count)
    return dict(sorted(tokens.items(), key=lambda item: (-item[1], item[0])))


def _shares(store: TokenStore) -> dict[str, int]:
    """How many tokens of the sample each split gives."""
    held_out = [split for split in store.splits if split != "train"]
    if len(held_out) == len(store.splits):
        return dict.fromkeys(store.splits, SAMPLE_TOKENS // len(held_out))
    return {
        split: round(SAMPLE_TOKENS * (HELD_OUT_SHARE / len(held_out) if split in held_out else 1 - HELD_OUT_SHARE))
        for split in store.splits
    }


def _choose(store: TokenStore, split: str, num_tokens: int) -> list[Stretch]:
    """Choose recordings by the hashes of their names until they hold so many tokens; of long ones, a stretch."""
    recordings = store.recordings(split)
    names = recordings.names
    hashes = np.array([_hash(name) for name in names], dtype=np.uint64)
    order = np.argsort(hashes, kind="stable")
    if is_remote(store.address):
        shards = sorted(range(len(store.shards(split))), key=lambda shard: _hash(f"{split} {shard}"))
        order = order[np.isin(recordings.shards[order], shards[:MAXIMUM_REMOTE_SHARDS])]
    lengths = np.minimum(recordings.lengths[order], MAXIMUM_STRETCH_TOKENS)
    order = order[: 1 + int(np.searchsorted(np.cumsum(lengths), num_tokens))]
    stretches = []
    for index in order:
        slack = int(recordings.lengths[index]) - MAXIMUM_STRETCH_TOKENS
        start = int(hashes[index]) % (slack + 1) if slack > 0 else 0
        stop = start + min(int(recordings.lengths[index]), MAXIMUM_STRETCH_TOKENS)
        stretches.append(Stretch(split, int(index), start, stop))
    return stretches


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())


def _read(store: TokenStore, stretch: Stretch) -> Array:
    return store.tokens(stretch.split, stretch.index, stretch.start, stretch.stop)


def _measure(store: TokenStore, sample: list[Stretch], speakers: list[str]) -> Found:
    """Read a sample once: count its tokens and measure what they sound like."""
    rate_hz = store.codec.sample_rate_hz
    found = Found(np.zeros(store.vocabulary_size, np.int64))
    place_of = {speaker: place for place, speaker in enumerate(speakers)}
    num_clipped = 0.0
    for stretch in sample:
        tokens = _read(store, stretch)
        found.histogram += np.bincount(tokens, minlength=store.vocabulary_size)
        found.num_tokens += len(tokens)
        if rate_hz is None:
            continue
        recordings = store.recordings(stretch.split)
        speaker = place_of[recordings.speakers[recordings.speaker_codes[stretch.index]]]
        waveform = np.asarray(store.codec.decode(tokens), dtype=np.float64)
        level = levels(waveform, rate_hz)
        found.levels_dbfs.append(level.rms_dbfs)
        num_clipped += level.clipped_fraction * len(tokens)
        energy = found.energies.setdefault(speaker, [0.0, 0.0])
        energy[0] += float(np.mean(waveform**2)) * len(tokens)
        energy[1] += len(tokens)
        power = power_spectrogram(waveform.astype(np.float32), rate_hz).sum(axis=1)
        frequencies_hz = np.linspace(0, rate_hz / 2, len(power))
        power = power_of_bands(np.where(frequencies_hz < LOWEST_SOUND_HZ, 0.0, power), frequencies_hz)
        key = min(speaker, MAXIMUM_SPECTRA)
        share = power / max(float(power.sum()), 1e-20) * len(tokens)
        found.spectra[key] = found.spectra.get(key, np.zeros_like(share)) + share
    found.clipped = num_clipped / max(found.num_tokens, 1)
    return found


def _speaker_rows(found: Found, speakers: dict[str, int], rate_hz: int | None) -> list[dict[str, Any]]:
    """Of the speakers with most tokens, how much there is, and the level and the spectrum's end of their sample."""
    rows: list[dict[str, Any]] = []
    for place, (name, tokens) in enumerate(islice(speakers.items(), MAXIMUM_LISTED)):
        energy, spectrum = found.energies.get(place), found.spectra.get(place)
        end_hz = None
        if spectrum is not None and rate_hz is not None:
            end_hz = spectrum_end_hz(decibels(spectrum), DROP_DB) or rate_hz / 2
        level_dbfs = None if energy is None else 10 * float(np.log10(max(energy[0] / energy[1], 1e-12)))
        rows.append({"name": name, "tokens": tokens, "level_dbfs": level_dbfs, "end_hz": end_hz})
    return rows


def _entropies(store: TokenStore, sample: dict[str, list[Stretch]]) -> tuple[dict[str, float], int, int]:
    """Bits per token given 0, 1 and 2 tokens before, and by linear prediction, as counting the sample predicts others.

    Returns:
        Bits by what is known; tokens counted; tokens judged, which are held out, of the sample itself in a store of one
        split.
    """
    if len(sample) > 1:
        counted = sample.get("train") or next(iter(sample.values()))
        judged = [each for split, stretches in sample.items() if stretches is not counted for each in stretches]
    else:
        (stretches,) = sample.values()
        counted, judged = stretches[::2], stretches[1::2]
    judged = sorted(judged, key=lambda stretch: _hash(f"{stretch.split} {stretch.index}"))
    judged = list(_up_to(judged, JUDGED_TOKENS))
    entropies = {"nothing": float(np.log2(store.vocabulary_size))}
    if not counted or not judged:
        return entropies, 0, 0

    def read(stretches: list[Stretch]) -> Iterator[Array]:
        return (_read(store, stretch) for stretch in stretches)

    size, start_token = store.vocabulary_size, store.start_token
    line = CountingLine.fit(read(counted), size, start_token)
    labels = ("how often each token comes", "the token before", "the 2 tokens before")
    for label, bits in zip_longest(labels, line.bits_per_sample(read(judged), 0)):
        if bits is not None:
            entropies[label] = bits
    if store.codec.encoding == "mu-law" and size <= MAX_VOCABULARY_SIZE_LINEAR_PREDICTION:
        part = list(_up_to(counted, LINEAR_PREDICTION_TOKENS))
        num_threads = torch.get_num_threads()
        # Its matrices are small: threads only wait for each other.
        torch.set_num_threads(1)
        try:
            prediction = LinearPredictionLine.fit(read(part), size, start_token)
            (entropies["linear prediction"],) = prediction.bits_per_sample(read(judged), 0)
        finally:
            torch.set_num_threads(num_threads)
    num_counted, num_judged = (sum(each.stop - each.start for each in some) for some in (counted, judged))
    return entropies, num_counted, num_judged


def _up_to(stretches: list[Stretch], num_tokens: int) -> Iterator[Stretch]:
    """Stretches, the last one cut, that hold so many tokens or all."""
    for stretch in stretches:
        if num_tokens <= 0:
            return
        yield Stretch(stretch.split, stretch.index, stretch.start, min(stretch.stop, stretch.start + num_tokens))
        num_tokens -= stretch.stop - stretch.start


def _players(store: TokenStore, sample: dict[str, list[Stretch]]) -> list[dict[str, Any]]:
    """Some recordings of different speakers as far as there are, to be seen and heard."""
    rate_hz = store.codec.sample_rate_hz
    assert rate_hz is not None
    chosen: dict[str, Stretch] = {}
    others: list[Stretch] = []
    for stretch in (each for stretches in zip_longest(*sample.values()) for each in stretches if each is not None):
        speaker = store.recordings(stretch.split)[stretch.index].speaker
        if speaker in chosen:
            others.append(stretch)
        else:
            chosen[speaker] = stretch
        if len(chosen) == NUM_PLAYERS or len(chosen) + len(others) > 50 * NUM_PLAYERS:
            break
    players = []
    for stretch in [*chosen.values(), *others][:NUM_PLAYERS]:
        row = store.recordings(stretch.split)[stretch.index]
        stop = min(stretch.stop, stretch.start + round(PLAYER_SECONDS * rate_hz))
        waveform = np.asarray(store.codec.decode(store.tokens(stretch.split, stretch.index, stretch.start, stop)))
        sound, picture = io.BytesIO(), io.BytesIO()
        soundfile.write(sound, waveform, rate_hz, format="FLAC", subtype="PCM_16")
        level_db = mel_db(waveform, rate_hz)
        top = float(level_db.max())
        lowest = top - COLOUR_RANGE_DB
        imsave(picture, level_db, cmap=COLOUR_MAP, vmin=lowest, vmax=top, origin="lower", format="png")
        players.append(
            {
                "name": row.name,
                "speaker": row.speaker,
                "split": stretch.split,
                "text": row.text,
                "seconds": len(waveform) / rate_hz,
                "is_part": len(waveform) < row.length,
                "sound": html.data_uri("audio/flac", sound.getvalue()),
                "picture": html.data_uri("image/png", picture.getvalue()),
            }
        )
    return players


def _draw_contents(found: Found, store: TokenStore, tokens_of_speakers: list[int], rate_hz: int) -> Figure:
    figure = Figure(figsize=(12.5, 3.6), layout=ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1))
    durations, level, spectrum, speakers = figure.subplots(1, 4)
    seconds = np.concatenate([store.recordings(split).lengths for split in store.splits]) / rate_hz
    edges = np.geomspace(seconds.min() * 0.9, seconds.max() * 1.1, 41)
    durations.stairs(np.histogram(seconds, edges)[0], edges, fill=True, color=COLOUR)
    durations.set(title="Duration (s)", ylabel="recordings", xscale="log")
    ticks = [tick for tick in (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3600, 36_000) if edges[0] <= tick <= edges[-1]]
    durations.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    durations.minorticks_off()
    lowest_dbfs = max(-80.0, 10 * np.floor(min(found.levels_dbfs) / 10))
    edges = np.linspace(lowest_dbfs, 0, 41)
    level.stairs(np.histogram(np.clip(found.levels_dbfs, edges[0], 0), edges)[0], edges, fill=True, color=COLOUR)
    level.set(title="Level (dBFS, RMS), of the sample", ylabel="recordings")
    spectra = sorted(found.spectra.values(), key=lambda power: -float(power.sum()))
    khz = (np.arange(len(spectra[0])) + 0.5) * BAND_HZ / 1000
    for power in spectra[:MAXIMUM_LINES]:
        spectrum.plot(khz, decibels(power), color=SOFT, linewidth=0.8)
    spectrum.plot(khz, decibels(np.sum(spectra, axis=0)), color=COLOUR, linewidth=2)
    spectrum.axvline(rate_hz / 2000, color=MARK, linestyle="--")
    spectrum.set(title="Long-term spectrum (kHz)", ylabel="dB below the strongest band", ylim=(-80, 3))
    spectrum.set_xlabel("dashed: half the store's rate")
    unit, size = ("hours", 3600) if seconds.sum() >= 7200 else ("minutes", 60)
    values = np.array(tokens_of_speakers) / rate_hz / size
    speakers.fill_between(np.arange(len(values) + 1) + 0.5, np.append(values, values[-1]), step="post", color=COLOUR)
    speakers.set(title="Audio of each speaker", ylabel=unit, xlabel="speakers, the longest first")
    speakers.set(xlim=(0.5, max(len(values), 5) + 0.5), ylim=(0, 1.05 * values[0]))
    speakers.xaxis.set_major_locator(MaxNLocator(integer=True))
    _bare(durations, level, spectrum, speakers)
    return figure


def _draw_tokens(found: Found, entropies: dict[str, float], store: TokenStore) -> Figure:
    figure = Figure(figsize=(12.5, 3.6), layout=ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.2))
    tokens, bits = figure.subplots(1, 2, width_ratios=(3, 2))
    num_bars = min(NUM_TOKEN_BARS, store.vocabulary_size)
    edges = np.linspace(0, store.vocabulary_size, num_bars + 1)
    shares = found.histogram.reshape(num_bars, -1).sum(axis=1) / max(found.num_tokens, 1)
    tokens.stairs(shares, edges, fill=True, color=COLOUR)
    lowest = shares[shares > 0].min()
    tokens.set(title="How often each token comes, of the sample", yscale="log", ylim=(lowest / 2, 1.5 * shares.max()))
    tokens.set(xlabel="token", ylabel="share", xlim=(0, store.vocabulary_size))
    labels = list(entropies)
    bars = bits.barh(range(len(labels)), list(entropies.values()), color=COLOUR, height=0.6)
    bits.bar_label(bars, [f"{value:.2f}" for value in entropies.values()], padding=4)
    bits.set_yticks(range(len(labels)), labels)
    bits.set(title=f"Bits per {store.codec.unit}, knowing", xlim=(0, 1.12 * max(entropies.values())))
    bits.invert_yaxis()
    bits.tick_params(axis="y", length=0)
    _bare(tokens, bits)
    return figure


def _bare(*several: Axes) -> None:
    for axes in several:
        axes.spines[["top", "right"]].set_visible(False)
