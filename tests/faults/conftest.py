"""A small disk of its own, to be filled."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

PAGE_BYTES = 4096
DISK_BYTES = 4 << 20
# A process with a file system in memory that nobody else has mounted; through /proc others reach it all the same.
HOLDER = 'mount -t tmpfs -o size="$1" tmpfs "$0" && echo mounted && read _'


class Disk:
    """A disk of 4 MiB."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / ".filler"

    def leave(self, num_pages: int) -> None:
        """Fill it but for so many pages of 4 KiB."""
        with self._filler.open("wb", buffering=0) as file:
            try:
                while file.write(b"\0" * PAGE_BYTES) == PAGE_BYTES:
                    pass
            except OSError:
                file.truncate(max(0, file.tell() // PAGE_BYTES - num_pages) * PAGE_BYTES)

    def free(self) -> None:
        """Make room again."""
        self._filler.unlink()

    def content(self) -> dict[str, bytes]:
        """All files that can be seen."""
        files = (path for path in self.path.rglob("*") if path.is_file())
        names = {path: str(path.relative_to(self.path)) for path in files}
        return {name: path.read_bytes() for path, name in names.items() if not any(map(hidden, Path(name).parts))}


def hidden(name: str) -> bool:
    return name.startswith(".")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    place = tmp_path / "disk"
    place.mkdir()
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", HOLDER, place, str(DISK_BYTES)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert holder.stdout is not None
    if holder.stdout.readline() != b"mounted\n":
        pytest.skip("this machine mounts no file systems for users")
    yield Disk(Path(f"/proc/{holder.pid}/root{place}"))
    holder.communicate()
