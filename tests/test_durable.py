"""Files and folders are whole or absent, and links and pipes are not read."""

import hashlib
import os
from pathlib import Path

import pytest

from audio_ct.durable import install, open_regular, sha256_of, write_whole
from audio_ct.errors import DamagedError


def test_content_takes_the_place_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    for content in (b"first", b"second"):
        write_whole(path, content)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.fault("full disk")
def test_a_full_disk_leaves_what_was_there_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "record.json"
    write_whole(path, b"first")

    def full(descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space") as caught:
        write_whole(path, b"second")
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were synchronised and renamed, in order."""
    calls: list[str] = []
    fsync = os.fsync

    def logged_fsync(descriptor: int) -> None:
        calls.append("fsync " + Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", logged_fsync)
    for name in ("rename", "replace"):
        move = getattr(Path, name)

        def logged_move(self: Path, target: Path, move: object = move) -> Path:
            calls.append(f"rename {self.name} {target.name}")
            return move(self, target)

        monkeypatch.setattr(Path, name, logged_move)
    return calls


def test_content_is_on_the_disk_before_it_has_its_name(tmp_path: Path, calls: list[str]) -> None:
    write_whole(tmp_path / "record.json", b"first")
    temporary = f".record.json.{os.getpid()}.tmp"
    assert calls == [f"fsync {temporary}", f"rename {temporary} record.json", f"fsync {tmp_path.name}"]


@pytest.mark.parametrize("replaced", [None, ".hidden"])
def test_a_folder_is_on_the_disk_before_it_has_its_name(tmp_path: Path, calls: list[str], replaced: str | None) -> None:
    for content, expected in (("old", []), ("new", [f"rename whole {replaced or 'whole.replaced'}"])):
        (tmp_path / "part").mkdir()
        for name in ("b", "a"):
            (tmp_path / "part" / name).write_text(content)
        install(tmp_path / "part", tmp_path / "whole", replaced=None if replaced is None else tmp_path / replaced)
        files = ["fsync a", "fsync b", "fsync part"]
        assert calls == [*files, *expected, "rename part whole", f"fsync {tmp_path.name}"]
        calls.clear()
    assert (tmp_path / "whole/a").read_text() == "new"
    assert (tmp_path / (replaced or "whole.replaced") / "a").read_text() == "old"
    assert not (tmp_path / "part").exists()


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    with open_regular(tmp_path / "file", whole="checkpoint") as file:
        assert file.read() == b"content"
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "pipe")
    for name, message in (
        ("absent", "absent: missing from the checkpoint; use another checkpoint"),
        ("link", "a symbolic link; a checkpoint holds regular files only"),
        ("pipe", "not a regular file; a checkpoint"),
        (".", "not a regular file; a checkpoint"),
    ):
        with pytest.raises(DamagedError, match=message):
            open_regular(tmp_path / name, whole="checkpoint")
    with pytest.raises(DamagedError, match="missing from the token store; prepare it again"):
        open_regular(tmp_path / "absent", whole="token store", remedy="prepare it again")


def test_hashes_of_paths_and_of_open_files(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    with (tmp_path / "file").open("rb") as file:
        assert sha256_of(tmp_path / "file") == sha256_of(file) == hashlib.sha256(b"content").hexdigest()
