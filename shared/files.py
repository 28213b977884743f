"""Files that are either whole or not there, in folders that one process at a time works in.

What must survive a kill or a power cut is written by the few `os` calls of this file, in one order: content,
its fsync, the rename, the folder's fsync. The tests put a failing disk in their place (tests/disk.py).
"""

import contextlib
import fcntl
import io
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from shared.errors import PlanearlyError


class _Appended(io.RawIOBase):
    """A new file that only grows. The buffer above it goes on after a short write, until all is written."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def writable(self) -> bool:
        return True

    def write(self, content: Any) -> int:
        return os.write(self._descriptor, content)

    def sync(self) -> None:
        os.fsync(self._descriptor)

    def close(self) -> None:
        if not self.closed:
            super().close()
            os.close(self._descriptor)


@contextlib.contextmanager
def write_atomic(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file beside the path; on success it takes the name, else it is removed.

    It can only be appended to, and its owner alone can read it. The old file, if any, stays until the very
    rename. Raises OSError as the file system does (no space left, no permission), with nothing left behind.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        raw = _Appended(temporary)
        with io.BufferedWriter(raw) as out:
            yield out
            out.flush()
            raw.sync()
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):  # what went wrong first is what the caller hears
            os.unlink(temporary)
        raise
    sync_folder(path.parent)


def write_json(path: Path, content: Any) -> None:
    """Write one JSON document, atomically; keys keep their order."""
    with write_atomic(path) as out:
        out.write((json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def sync_folder(folder: Path) -> None:
    """Make the folder's names (new, renamed, removed) survive a power cut."""
    _sync(folder, os.O_DIRECTORY)


def sync_tree(folder: Path) -> None:
    """Make all that others wrote below the folder survive a power cut."""
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            sync_tree(path)
        else:
            _sync(path)
    sync_folder(folder)


def _sync(path: Path, flags: int = 0) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def rename(source: Path, target: Path) -> None:
    """Give a synced file or folder its final name, in the same file system; an old file is replaced."""
    os.replace(source, target)
    sync_folder(target.parent)


def make_folder(folder: Path, mode: int = 0o777) -> None:
    """Make a folder and those above it; one that is there already stays as it is."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    os.mkdir(folder, mode)
    sync_folder(folder.parent)


def remove(path: Path) -> None:
    """Delete a file, or a folder with all that is in it; what is not there is fine."""
    if path.is_dir() and not path.is_symlink():
        for inside in sorted(path.iterdir()):
            remove(inside)
        os.rmdir(path)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


def remove_stale(folder: Path) -> None:
    """Delete temporary files that a killed `write_atomic` left in the folder."""
    for path in folder.glob(".*"):
        if path.is_file() and not path.is_symlink():
            remove(path)


def check_writable(folder: Path) -> None:
    """Find out now, and not after hours, that a folder cannot be written into. Raises PlanearlyError."""
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PlanearlyError(f"{folder}: cannot be written into", hint="name a folder of your own")


@contextlib.contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[None]:
    """Keep a second process out of a folder; the lock ends with the process, however that ends.

    Where another process holds it, waits or raises PlanearlyError.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            is_mine = os.path.samestat(os.fstat(descriptor), os.stat(folder))
        except (BlockingIOError, FileNotFoundError):
            is_mine = False
        if not is_mine:  # held by another, or by one that has just ended and removed it
            raise PlanearlyError(
                f"{folder}: another process is at work there",
                hint="wait until it ends, or name another folder",
            )
        yield
    finally:
        os.close(descriptor)
