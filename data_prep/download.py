"""Downloads of corpora: gone on with where they were cut off, checked by their published hashes, unpacked with care.

An archive is what somebody else has put on a server. It is unpacked only if it has the published hash, and even then it
may hold nothing but regular files and folders below its own folder, and no more of them than a corpus would.
"""

import json
import logging
import os
import shutil
import stat
import tarfile
import time
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO
from urllib.parse import urlsplit

import pooch
import requests

from audio_ct.durable import synchronise, write_whole
from audio_ct.errors import AudioCTError
from audio_ct.locks import clear, hold
from audio_ct.progress import Progress

from .corpus import Archive

# In the folder, so that one look tells what is there; hidden, so that no corpus takes it for its own.
MARKER = ".unpacked.json"
CONNECT_SECONDS = 15.0
# Without a byte.
SILENT_SECONDS = 60.0
# In a row, none of which brought a byte.
ATTEMPTS = 4
WAIT_SECONDS = 2.0
# The last one is lost when a connection is cut.
CHUNK_BYTES = 1 << 16
# A text compresses to a quarter and sound to a half; what unpacks to more than this is made to fill the disk.
MAXIMUM_EXPANSION = 20
SMALL_ARCHIVE_BYTES = 1 << 20
MAXIMUM_FILES = 5_000_000


class DownloadError(AudioCTError, OSError):
    """An archive cannot be had, or is not what was published."""


def fetch(archives: Iterable[Archive], folder: Path, *, progress: bool) -> Path:
    """Download archives and unpack them into one folder; those that have been unpacked there are left alone.

    Everything is made in a folder beside, "NAME.download", and renamed: killed at any moment, this goes on when it is
    called again. An archive is removed once it has been unpacked.

    Args:
        archives: What to download.
        folder: Where they are unpacked; made if it is not there.
        progress: Show progress on standard error.

    Returns:
        The folder.

    Raises:
        DownloadError: If an archive cannot be had, is not what was published, or holds what no corpus does, if there is
            no room for it, or if the folder holds something else.
        InputError: If another process downloads into the folder.
    """
    place = Path(os.path.abspath(folder))
    beside = place.with_name(f"{place.name}.download")
    wanted = list(archives)
    if all(archive.known_hash in _unpacked(place) for archive in wanted) and not beside.exists():
        return folder
    try:
        with hold(beside, name=repr(str(place)), use="being downloaded"):
            for archive in wanted:
                if archive.known_hash in _unpacked(place):
                    continue
                file = _download(archive, beside, progress)
                try:
                    _unpack(file, beside / "unpacked", progress)
                except DownloadError:
                    # With the published hash, it would be the same again.
                    file.unlink()
                    raise
                _install(beside / "unpacked", place, archive)
                file.unlink()
            clear(beside)
    except AudioCTError:
        raise
    except OSError as error:
        raise DownloadError(
            f"{str(place)!r} cannot be written: {error.strerror or error}; make room or choose another place. What has "
            "arrived is kept beside it."
        ) from error
    return folder


