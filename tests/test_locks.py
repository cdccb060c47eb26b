"""A folder has one process, whose end frees it whatever ended it; the second one is told whose the folder is."""

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from audio_ct import locks
from audio_ct.errors import InputError
from audio_ct.locks import LOCK_FILE, clear, hold

pytestmark = pytest.mark.fault("two at once")

PROGRAM = """
import sys
from pathlib import Path
from audio_ct.locks import hold

with hold(Path(sys.argv[1]), name="it"):
    Path(sys.argv[1], "work").write_text("begun")
    print("held", flush=True)
    sys.stdin.read()
"""


def start(folder: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGKILL, None], ids=["killed", "ended"])
def test_the_second_process_is_refused_until_the_first_has_ended(tmp_path: Path, number: int | None) -> None:
    folder = tmp_path / "run"
    process = start(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    owner = f"process {process.pid} on {socket.gethostname()}"
    message = re.escape(f"--run-dir 'run' is in use by {owner}")
    with pytest.raises(InputError, match=message) as refused, hold(folder, name="--run-dir 'run'"):
        pytest.fail("two at once")
    assert "\n" not in str(refused.value)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    if number is not None:
        process.send_signal(number)
    process.communicate(timeout=60)
    with hold(folder, name="--run-dir 'run'"):
        assert json.loads((folder / LOCK_FILE).read_bytes())["pid"] == os.getpid()
        assert (folder / "work").read_text() == "begun"


def test_a_child_holds_on_what_it_inherits(tmp_path: Path) -> None:
    with hold(tmp_path / "study", name="study") as lock:
        (tmp_path / "study/table.md").touch()
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[lock])
    with pytest.raises(InputError, match=r"or by a command that it started"), hold(tmp_path / "study", name="study"):
        pytest.fail("two at once")
    child.communicate(b"\n", timeout=60)
    with hold(tmp_path / "study", name="study"):
        pass


def test_a_folder_that_holds_nothing_else_is_removed(tmp_path: Path) -> None:
    with hold(tmp_path / "runs/one", name="one"):
        (tmp_path / "runs/one/folder").mkdir()
        (tmp_path / "runs/one/folder/file").touch()
        (tmp_path / "runs/one/link").symlink_to(tmp_path)
        clear(tmp_path / "runs/one")
        assert os.listdir(tmp_path / "runs/one") == [LOCK_FILE]
    assert os.listdir(tmp_path / "runs") == []


def test_a_folder_that_was_renamed_leaves_its_place_to_the_next(tmp_path: Path) -> None:
    making, place = tmp_path / ".store.partial", tmp_path / "store"
    with hold(making, name="store"):
        making.rename(place)
        with hold(making, name="store"), pytest.raises(InputError, match="in use"), hold(place, name="store"):
            pytest.fail("two at once")
        making.mkdir()
        (making / LOCK_FILE).write_text("of the next")
    assert (making / LOCK_FILE).read_text() == "of the next"


def test_a_lock_on_a_file_that_was_removed_keeps_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock_descriptor, path = locks.lock_descriptor, tmp_path / LOCK_FILE
    opened = []

    def removed_meanwhile(lock: int, *, blocking: bool) -> bool:
        opened.append(os.fstat(lock).st_ino)
        if len(opened) == 1:
            path.rename(tmp_path / "removed")
        return lock_descriptor(lock, blocking=blocking)

    monkeypatch.setattr(locks, "lock_descriptor", removed_meanwhile)
    with hold(tmp_path, name="it") as lock:
        assert len(opened) == 2
        assert os.fstat(lock).st_ino == path.stat().st_ino


def test_places_that_cannot_be_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "letter.txt").write_text("mine")
    message = r"^it cannot be made or written: .*; choose a writable place\.$"
    with pytest.raises(InputError, match=message), hold(tmp_path / "letter.txt", name="it"):
        pytest.fail("a file")
    (tmp_path / LOCK_FILE).symlink_to(tmp_path / "letter.txt")
    with pytest.raises(InputError, match="cannot be made or written"), hold(tmp_path, name="it"):
        pytest.fail("a link")
    assert (tmp_path / "letter.txt").read_text() == "mine"

    def without_locks(lock: int, *, blocking: bool) -> bool:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(locks, "lock_descriptor", without_locks)
    with hold(tmp_path / "drive", name="--run-dir 'drive'"):
        pass
    assert caplog.messages == [
        "--run-dir 'drive' cannot be locked there (No locks available); let no other process write to it"
    ]


def test_a_place_where_no_folder_can_be_is_refused_in_time() -> None:
    """There, making a folder says that the file is not found."""
    place = Path("/proc/no-such-place")
    if not place.parent.is_dir():
        pytest.skip("no /proc here")
    with pytest.raises(InputError, match="cannot be made or written"), hold(place, name="--run-dir"):
        pass
