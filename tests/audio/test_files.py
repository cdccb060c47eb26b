"""Audio files: blocks equal the whole, memory stays bounded, and what is no good audio is refused in one line."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from audio_ct.audio import files
from audio_ct.errors import InputError, MissingError


def tone(seconds: float, rate_hz: int, frequency_hz: float = 440.0) -> files.Samples:
    time = np.arange(round(seconds * rate_hz)) / rate_hz
    return (0.5 * np.sin(2 * np.pi * frequency_hz * time)).astype(np.float32)


def decode(path: Path, block_seconds: float = 10.0) -> list[files.Samples]:
    with files.AudioReader(path) as reader:
        return list(reader.blocks(block_seconds))


def read(path: Path) -> files.Samples:
    return files.read(path, 24_000)


def close(found: files.Samples, expected: files.Samples) -> bool:
    """A codec kept the waveform; its first and last frames may differ."""
    inner = slice(4800, -4800)
    return len(found) == len(expected) and bool(np.abs(found[inner] - expected[inner]).max() < 0.1)


@pytest.mark.parametrize("rate_hz", [8000, 16_000, 22_050, 24_000, 44_100, 48_000, 192_000])
def test_blocks_equal_resampling_in_one_piece(tmp_path: Path, rate_hz: int) -> None:
    waveform = tone(2.3, rate_hz)
    soundfile.write(tmp_path / "a.wav", waveform, rate_hz, subtype="FLOAT")
    whole = soxr.resample(waveform, rate_hz, 24_000, quality="VHQ")
    for block_seconds in (0.01, 0.37, 10.0):
        blocks = list(files.resample_blocks(decode(tmp_path / "a.wav", block_seconds), rate_hz, 24_000))
        joined = np.concatenate(blocks)
        assert joined.dtype == np.float32
        assert all(len(block) for block in blocks)
        assert len(joined) == len(whole)
        np.testing.assert_allclose(joined, whole, atol=1e-5)


@pytest.mark.fault("audio")
@pytest.mark.parametrize(
    ("name", "format_", "subtype"),
    [
        ("a.wav", "WAV", "PCM_U8"),
        ("a.wav", "WAV", "PCM_24"),
        ("a.wav", "WAV", "DOUBLE"),
        ("a.flac", "FLAC", "PCM_16"),
        ("a.aiff", "AIFF", "PCM_32"),
        ("a.ogg", "OGG", "VORBIS"),
        ("a.opus", "OGG", "OPUS"),
        ("a.mp3", "MP3", "MPEG_LAYER_III"),
        ("zwölf\nänder.wav", "WAV", "PCM_16"),
    ],
)
def test_formats_are_read(tmp_path: Path, name: str, format_: str, subtype: str) -> None:
    waveform = tone(1.0, 24_000)
    soundfile.write(str(tmp_path / name), waveform, 24_000, format=format_, subtype=subtype)
    with files.AudioReader(tmp_path / name) as reader:
        assert reader.sample_rate_hz == 24_000
    assert close(read(tmp_path / name), waveform)


@pytest.mark.parametrize("suffix", ["mp3", "ogg", "flac"])
def test_blocks_equal_the_file_read_at_once(tmp_path: Path, suffix: str) -> None:
    """An MP3 decoder that is made to seek between blocks loses its bit reservoir."""
    generator = np.random.default_rng(0)
    noise = np.cumsum(0.1 * generator.standard_normal(48_000)).clip(-0.5, 0.5)
    soundfile.write(tmp_path / f"a.{suffix}", noise, 24_000)
    whole, _ = soundfile.read(tmp_path / f"a.{suffix}", dtype="float32")
    np.testing.assert_allclose(np.concatenate(decode(tmp_path / f"a.{suffix}", 0.1)), whole, atol=1e-6)


def test_channels_become_their_mean_and_values_a_little_above_full_scale_pass(tmp_path: Path) -> None:
    left, right = tone(0.5, 24_000), tone(0.5, 24_000, 1000.0)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right] * 4, axis=1), 24_000, subtype="FLOAT")
    np.testing.assert_allclose(read(tmp_path / "a.wav"), (left + right) / 2, atol=1e-6)
    soundfile.write(tmp_path / "a.wav", 3 * tone(0.1, 24_000), 24_000, subtype="FLOAT")
    assert read(tmp_path / "a.wav").max() > 1.4


def rejected(path: Path) -> str:
    with pytest.raises(files.RejectedAudioError) as caught:
        read(path)
    assert len(str(caught.value).splitlines()) == 1
    assert path.name in str(caught.value)
    return caught.value.reason


@pytest.mark.fault("audio")
@pytest.mark.parametrize("value", [np.nan, np.inf, 30_000.0])
def test_impossible_samples_are_rejected(tmp_path: Path, value: float) -> None:
    waveform = tone(0.5, 24_000)
    waveform[7000] = value
    soundfile.write(tmp_path / "a.wav", waveform, 24_000, subtype="FLOAT")
    assert rejected(tmp_path / "a.wav") == ("amplitude" if np.isfinite(value) else "non-finite")


@pytest.mark.fault("audio")
@pytest.mark.parametrize("suffix", ["wav", "aiff", "au", "w64", "mp3", "flac", "caf"])
def test_files_cut_short_are_rejected_though_libsndfile_decodes_most(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, tone(2.0, 24_000), 24_000)
    content = path.read_bytes()
    for fraction in (0.4, 0.9):
        path.write_bytes(content[: int(fraction * len(content))])
        assert rejected(path) == "truncated" or suffix in ("flac", "caf")
        if suffix not in ("flac", "caf"):
            with files.AudioReader(path, keep_truncated=True) as reader:
                kept = sum(map(len, reader.blocks()))
                assert 0.3 * fraction < kept / 48_000 <= fraction + 0.1
                assert reader.truncated


@pytest.mark.fault("audio")
@pytest.mark.parametrize("suffix", ["wav", "aiff", "au", "w64", "caf"])
def test_a_file_that_lacks_one_byte_is_truncated(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, tone(0.1, 24_000), 24_000)
    assert sum(map(len, decode(path))) == 2400
    path.write_bytes(path.read_bytes()[:-1])
    assert rejected(path) == "truncated"


@pytest.mark.fault("audio")
@pytest.mark.parametrize("suffix", ["ogg", "opus"])
def test_an_ogg_stream_that_ends_within_a_page_is_truncated(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    noise = 0.3 * np.random.default_rng(0).uniform(-1, 1, 20 * 24_000)
    soundfile.write(path, noise, 24_000, format="OGG", subtype="OPUS" if suffix == "opus" else "VORBIS")
    content = path.read_bytes()
    for length in (len(content) - 1, round(0.9 * len(content)), round(0.5 * len(content))):
        path.write_bytes(content[:length])
        assert rejected(path) == "truncated"
        with files.AudioReader(path, keep_truncated=True) as reader:
            assert 0.4 < sum(map(len, reader.blocks())) / len(noise) < 1
            assert reader.truncated == "ends within an Ogg page"


@pytest.mark.fault("audio")
@pytest.mark.parametrize("suffix", ["ogg", "opus", "mp3"])
def test_a_compressed_file_cut_at_any_byte_is_rejected(tmp_path: Path, suffix: str) -> None:
    random = np.random.default_rng(0)
    for num_channels, rate_hz in ((1, 16_000), (2, 16_000), (1, 48_000), (2, 48_000)):
        waveform = 0.3 * random.uniform(-1, 1, (rate_hz, num_channels))
        path = tmp_path / f"a.{suffix}"
        soundfile.write(path, waveform, rate_hz, **({"format": "OGG", "subtype": "OPUS"} if suffix == "opus" else {}))
        content = path.read_bytes()
        assert len(read(path)) == 24_000
        for length in (1, *random.integers(2, len(content), 8), *(len(content) - cut for cut in (1, 2, 30, 300))):
            path.write_bytes(content[:length])
            assert rejected(path) in ("truncated", "unreadable"), length


def test_an_mp3_that_states_no_length_or_has_more_is_read(tmp_path: Path) -> None:
    """Without the header of its encoder nobody knows how long it was."""
    path = tmp_path / "a.mp3"
    soundfile.write(path, tone(1.0, 24_000), 24_000)
    content = path.read_bytes()
    path.write_bytes(content[content.index(content[:2], 2) :])
    assert len(read(path)) > 0
    # What stands behind the stream, such as an ID3 tag, is no fault.
    path.write_bytes(content + b"TAG" + bytes(125))
    assert close(read(path), tone(1.0, 24_000))


@pytest.mark.fault("audio")
def test_one_channel_is_read_and_channels_that_cancel_are_refused(tmp_path: Path) -> None:
    left, right = tone(0.5, 24_000), tone(0.5, 24_000, 1000.0)
    soundfile.write(tmp_path / "a.wav", np.stack([left, right], axis=1), 24_000, subtype="FLOAT")
    with files.AudioReader(tmp_path / "a.wav", channel=1) as reader:
        np.testing.assert_array_equal(np.concatenate(list(reader.blocks())), right)
    with pytest.raises(files.RejectedAudioError, match="channel=2"):
        files.AudioReader(tmp_path / "a.wav", channel=2)
    soundfile.write(tmp_path / "a.wav", np.stack([left, -left], axis=1), 24_000, subtype="FLOAT")
    assert rejected(tmp_path / "a.wav") == "channels cancel"
    with files.AudioReader(tmp_path / "a.wav", channel=0) as reader:
        np.testing.assert_array_equal(np.concatenate(list(reader.blocks())), left)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_spans_are_parts_of_the_whole(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, 0.3 * np.random.default_rng(0).uniform(-1, 1, 40_000), 8000)
    whole = np.concatenate(decode(path))
    for block_seconds in (0.1, 10.0):
        with files.AudioReader(path) as reader:
            parts = np.concatenate(list(reader.blocks(block_seconds, spans=[(0.5, 0.75), (2.0, 4.125)])))
        np.testing.assert_array_equal(parts, np.concatenate([whole[4000:6000], whole[16_000:33_000]]))
    with files.AudioReader(path) as reader, pytest.raises(files.RejectedAudioError, match="samples decode"):
        list(reader.blocks(spans=[(4.0, 6.0)]))


def test_a_streamed_wav_of_unknown_length_is_no_truncated_one(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(0.5, 24_000), 24_000)
    content = bytearray((tmp_path / "a.wav").read_bytes())
    start = content.index(b"data") + 4
    content[start : start + 4] = b"\xff\xff\xff\xff"
    (tmp_path / "a.wav").write_bytes(content)
    assert len(read(tmp_path / "a.wav")) == 12_000


@pytest.mark.fault("audio")
def test_a_header_that_claims_terabytes_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, tone(0.5, 24_000), 24_000)
    content = bytearray(path.read_bytes())
    # The low 32 of 36 bits of STREAMINFO's sample count.
    content[22:26] = b"\xff\xff\xff\xf0"
    path.write_bytes(content)
    assert soundfile.info(path).frames == 0xFFFF_FFF0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert rejected(path) in ("truncated", "unreadable")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


@pytest.mark.fault("audio")
def test_what_is_no_audio_file_is_rejected_without_hanging(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    (tmp_path / "device.wav").symlink_to("/dev/zero")
    (tmp_path / "folder.wav").mkdir()
    for name in ("pipe.wav", "device.wav", "folder.wav"):
        assert rejected(tmp_path / name) == "not a regular file"
    (tmp_path / "nothing.wav").write_bytes(b"")
    assert rejected(tmp_path / "nothing.wav") == "empty"
    soundfile.write(tmp_path / "header.wav", np.zeros(0), 24_000)
    assert rejected(tmp_path / "header.wav") == "empty"
    (tmp_path / "text.wav").write_text("once upon a time\n" * 100)
    assert rejected(tmp_path / "text.wav") == "unreadable"
    for rate_hz in (1000, 1_000_000):
        soundfile.write(tmp_path / "rate.wav", np.zeros(1000), rate_hz)
        assert rejected(tmp_path / "rate.wav") == "absurd rate"
    with pytest.raises(MissingError):
        files.AudioReader(tmp_path / "absent.wav")


@pytest.mark.fault("audio")
def test_mutated_files_give_samples_or_one_line(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    path = tmp_path / "a"
    messages: list[str] = []
    for suffix in ("wav", "flac", "ogg", "aiff"):
        soundfile.write(tmp_path / f"whole.{suffix}", tone(0.2, 16_000), 16_000)
        whole = np.fromfile(tmp_path / f"whole.{suffix}", dtype=np.uint8)
        for _ in range(40):
            mutated = whole.copy()
            reach = len(whole) if generator.random() < 0.5 else 100
            mutated[generator.integers(0, reach, 4)] = generator.integers(0, 256, 4)
            mutated.tofile(path)
            try:
                waveform = read(path)
            except files.RejectedAudioError as error:
                messages.append(str(error))
            else:
                assert np.isfinite(waveform).all()
    assert len(messages) > 20
    assert all(len(message.splitlines()) == 1 for message in messages)


@pytest.mark.fault("audio")
def test_memory_does_not_grow_with_the_recording(tmp_path: Path) -> None:
    path = tmp_path / "hour.wav"
    num_bytes = 2 * 48_000 * 3600
    soundfile.write(path, np.zeros(1, np.int16), 48_000)
    header = bytearray(path.read_bytes()[:44])
    header[40:44] = num_bytes.to_bytes(4, "little")
    path.write_bytes(header)
    os.truncate(path, 44 + num_bytes)
    program = (
        "import resource, sys\nfrom audio_ct.audio import files\n"
        "reader = files.AudioReader(sys.argv[1])\n"
        "blocks = files.resample_blocks(reader.blocks(), 48_000, 24_000)\nnext(blocks)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "total = sum(map(len, blocks))\n"
        "print(total, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    run = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True, timeout=60)
    total, growth_kib = map(int, run.stdout.split())
    assert abs(total + 10 * 24_000 - 3600 * 24_000) < 24_000
    assert growth_kib < 32 * 1024


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "opus", "oga", "aif"])
def test_what_is_written_comes_back(tmp_path: Path, suffix: str) -> None:
    waveform = tone(1.0, 24_000)
    with files.AudioWriter(tmp_path / f"a.{suffix}", 24_000) as writer:
        for start in range(0, len(waveform), 5000):
            writer.write(waveform[start : start + 5000])
    assert close(read(tmp_path / f"a.{suffix}"), waveform)


@pytest.mark.fault("sampling")
@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_a_killed_writer_leaves_a_playable_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    program = (
        "import os, signal, sys\nimport numpy as np\nfrom audio_ct.audio.files import AudioWriter\n"
        "writer = AudioWriter(sys.argv[1], 24000)\n"
        "for _ in range(50):\n    writer.write(np.full(1000, 0.25, np.float32))\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", program, path], check=False, timeout=60)
    survived = read(path)
    assert len(survived) == 50_000 if suffix == "wav" else len(survived) > 25_000
    assert abs(float(np.median(survived)) - 0.25) < 0.01


def test_the_writer_refuses_in_one_line(tmp_path: Path) -> None:
    for name, rule in (
        ("a.xyz", "no audio format"),
        ("a", "no audio format"),
        ("no/folder/a.wav", "cannot be written"),
    ):
        with pytest.raises(InputError, match=rule):
            files.AudioWriter(tmp_path / name, 24_000)
    with pytest.raises(InputError, match="cannot be written at 12345 Hz"):
        files.AudioWriter(tmp_path / "a.opus", 12_345)
    files.AudioWriter(tmp_path / "a.wav", 24_000).close()
    with pytest.raises(InputError, match="exists already"):
        files.AudioWriter(tmp_path / "a.wav", 24_000)
    with files.AudioWriter(tmp_path / "a.wav", 24_000, overwrite=True) as writer:
        for bad in (np.full(3, np.nan), np.zeros((3, 2))):
            with pytest.raises(InputError, match="finite"):
                writer.write(bad)


@pytest.mark.fault("full disk")
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_stops_the_writer_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.wav").symlink_to("/dev/full")
    with pytest.raises(InputError, match=r"disk full|cannot be written"):
        files.AudioWriter(tmp_path / "a.wav", 24_000, overwrite=True).write(np.zeros(100_000, np.float32))
