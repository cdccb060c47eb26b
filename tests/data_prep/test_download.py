"""Downloads: resumed where they were cut off, refused if not what was published, unpacked whole or not at all."""

import hashlib
import io
import os
import shutil
import stat
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from audio_ct.errors import InputError
from audio_ct.locks import hold
from data_prep import download
from data_prep.corpus import Archive
from data_prep.download import MARKER, DownloadError, fetch
from data_prep.source import Source


@dataclass
class Server:
    """Serves `content` at every path, as the fields say, and keeps the requests' ranges."""

    content: bytes = b""
    status: int = 200
    content_type: str = "application/octet-stream"
    cut_after: list[int] = field(default_factory=list)
    """Of the following connections, after how many bytes each is cut."""
    knows_ranges: bool = True
    states_length: bool = True
    ranges: list[str | None] = field(default_factory=list)
    port: int = 0

    def archive(self, name: str = "corpus.tar.gz", *, num_bytes: int | None = None) -> Archive:
        digest = hashlib.sha256(self.content).hexdigest()
        return Archive(f"http://127.0.0.1:{self.port}/{name}", f"sha256:{digest}", num_bytes)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        asked = request.headers.get("Range")
        self.ranges.append(asked)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.knows_ranges else 0
        if start >= len(self.content) > 0:
            request.send_response(416)
            request.send_header("Content-Range", f"bytes */{len(self.content)}")
            request.end_headers()
            return
        body = self.content[start:]
        request.send_response(206 if start and self.status == 200 else self.status)
        request.send_header("Content-Type", self.content_type)
        if self.states_length:
            request.send_header("Content-Length", str(len(body)))
        if start:
            end = len(self.content) - 1
            request.send_header("Content-Range", f"bytes {start}-{end}/{len(self.content)}")
        request.end_headers()
        request.wfile.write(body[: self.cut_after.pop(0) if self.cut_after else None])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    served = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.answer(self)

        def log_message(self, *_: object) -> None:
            pass

    # Else the disk's whole cache is flushed, also that of other processes.
    monkeypatch.setattr(os, "sync", lambda: None)
    monkeypatch.setattr(download, "WAIT_SECONDS", 0.0)
    monkeypatch.setattr(download, "CHUNK_BYTES", 1000)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        served.port = http.server_address[1]
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield served
        http.shutdown()
        thread.join()


def tar_of(files: dict[str, bytes], *, mode: str = "w:gz") -> bytes:
    """An archive of files; a name that ends with a slash is a folder."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name.rstrip("/"))
            member.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def tar_with(member: tarfile.TarInfo) -> bytes:
    """An archive of a good file and then a bad member."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        tar.addfile(tarfile.TarInfo("corpus/good.wav"))
        tar.addfile(member)
    return buffer.getvalue()


def zip_of(files: dict[str, bytes], *, mode: int = stat.S_IFREG | 0o644) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zipped:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.create_system, info.compress_type = 3, zipfile.ZIP_DEFLATED
            info.external_attr = mode << 16
            zipped.writestr(info, content)
    return buffer.getvalue()


def content_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != MARKER
    }


# Incompressible, so that a part of the archive is a part of the files.
FILES = {"./": b"", "./corpus/": b"", "./corpus/a.wav": os.urandom(300_000), "./corpus/b/ü.txt": "größer".encode()}
UNPACKED = {"corpus/a.wav": FILES["./corpus/a.wav"], "corpus/b/ü.txt": FILES["./corpus/b/ü.txt"]}


@pytest.mark.parametrize("name", ["c.tar", "c.tar.gz", "c.tgz", "c.tar.bz2", "c.zip"])
def test_an_archive_is_unpacked_and_a_second_run_does_nothing(server: Server, tmp_path: Path, name: str) -> None:
    modes = {"c.tar": "w", "c.tar.bz2": "w:bz2"}
    server.content = zip_of(FILES) if name == "c.zip" else tar_of(FILES, mode=modes.get(name, "w:gz"))
    archive = server.archive(name, num_bytes=len(server.content))
    for _ in range(2):
        assert fetch([archive], tmp_path / "corpus", progress=False) == tmp_path / "corpus"
        assert content_of(tmp_path / "corpus") == UNPACKED
        assert [path.name for path in tmp_path.iterdir()] == ["corpus"]
    assert server.ranges == [None]
    # The marker is hidden from the corpora.
    assert [file.path for file in Source(str(tmp_path / "corpus")).files()] == sorted(UNPACKED)