def _unpacked(place: Path) -> dict[str, str]:
    """Addresses of the archives that have been unpacked, by hash.

    Raises:
        DownloadError: If the folder holds something that does not come from here.
    """
    marker = place / MARKER
    try:
        return dict(json.loads(marker.read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError):
        if not place.exists() or (place.is_dir() and not any(place.iterdir())):
            return {}
        raise DownloadError(
            f"{str(place)!r} holds what was not downloaded by this command; choose a new folder, or prepare what "
            "is there without a download."
        ) from None
    except (ValueError, TypeError) as error:
        raise DownloadError(f"{str(marker)!r} is damaged: {error}; remove its folder and download again.") from error


def _download(archive: Archive, folder: Path, progress: bool) -> Path:
    """The archive's file, with the published hash."""
    name = PurePosixPath(urlsplit(archive.url).path).name
    partial = folder / f"{name}.partial"

    def complete(url: str, output: str, _: object) -> None:
        _receive_all(archive, partial, progress)
        os.unlink(output)
        try:
            # A second name: if this is killed while it is hashed, which takes an hour for terabytes, it is still there.
            os.link(partial, output)
        except OSError:
            # A file system without them.
            partial.replace(output)

    pooch.get_logger().setLevel(logging.WARNING)
    try:
        path = pooch.retrieve(archive.url, archive.known_hash, fname=name, path=folder, downloader=complete)
    except ValueError as error:
        partial.unlink(missing_ok=True)
        raise DownloadError(
            f"{archive.url} does not have its published hash {archive.known_hash} and was removed; try again, and get "
            "it by other means if that does not help."
        ) from error
    partial.unlink(missing_ok=True)
    return Path(path)


def _receive_all(archive: Archive, partial: Path, progress: bool) -> None:
    """Complete a file that may be there in part, in as many connections as that takes."""
    num_failed = 0
    while True:
        num_bytes = partial.stat().st_size if partial.exists() else 0
        if num_bytes and num_bytes == archive.num_bytes:
            return
        try:
            return _receive(archive, partial, progress)
        except requests.RequestException as error:
            arrived = partial.stat().st_size if partial.exists() else 0
            num_failed = num_failed + 1 if arrived <= num_bytes else 0
            if num_failed == ATTEMPTS:
                reason = str(error) if isinstance(error, requests.HTTPError) else type(error).__name__
                raise DownloadError(
                    f"{archive.url} stopped after {arrived:,} bytes ({reason}); run again to go on from there."
                ) from error
        time.sleep(WAIT_SECONDS * 2**num_failed)


def _receive(archive: Archive, partial: Path, progress: bool) -> None:
    """Append what one connection brings.

    Raises:
        DownloadError: If the server has something else.
        requests.RequestException: If the connection is cut, or the server is busy.
    """
    start = partial.stat().st_size if partial.exists() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    timeout = (CONNECT_SECONDS, SILENT_SECONDS)
    with requests.get(archive.url, headers=headers, stream=True, timeout=timeout) as response:
        content_range = response.headers.get("Content-Range", "")
        if response.status_code == requests.codes.range_not_satisfiable:
            if content_range == f"bytes */{start}":
                return
            partial.unlink()
            raise requests.HTTPError("has fewer bytes than before")
        if response.status_code >= 500 or response.status_code == requests.codes.too_many_requests:
            raise requests.HTTPError(f"status {response.status_code}")
        if response.status_code not in (requests.codes.ok, requests.codes.partial_content):
            raise DownloadError(
                f"{archive.url} cannot be had: the server answers with status {response.status_code}; get it by other "
                "means."
            )
        if "html" in response.headers.get("Content-Type", ""):
            raise DownloadError(
                f"{archive.url} gives a page for readers and not the archive; open it in a browser, it may ask for "
                "something."
            )
        if response.status_code == requests.codes.ok:
            start = 0
        elif not content_range.startswith(f"bytes {start}-"):
            raise requests.HTTPError("answers with another part")
        length = response.headers.get("Content-Length")
        total = archive.num_bytes if length is None else start + int(length)
        if archive.num_bytes not in (None, total):
            raise DownloadError(
                f"{archive.url} has {total:,} bytes, and {archive.num_bytes:,} were published; get it by other means."
            )
        _require_room(partial.parent, (total or 0) - start + (total or 0), archive.url)
        with (
            partial.open("ab" if start else "wb") as file,
            Progress(partial.stem, total or 0, unit="bytes", done=start, shown=progress, tenths=bool(total)) as bar,
        ):
            for chunk in response.iter_content(CHUNK_BYTES):
                file.write(chunk)
                bar.update(file.tell())
            if total is not None and file.tell() < total:
                raise requests.ConnectionError("cut off")


def _require_room(folder: Path, num_bytes: int, what: str) -> None:
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise DownloadError(
            f"{what} needs {num_bytes:,} bytes packed and unpacked, and {str(folder)!r} has {free:,}; choose a place "
            "with more room."
        )


def _unpack(file: Path, folder: Path, progress: bool) -> None:
    """Unpack an archive into a folder that is made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    packed_bytes = file.stat().st_size
    maximum_bytes = MAXIMUM_EXPANSION * max(packed_bytes, SMALL_ARCHIVE_BYTES)
    num_files = num_bytes = 0
    try:
        with (
            file.open("rb") as opened,
            Progress(f"unpack {file.name}", packed_bytes, unit="bytes", shown=progress, tenths=True) as bar,
        ):
            for name, size, content in _members(file.name, opened):
                num_files, num_bytes = num_files + 1, num_bytes + size
                if num_files > MAXIMUM_FILES or num_bytes > maximum_bytes:
                    raise DownloadError(
                        f"{file.name} of {packed_bytes:,} bytes holds more than {maximum_bytes:,} bytes or "
                        f"{MAXIMUM_FILES:,} files and is refused; no corpus is packed so."
                    )
                path = folder.joinpath(*_parts(name, file.name))
                (path.parent if content else path).mkdir(parents=True, exist_ok=True)
                if content:
                    with path.open("wb") as target:
                        shutil.copyfileobj(content, target, CHUNK_BYTES)
                bar.update(min(opened.tell(), packed_bytes))
    except (tarfile.TarError, zipfile.BadZipFile, RuntimeError, zlib.error, EOFError) as error:
        raise DownloadError(f"{file.name} cannot be unpacked: {error}; get it by other means.") from error


def _members(archive_name: str, file: BinaryIO) -> Iterator[tuple[str, int, IO[bytes] | None]]:
    """Yield (name, size, content) of an archive's files, and (name, 0, None) of its folders, in their order."""
    if archive_name.endswith(".zip"):
        with zipfile.ZipFile(file) as zipped:
            for info in zipped.infolist():
                kind = stat.S_IFMT(info.external_attr >> 16)
                if info.is_dir():
                    yield info.filename, 0, None
                    continue
                if kind not in (0, stat.S_IFREG):
                    raise _refused(archive_name, info.filename)
                with zipped.open(info) as content:
                    yield info.filename, info.file_size, content
        return
    with tarfile.open(fileobj=file) as tar:
        while (member := tar.next()) is not None:
            # Kept for look-ups by name, half a gigabyte for the largest corpora.
            tar.members.clear()  # type: ignore[attr-defined]
            if not member.isdir() and (not member.isreg() or member.issparse()):
                raise _refused(archive_name, member.name)
            yield member.name, member.size, None if member.isdir() else tar.extractfile(member)


def _parts(name: str, archive_name: str) -> tuple[str, ...]:
    """The parts of a member's path, which stays below its folder."""
    parts = PurePosixPath(name).parts
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise _refused(archive_name, name)
    return parts


def _refused(archive_name: str, name: str) -> DownloadError:
    return DownloadError(
        f"{archive_name} is refused: {name!r} is not a regular file or folder within it; get the corpus by other means."
    )


def _install(unpacked: Path, place: Path, archive: Archive) -> None:
    """Move what was unpacked into place: at once if nothing is there, else folder by folder."""
    there = _unpacked(place)
    # One flush for a hundred thousand files.
    os.sync()
    marker = json.dumps(there | {archive.known_hash: archive.url}, indent=1).encode()
    if there:
        _merge(unpacked, place)
        write_whole(place / MARKER, marker)
        return
    write_whole(unpacked / MARKER, marker)
    if place.exists():
        place.rmdir()
    unpacked.rename(place)
    synchronise(place.parent)


def _merge(folder: Path, place: Path) -> None:
    for entry in sorted(folder.iterdir()):
        target = place / entry.name
        if entry.is_dir() and target.exists():
            _merge(entry, target)
        else:
            entry.replace(target)
