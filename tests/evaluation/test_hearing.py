"""How far from speech waveforms are: voices of pulses and resonances, beside what has lost voice, rhythm or colour."""

from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import soundfile

from audio_ct.audio.checks import check
from audio_ct.evaluation import embeddings, hearing_table
from audio_ct.evaluation.copying import TrainingSpeech
from audio_ct.evaluation.hearing import figures, hear
from audio_ct.evaluation.hearing_table import verdict, within
from audio_ct.evaluation.windows import LINES, line, real_windows
from audio_ct.tokens.codec import MuLawCodec
from audio_ct.tokens.store import TokenStore
from data_prep.folder import CORPUS
from data_prep.options import PrepOptions
from data_prep.skeleton import prepare

pytestmark = pytest.mark.xdist_group("pitch")

RATE_HZ = 16_000
needs_networks = pytest.mark.skipif(not embeddings.installed(), reason=f"needs {embeddings.INSTALL}")
# Resemblyzer 0.1.4 imports what scipy 2 won't have, and librosa hears its 9 s in 321 points.
of_networks = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


def voice(seed: int, num_samples: int, f0_hz: float = 120.0) -> np.ndarray:
    """Four syllables a second of a voice that falls and rises, with pauses."""
    random = np.random.default_rng(seed)
    time = np.arange(num_samples) / RATE_HZ
    pitch_hz = f0_hz * 2 ** (0.2 * np.sin(2 * np.pi * 0.7 * time + random.uniform(0, 6)))
    pulses = np.diff(np.floor(np.cumsum(pitch_hz) / RATE_HZ), prepend=0.0)
    decay = np.arange(300) / RATE_HZ
    ringing = [np.exp(-decay * 500) * np.sin(2 * np.pi * hz * random.uniform(0.8, 1.2) * decay) for hz in (600, 1500)]
    sound = np.convolve(pulses, ringing[0] + 0.5 * ringing[1])[:num_samples]
    syllables = np.maximum(0, np.sin(2 * np.pi * 4 * time + random.uniform(0, 6))) ** 0.5
    return (0.3 * sound * syllables + 2e-4 * random.standard_normal(num_samples)).astype(np.float32)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """Two speakers with twenty recordings each, of 0.4 to 0.9 s."""
    folder, out = tmp_path_factory.mktemp("voices"), tmp_path_factory.mktemp("stores") / "voices"
    random = np.random.default_rng(0)
    for number in range(40):
        path = folder / "ab"[number // 20] / f"{number}.wav"
        path.parent.mkdir(exist_ok=True)
        waveform = voice(number, int(RATE_HZ * random.uniform(0.4, 0.9)), (110.0, 190.0)[number // 20])
        soundfile.write(path, waveform, RATE_HZ)
    options = PrepOptions(
        split_by="recording", validation_fraction=0.2, test_fraction=0.2, seed=1, jobs=1, sample_rate_hz=RATE_HZ
    )
    prepare(CORPUS, folder, out, options=options)
    return TokenStore.open(out)


@pytest.fixture(scope="module")
def codec(store: TokenStore) -> MuLawCodec:
    assert isinstance(store.codec, MuLawCodec)
    return store.codec


def of_train(store: TokenStore, codec: MuLawCodec, num: int, seconds: float = 1.0, seed: int = 0) -> np.ndarray:
    num_samples = round(seconds * RATE_HZ)
    return real_windows(store, codec, split="train", num=num, num_samples=num_samples, seed=seed).waveforms


def test_windows_begin_with_recordings_and_read_on_with_their_speaker(store: TokenStore, codec: MuLawCodec) -> None:
    recordings = store.recordings("train")
    drawn = real_windows(store, codec, split="train", num=5, num_samples=RATE_HZ)
    assert drawn.num_within == 0
    assert len(set(drawn.names)) == 5
    for waveform, name in zip(drawn.waveforms, drawn.names, strict=True):
        index = [recording.name for recording in recordings].index(name)
        following = [i for i in range(index, len(recordings)) if recordings[i].speaker == recordings[index].speaker]
        joined = np.concatenate([codec.decode(store.tokens("train", i)) for i in following])
        np.testing.assert_array_equal(waveform, joined[:RATE_HZ])


@pytest.mark.parametrize(("num", "seconds"), [(60, 0.8), (30, 3.0), (3, 50.0)])
def test_windows_are_as_many_and_as_long_as_wanted_of_any_length(
    num: int, seconds: float, store: TokenStore, codec: MuLawCodec
) -> None:
    num_samples = round(seconds * RATE_HZ)
    drawn = real_windows(store, codec, split="train", num=num, num_samples=num_samples)
    assert drawn.waveforms.shape == (num, num_samples)
    assert max(0, num - len(store.recordings("train"))) <= drawn.num_within <= num
    again = real_windows(store, codec, split="train", num=num, num_samples=num_samples)
    np.testing.assert_array_equal(drawn.waveforms, again.waveforms)


def test_lines_keep_what_they_promise_and_lose_the_rest(store: TokenStore, codec: MuLawCodec) -> None:
    real = of_train(store, codec, 8)
    scrambled, noise, silence = (line(name, real) for name in LINES)
    np.testing.assert_allclose(
        np.abs(np.fft.rfft(scrambled[0]))[1:-1], np.abs(np.fft.rfft(real[0]))[1:-1], rtol=1e-3, atol=1e-2
    )
    np.testing.assert_allclose(np.mean(noise**2, axis=1), np.mean(real**2, axis=1), rtol=1e-3)
    assert not silence.any()
    heard = [hear(waveform, RATE_HZ) for waveform in real]
    of_real, of_scrambled, of_noise, of_silence = (
        figures([hear(waveform, RATE_HZ) for waveform in each], heard) for each in (real, scrambled, noise, silence)
    )
    assert of_real["voiced"] > 0.7
    assert of_real["f0_octaves"] > 0.05
    assert of_real["unwarned"] == 1
    assert of_real["spectrum_db"] == 0
    assert of_scrambled["spectrum_db"] < 1 < of_noise["spectrum_db"]
    assert of_scrambled["modulation_depth"] < 0.5 * of_real["modulation_depth"]
    assert of_scrambled["pauses"] < 0.5 * of_real["pauses"]
    assert of_noise["voiced"] < 0.2
    assert of_noise["unwarned"] == of_silence["unwarned"] == 0
    assert of_silence["pauses"] == 1
    assert np.isnan([of_silence[key] for key in ("voiced", "f0_hz", "level_dbfs", "modulation_hz")]).all()


@pytest.mark.parametrize("rate_hz", [16_000, 24_000])
def test_noise_with_formants_and_what_is_too_loud_get_a_warning(rate_hz: int) -> None:
    noise = np.random.default_rng(0).standard_normal(2 * rate_hz)
    decay = np.arange(400) / rate_hz
    colour = sum(np.exp(-decay * 1500) * np.sin(2 * np.pi * hz * decay) for hz in (600, 1500, 2500))
    hiss = np.convolve(noise, colour)[: noise.size]
    hiss *= 0.1 / hiss.std()
    assert [warning.split(":")[0] for warning in check(hiss, rate_hz)] == ["no voice"]
    assert [warning.split(":")[0] for warning in check(3.3 * hiss, rate_hz)] == ["loud", "no voice"]
    assert check(hiss[: rate_hz * 9 // 10], rate_hz) == []
    buzz = np.convolve(np.arange(2 * rate_hz) % (rate_hz // 120) == 0, colour)[: noise.size]
    assert check(0.1 / buzz.std() * buzz, rate_hz) == []
    half_voiced = np.where(np.arange(noise.size) % rate_hz < rate_hz // 3, 0.1 / buzz.std() * buzz, hiss)
    assert check(half_voiced, rate_hz) == []


def test_figures_of_waveforms_that_are_known() -> None:
    time = np.arange(2 * RATE_HZ) / RATE_HZ
    tone = 0.2 * np.sin(2 * np.pi * 200 * time)
    beating = tone * (np.sin(2 * np.pi * 2.5 * time) > 0)
    beats, loud = hear(beating, RATE_HZ), hear(np.clip(20 * tone, -1, 1), RATE_HZ)
    found = figures([beats], [beats])
    assert found["f0_hz"] == pytest.approx(200, rel=0.01)
    assert found["voiced"] > 0.9
    assert found["modulation_hz"] == pytest.approx(2.5, abs=0.3)
    assert found["pauses"] == pytest.approx(0.5, abs=0.1)
    assert found["pause_seconds"] == pytest.approx(0.2, abs=0.04)
    assert found["level_dbfs"] == pytest.approx(20 * np.log10(0.2) - 3, abs=1)
    assert found["level_iqr_db"] == found["clipped"] == 0
    assert figures([loud], [beats])["clipped"] > 0.3
    assert figures([hear(np.full(RATE_HZ, np.nan), RATE_HZ)], [beats])["unwarned"] == 0


def test_a_planted_piece_of_training_counts_as_near(store: TokenStore, codec: MuLawCodec) -> None:
    training = TrainingSpeech(store, codec)
    assert training.searched == 1
    copied = 0.5 * of_train(store, codec, 4, seconds=0.7, seed=3)[:, 77:]
    new = [voice(100 + seed, RATE_HZ, 150.0) for seed in range(4)]
    quiet = np.zeros(RATE_HZ, dtype=np.float32)
    *of_copied, of_quiet = training.nearest_db([*copied, quiet])
    of_new = training.nearest_db(new)
    assert of_quiet.size == 0
    assert np.median(np.concatenate(of_copied)) < 0.6 * np.median(np.concatenate(of_new))


def table_of(store: TokenStore, codec: MuLawCodec, *models: np.ndarray, split: str = "test") -> dict[str, Any]:
    named = [hearing_table.Generated("model", f"model {index}", waveforms) for index, waveforms in enumerate(models)]
    return hearing_table.hearing_table(store, codec, named, split=split)


@pytest.fixture
def _small_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hearing_table, "MIN_SET", 10)
    monkeypatch.setattr(hearing_table, "NUM_DRAWS", 40)
    monkeypatch.setattr(embeddings, "MAX_MOS_WAVEFORMS", 1)


@needs_networks
@of_networks
@pytest.mark.usefixtures("_small_sets")
def test_the_table_tells_speech_from_copies_and_from_what_is_no_speech(store: TokenStore, codec: MuLawCodec) -> None:
    num_samples = round(0.65 * RATE_HZ)
    speech = real_windows(store, codec, split="validation", num=10, num_samples=num_samples).waveforms
    copies = of_train(store, codec, 10, seconds=0.65, seed=7)
    table = table_of(store, codec, speech, copies, line("White noise", speech, seed=9))
    real, _, _, silence, of_speech, of_copies, of_noise = (row["figures"] for row in table["rows"])
    ranges = table["ranges"]
    assert set(ranges) <= set(hearing_table.FIGURES)
    assert {"frechet", "mos", "diversity", "copied", "voiced"} <= set(ranges)
    assert within(of_speech["voiced"], ranges["voiced"])
    assert within(of_speech["copied"], ranges["copied"])
    assert of_copies["copied"] > max(0.4, 5 * of_speech["copied"])
    assert not within(of_copies["copied"], ranges["copied"])
    assert of_noise["copied"] == 0
    assert of_noise["frechet"] > 2 * max(real["frechet"], of_speech["frechet"])
    assert silence["diversity"] == pytest.approx(0, abs=1e-3)
    assert of_noise["diversity"] < ranges["diversity"][0]
    assert of_noise["mos"] < real["mos"]
    assert "times that of other real speech" in table["rows"][-1]["verdict"]


@pytest.mark.usefixtures("_small_sets")
def test_without_the_extra_the_rest_of_the_table_is_made(
    store: TokenStore, codec: MuLawCodec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embeddings, "find_spec", lambda name: None if name == "speechmos" else find_spec(name))
    table = table_of(store, codec, of_train(store, codec, 10, seconds=0.3), split="train")
    assert {"frechet", "mos", "diversity", "nearest_db"}.isdisjoint(table["ranges"])
    assert "voiced" in table["ranges"]
    assert any(embeddings.INSTALL in note for note in table["notes"])


def test_a_verdict_counts_what_is_in_range_and_names_what_is_not() -> None:
    ranges = {"voiced": (0.5, 0.7), "clipped": (None, 0.1), "pauses": (0.2, 0.3), "frechet": (None, 0.02)}
    of_model = {"voiced": 0.01, "clipped": 0.0, "pauses": np.nan, "frechet": 0.06}
    text = verdict(of_model, ranges, real={"frechet": 0.01}, scrambled={"frechet": 0.1})
    assert text.startswith(
        "1 of 4 figures are within the range of real speech; not so: voiced share, share of pauses, "
    )
    assert text.endswith("6.0 times that of other real speech: nearer to speech than phase-scrambled speech.")
    failed = verdict(of_model, ranges, real={"frechet": 0.01}, scrambled={"frechet": 0.1}, failed=True)
    assert "nearer to speech than" not in failed
    assert failed.endswith("fail the checks, so it is not called near to speech in anything.")


def test_the_frechet_distance_of_known_sets() -> None:
    random = np.random.default_rng(0)
    one = random.standard_normal((4000, 3)) * (1, 2, 3)
    moved = one + np.array([2, 0, 0])
    axes = np.eye(3)
    assert embeddings.frechet(one, one, axes) == pytest.approx(0, abs=1e-6)
    assert embeddings.frechet(one, moved, axes) == pytest.approx(4)
    assert embeddings.frechet(one, 2 * one, axes) == pytest.approx(1 + 4 + 9, rel=0.1)
    assert embeddings.frechet(one, moved, axes[1:]) == pytest.approx(0, abs=1e-6)
    assert abs(embeddings.principal_axes(one)[0] @ (0, 0, 1)) > 0.99
    assert embeddings.spread(np.tile(axes[0], (5, 1))) == pytest.approx(0)
    assert embeddings.spread(axes) == pytest.approx(1)