def test_a_further_archive_joins_what_is_there(server: Server, tmp_path: Path) -> None:
    server.content = tar_of({"Libri/dev-clean/a.wav": b"a", "Libri/README": b"old"})
    fetch([server.archive("dev-clean.tar.gz")], tmp_path / "corpus", progress=False)
    first = server.archive("dev-clean.tar.gz")
    server.content = tar_of({"Libri/test-clean/b.wav": b"b", "Libri/README": b"new"})
    fetch([first, server.archive("test-clean.tar.gz")], tmp_path / "corpus", progress=False)
    assert content_of(tmp_path / "corpus") == {
        "Libri/dev-clean/a.wav": b"a",
        "Libri/test-clean/b.wav": b"b",
        "Libri/README": b"new",
    }
    assert len(server.ranges) == 2


@pytest.mark.fault("archive")
def test_a_cut_connection_is_gone_on_with(server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    server.content = tar_of(FILES)
    server.cut_after = [100_000, 50_000, 0, 0]
    fetch([server.archive()], tmp_path / "corpus", progress=True)
    assert server.ranges == [None, "bytes=100000-", "bytes=150000-", "bytes=150000-", "bytes=150000-"]
    assert content_of(tmp_path / "corpus") == UNPACKED
    assert "corpus.tar.gz" in capfd.readouterr().err


@pytest.mark.fault("archive")
def test_what_has_arrived_is_kept_for_the_next_run(server: Server, tmp_path: Path) -> None:
    server.content = tar_of(FILES)
    server.cut_after = [100_000, *[0] * download.ATTEMPTS]
    with pytest.raises(DownloadError, match=r"stopped after 100,000 bytes .* run again") as caught:
        fetch([server.archive()], tmp_path / "corpus", progress=False)
    assert len(str(caught.value).splitlines()) == 1
    assert (tmp_path / "corpus.download/corpus.tar.gz.partial").read_bytes() == server.content[:100_000]
    assert not (tmp_path / "corpus").exists()
    fetch([server.archive()], tmp_path / "corpus", progress=False)
    assert server.ranges[-1] == "bytes=100000-"
    assert content_of(tmp_path / "corpus") == UNPACKED
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


@pytest.mark.parametrize("num_bytes_known", [False, True])
def test_a_file_that_had_arrived_whole_is_not_asked_for_again(
    server: Server, tmp_path: Path, num_bytes_known: bool
) -> None:
    server.content = tar_of(FILES)
    (tmp_path / "corpus.download").mkdir()
    (tmp_path / "corpus.download/corpus.tar.gz.partial").write_bytes(server.content)
    archive = server.archive(num_bytes=len(server.content) if num_bytes_known else None)
    fetch([archive], tmp_path / "corpus", progress=False)
    assert server.ranges == ([] if num_bytes_known else [f"bytes={len(server.content)}-"])
    assert content_of(tmp_path / "corpus") == UNPACKED


def test_a_server_without_ranges_or_lengths_starts_anew(server: Server, tmp_path: Path) -> None:
    server.content = tar_of(FILES)
    server.knows_ranges = server.states_length = False
    (tmp_path / "corpus.download").mkdir()
    (tmp_path / "corpus.download/corpus.tar.gz.partial").write_bytes(server.content[:1000])
    fetch([server.archive()], tmp_path / "corpus", progress=True)
    assert content_of(tmp_path / "corpus") == UNPACKED


def test_a_file_system_without_hard_links(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    server.content = tar_of(FILES)
    fetch([server.archive()], tmp_path / "corpus", progress=False)
    assert content_of(tmp_path / "corpus") == UNPACKED


@pytest.mark.fault("archive")
def test_a_wrong_hash_is_removed_and_said(server: Server, tmp_path: Path) -> None:
    server.content = tar_of(FILES)
    archive = server.archive()
    server.content = server.content[:-1] + bytes([server.content[-1] ^ 1])
    with pytest.raises(DownloadError, match=r"does not have its published hash sha256:\w+ and was removed; try again"):
        fetch([archive], tmp_path / "corpus", progress=False)
    assert not (tmp_path / "corpus").exists()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.fault("archive")
def test_answers_that_are_no_archive(server: Server, tmp_path: Path) -> None:
    server.content = b"<html>sign in</html>"
    server.content_type = "text/html; charset=utf-8"
    partial = tmp_path / "corpus.download/corpus.tar.gz.partial"
    partial.parent.mkdir()
    partial.write_bytes(b"begun")
    with pytest.raises(DownloadError, match="a page for readers and not the archive"):
        fetch([server.archive()], tmp_path / "corpus", progress=False)
    server.status = 404
    with pytest.raises(DownloadError, match="status 404"):
        fetch([server.archive()], tmp_path / "corpus", progress=False)
    server.status, server.content_type = 200, "application/gzip"
    with pytest.raises(DownloadError, match=r"has 20 bytes, and 7,000 were published"):
        fetch([server.archive(num_bytes=7000)], tmp_path / "corpus", progress=False)
    assert partial.read_bytes() == b"begun"
    server.status = 503
    asked = len(server.ranges)
    with pytest.raises(DownloadError, match=r"stopped after 5 bytes \(status 503\)"):
        fetch([server.archive()], tmp_path / "corpus", progress=False)
    assert len(server.ranges) - asked == download.ATTEMPTS


def test_nobody_answers(server: Server, tmp_path: Path) -> None:
    archive = Archive("http://127.0.0.1:1/corpus.tar.gz", "sha256:" + "0" * 64)
    with pytest.raises(DownloadError, match=r"stopped after 0 bytes \(ConnectionError\)"):
        fetch([archive], tmp_path / "corpus", progress=False)


def bad_member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member


@pytest.mark.fault("archive")
@pytest.mark.parametrize(
    "member",
    [
        bad_member("../outside.wav"),
        bad_member("corpus/../../outside.wav"),
        bad_member("/tmp/outside.wav"),
        bad_member("corpus/link.wav", tarfile.SYMTYPE, "/etc/passwd"),
        bad_member("corpus/hard.wav", tarfile.LNKTYPE, "corpus/good.wav"),
        bad_member("corpus/pipe.wav", tarfile.FIFOTYPE),
        bad_member("corpus/device", tarfile.CHRTYPE),
        bad_member("corpus/sparse.wav", tarfile.GNUTYPE_SPARSE),
    ],
    ids=lambda member: member.name,
)
def test_an_archive_that_reaches_out_is_refused(server: Server, tmp_path: Path, member: tarfile.TarInfo) -> None:
    server.content = tar_with(member)
    with pytest.raises(DownloadError, match="is not a regular file or folder within it") as caught:
        fetch([server.archive("corpus.tar")], tmp_path / "deep/corpus", progress=False)
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "deep/corpus").exists()
    assert not list(tmp_path.rglob("outside*"))
    assert not list(tmp_path.rglob("*.tar"))


@pytest.mark.fault("archive")
@pytest.mark.parametrize(("name", "mode"), [("../outside.wav", stat.S_IFREG), ("link.wav", stat.S_IFLNK)])
def test_a_zip_that_reaches_out_is_refused(server: Server, tmp_path: Path, name: str, mode: int) -> None:
    server.content = zip_of({name: b"/etc/passwd"}, mode=mode | 0o777)
    with pytest.raises(DownloadError, match="is not a regular file or folder within it"):
        fetch([server.archive("corpus.zip")], tmp_path / "corpus", progress=False)
    assert not list(tmp_path.rglob("*.wav"))


@pytest.mark.fault("archive")
@pytest.mark.parametrize("name", ["corpus.tar.gz", "corpus.zip"])
def test_a_bomb_is_refused_before_it_is_written(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    pack = zip_of if name.endswith(".zip") else tar_of
    server.content = pack({f"corpus/{index}.wav": bytes(4_000_000) for index in range(6)})
    with pytest.raises(DownloadError, match=r"holds more than 20,971,520 bytes or .* is refused"):
        fetch([server.archive(name)], tmp_path / "corpus", progress=False)
    monkeypatch.setattr(download, "MAXIMUM_FILES", 3)
    server.content = pack({f"corpus/{index}.wav": b"" for index in range(4)})
    with pytest.raises(DownloadError, match=r"or 3 files and is refused"):
        fetch([server.archive(name)], tmp_path / "corpus", progress=False)
    assert not (tmp_path / "corpus").exists()


@pytest.mark.fault("archive")
@pytest.mark.parametrize("name", ["corpus.tar.gz", "corpus.zip"])
def test_what_is_no_archive_is_one_line(server: Server, tmp_path: Path, name: str) -> None:
    server.content = b"no archive" * 100
    with pytest.raises(DownloadError, match="cannot be unpacked"):
        fetch([server.archive(name)], tmp_path / "corpus", progress=False)


@pytest.mark.fault("full disk")
def test_a_full_disk_is_one_line(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.content = tar_of(FILES)
    with monkeypatch.context() as patch:
        patch.setattr(
            shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 2 * len(server.content) - 1)
        )
        with pytest.raises(DownloadError, match=r"needs 60\d,\d+ bytes packed and unpacked, and .* has 60"):
            fetch([server.archive()], tmp_path / "corpus", progress=False)
    full = OSError(28, "No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", lambda *_: (_ for _ in ()).throw(full))
        with pytest.raises(DownloadError, match="cannot be written: No space left on device; make room"):
            fetch([server.archive()], tmp_path / "corpus", progress=False)
    fetch([server.archive()], tmp_path / "corpus", progress=False)
    assert content_of(tmp_path / "corpus") == UNPACKED
    assert len(server.ranges) == 2, "the archive had been kept"


def test_killed_between_any_two_steps_it_goes_on(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interruption stands for a kill: at each call that changes the disk's names, the next run ends well."""
    server.content = tar_of(FILES)
    first = server.archive()
    server.content = tar_of({"corpus/more/c.wav": b"c", "corpus/b/ü.txt": b"newer"})
    second = server.archive("more.tar.gz")
    contents = {first.url: tar_of(FILES), second.url: server.content}
    for step in range(100):
        for path in tmp_path.iterdir():
            shutil.rmtree(path)
        calls = 0

        def counted(function: object, step: int = step) -> object:
            def call(*args: object, **kwargs: object) -> object:
                nonlocal calls
                calls += 1
                if calls == step + 1:
                    raise KeyboardInterrupt
                return function(*args, **kwargs)  # type: ignore[operator]

            return call

        interrupted = False
        with monkeypatch.context() as patch:
            for name in ("rename", "replace", "unlink", "mkdir", "write_bytes"):
                patch.setattr(Path, name, counted(getattr(Path, name)))
            try:
                for archive in (first, second):
                    server.content = contents[archive.url]
                    fetch([archive], tmp_path / "corpus", progress=False)
            except KeyboardInterrupt:
                interrupted = True
        there = content_of(tmp_path / "corpus")
        assert there.keys() in (set(), set(UNPACKED), {*UNPACKED, "corpus/more/c.wav"})
        for archive in (first, second):
            server.content = contents[archive.url]
            fetch([archive], tmp_path / "corpus", progress=False)
        assert content_of(tmp_path / "corpus") == UNPACKED | {"corpus/more/c.wav": b"c", "corpus/b/ü.txt": b"newer"}
        assert [path.name for path in tmp_path.iterdir()] == ["corpus"]
        if not interrupted:
            assert step > 10
            return
    pytest.fail("it never ended")


def test_places_that_cannot_be_used(server: Server, tmp_path: Path) -> None:
    server.content = tar_of(FILES)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("all of it")
    with pytest.raises(DownloadError, match="holds what was not downloaded by this command"):
        fetch([server.archive()], tmp_path / "mine", progress=False)
    with pytest.raises(DownloadError, match="holds what was not downloaded by this command"):
        fetch([server.archive()], tmp_path / "mine/thesis.txt", progress=False)
    assert (tmp_path / "mine/thesis.txt").read_text() == "all of it"
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / MARKER).write_text("{")
    with pytest.raises(DownloadError, match="is damaged"):
        fetch([server.archive()], tmp_path / "damaged", progress=False)
    with (
        hold(tmp_path / "corpus.download", name="corpus"),
        pytest.raises(InputError, match=f"is being downloaded by process {os.getpid()}"),
    ):
        fetch([server.archive()], tmp_path / "corpus", progress=False)
    (tmp_path / "empty").mkdir()
    fetch([server.archive()], tmp_path / "empty", progress=False)
    assert content_of(tmp_path / "empty") == UNPACKED
