"""The local page: waveforms are the engine's, limits hold, nobody from elsewhere may ask, and a signal ends it."""

import http.client
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

import audio_ct
from audio_ct import serving
from audio_ct.errors import InputError
from audio_ct.serving import Maker, RefusedError, Server
from audio_ct.tokens.codec import ByteCodec

RATE = 16_000


@pytest.fixture(scope="module")
def maker() -> Maker:
    return Maker(audio_ct.load("syllables-wavenet"), max_seconds=5.0)


@pytest.fixture(scope="module")
def server(maker: Maker) -> Iterator[Server]:
    with Server(maker, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server: Server, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[Any, bytes]:
    """Send a request; headers are written with _ for -, and Host is the server's unless given."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=300)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer, content


def wav(waveform: np.ndarray, rate_hz: int = RATE, **options: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, waveform, rate_hz, **({"format": "WAV"} | options))
    return file.getvalue()


def test_a_waveform_is_the_engines(server: Server) -> None:
    answer, content = ask(server, "POST", "/sample?seconds=0.02&seed=3&temperature=0.9&top_p=0.95")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "audio/wav")
    got, rate_hz = soundfile.read(io.BytesIO(content), dtype="float32")
    [expected] = audio_ct.sample(server.maker.model, seconds=0.02, seed=3, temperature=0.9, top_p=0.95)
    assert (rate_hz, len(got)) == (RATE, 320)
    np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG"])
def test_a_recording_is_continued_and_not_kept(
    server: Server, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving.tempfile, "tempdir", str(tmp_path))
    tone = 0.3 * np.sin(np.arange(800) / 5)
    answer, content = ask(server, "POST", "/sample?seconds=0.01", wav(tone, 8000, format=kind))
    assert answer.status == 200, content
    waveform, _ = soundfile.read(io.BytesIO(content))
    assert len(waveform) == 1600 + 160, "at the model's rate, the recording first"
    assert np.abs(waveform[:1600]).max() > 0.2
    assert list(tmp_path.iterdir()) == []


def test_of_a_long_recording_the_beginning_is_read(maker: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "MAX_PROMPT_SECONDS", 1.5)
    assert len(maker.read_prompt(wav(np.full(5 * RATE, 0.1)))) == 1.5 * RATE


def test_the_page_and_its_state(server: Server) -> None:
    answer, content = ask(server, "GET", "/")
    page = content.decode()
    assert answer.status == 200
    assert "syllables-wavenet" in page
    assert f'nonce="{server.nonce}"' in page
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert "http://" not in page.replace(server.address, "")
    answer, content = ask(server, "GET", "/status")
    assert (answer.headers["Content-Type"], content) == ("application/json", b'{"doing": "nothing", "waiting": 0}')


@pytest.mark.parametrize(
    ("query", "line"),
    [
        ("seconds=9", "seconds=9.0 must be above 0 and at most 5 here."),
        ("seconds=nan", "seconds=nan must be above 0 and at most 5 here."),
        ("seconds=long", "seconds='long' must be a number."),
        ("seed=-1", f"seed=-1 must be from 0 to {serving.MAX_SEED}."),
        ("top_p=2", "top-p=2.0 must be above 0 and at most 1; leave it out to keep every token."),
        ("temperature=1e9", "temperature=1000000000.0 must be between 0"),
        ("prompt=/etc/passwd", "prompt='/etc/passwd' is unknown here; there are seconds, temperature, seed, top_p."),
    ],
)
def test_what_cannot_be_made_is_refused_in_a_line(server: Server, query: str, line: str) -> None:
    answer, content = ask(server, "POST", f"/sample?{query}")
    assert (answer.status, content.count(b"\n")) == (400, 1)
    assert content.decode().startswith(line)


def test_uploads_have_a_limit_and_must_be_audio(server: Server) -> None:
    for body, headers, status in (
        (b"x" * 100, {}, 400),
        (None, {"Content_Length": str(serving.MAX_UPLOAD_BYTES + 1)}, 413),
        (None, {"Content_Length": "-5"}, 400),
        (None, {"Transfer_Encoding": "chunked"}, 411),
    ):
        answer, content = ask(server, "POST", "/sample", body, **headers)
        assert (answer.status, content.count(b"\n")) == (status, 1)
    assert ask(server, "GET", "/../etc/passwd")[0].status == 404
    assert ask(server, "POST", "/")[0].status == 404


def test_pages_from_elsewhere_cannot_ask(server: Server) -> None:
    port = server.server_address[1]
    for host, status in {
        f"127.0.0.1:{port}": 200,
        f"localhost:{port}": 200,
        f"[::1]:{port}": 200,
        "127.0.0.1": 421,
        f"evil.example:{port}": 421,
        f"192.168.0.9:{port}": 421,
        f"user@127.0.0.1:{port}": 421,
        f"127.0.0.1:{port}/x": 421,
        "[": 421,
    }.items():
        assert ask(server, "GET", "/status", Host=host)[0].status == status, host
    ours, theirs = f"http://127.0.0.1:{port}", f"http://evil.example:{port}"
    for origin, status in {ours: 200, theirs: 403, "null": 403, f"http://127.0.0.1:{port + 1}": 403}.items():
        assert ask(server, "POST", "/sample?seconds=0.001", Origin=origin)[0].status == status, origin


def test_one_is_made_at_a_time_and_few_wait(maker: Maker) -> None:
    wish = maker.wish({"seconds": "0.01"})
    making = [maker.make(wish, None) for _ in range(1 + serving.MAX_WAITING)]
    next(making[0])
    waiting = [threading.Thread(target=list, args=(each,)) for each in making[1:]]
    for thread in waiting:
        thread.start()
    while maker.num_waiting < serving.MAX_WAITING:
        time.sleep(0.01)
    with pytest.raises(RefusedError, match=f"one waveform is being made and {serving.MAX_WAITING} wait"):
        next(maker.make(wish, None))
    making[0].close()  # type: ignore[attr-defined]
    for thread in waiting:
        thread.join()
    assert (maker.doing, maker.num_waiting) == ("nothing", 0)


def test_who_goes_away_lets_the_next_one_begin(server: Server) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=300)
    connection.request("POST", "/sample?seconds=0.3")
    with connection.getresponse() as answer:
        assert len(answer.read(50)) == 50
    connection.close()
    assert ask(server, "POST", "/sample?seconds=0.001")[0].status == 200


def test_other_machines_come_in_only_where_that_is_asked_for(maker: Maker) -> None:
    with Server(maker, "0.0.0.0", 0) as open_to_all:
        port = open_to_all.server_address[1]
        assert not open_to_all.is_local
        assert open_to_all.knows(f"192.168.0.9:{port}")
        assert not open_to_all.knows(f"evil.example:{port}")
        with pytest.raises(InputError, match=f"host='0.0.0.0', port={port}: Address already in use; choose others"):
            Server(maker, "0.0.0.0", port)
    with pytest.raises(InputError, match=r"host='no\.such\.host\.invalid'"):
        Server(maker, "no.such.host.invalid", 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it(number: int, tmp_path: Path) -> None:
    program = [sys.executable, "-m", "audio_ct", "serve", "syllables-wavenet", "--port", "0"]
    process = subprocess.Popen(
        program,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ},
        # Where a shell started the tests in its background, SIGINT would do nothing.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("page: http://127.0.0.1:")
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "", "ending\n")


def test_a_model_of_bytes_has_no_page(maker: Maker, command: Callable[..., int], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a model of bytes"):
        Maker(replace(maker.model, codec=ByteCodec()), max_seconds=5.0)
    assert command("serve", tmp_path / "nowhere") == 2
