"""What lies in a .zip or .tar, in the archive's order, unpacked in memory and never onto a disk.

A name is only a name here: nothing is written under it. What would be hidden in a folder is hidden in an
archive, and what no folder could hold (a way out of it, an absolute path) is listed and not read.
"""

import bz2
import gzip
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any, cast

from owner.documents.decoding import Unreadable
from owner.documents.walking import Skipped
from shared.printable import printable

MEMBER_BYTES = 256 << 20
"""A larger file in an archive or message, and a larger PDF or Office file, is skipped: memory holds it."""
FILES = 100_000
"""Further files in one file, nested ones included, are not read."""
_ENCRYPTED = 1
"""Bit 0 of a zip entry's flags (APPNOTE 4.4.4)."""
_BOMB = "unpacks to far more than its size: a bomb"
_UNPACK: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("gz", "tgz"), gzip.open),
    **{"bz2": bz2.open, "xz": lzma.open},
}


@dataclass(frozen=True)
class Member:
    """A file that lies in another; `name` is the whole path to it, printable."""

    name: str
    content: bytes


class Budget:
    """What may still be unpacked from one private file, all that is nested in it together."""

    def __init__(self, n_bytes: int, without: frozenset[int] = frozenset()) -> None:
        self.n_bytes = n_bytes
        self.n_files = FILES
        self.n_opened = 0
        self.without = without
        """Numbers of files within that are left out: their readers died."""

    def read(self, opened: IO[bytes]) -> bytes:
        """Return all of a stream. Raises Unreadable where that is too much, TooMuch where it is for all."""
        content = opened.read(min(MEMBER_BYTES, max(0, self.n_bytes)) + 1)
        self.n_bytes -= len(content)
        if self.n_bytes < 0:
            raise TooMuch(_BOMB)
        return _within_limit(content)


def read_whole(opened: IO[bytes]) -> bytes:
    """Return all of a file that is not packed. Raises Unreadable."""
    return _within_limit(opened.read(MEMBER_BYTES + 1))


def _within_limit(content: bytes) -> bytes:
    if len(content) > MEMBER_BYTES:
        raise Unreadable(f"larger than {MEMBER_BYTES >> 20} MiB, the limit for it")
    return content


class TooMuch(Unreadable):
    """The rest of the outermost file is not read."""


class _Counted:
    """A stream to unpack that says so when it is too much, and not what lies in it."""

    def __init__(self, opened: IO[bytes], budget: Budget) -> None:
        self.opened, self.left = opened, 2 * budget.n_bytes

    def read(self, size: int) -> bytes:
        content = self.opened.read(size)
        self.left -= len(content)
        if self.left < 0:
            raise TooMuch(_BOMB)
        return content


def read_zip(opened: IO[bytes], name: str, budget: Budget) -> Iterator[Member | Skipped]:
    """Yield a .zip's files."""
    with open_zip(opened) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > budget.n_bytes:
            raise Unreadable(_BOMB)
        for entry in archive.infolist():
            if entry.is_dir():
                continue
            path = f"{name}/{printable(entry.filename)}"
            reason = _unwanted(entry.filename, entry.file_size)
            try:
                if reason:
                    raise Unreadable(reason)
                yield Member(path, read_entry(archive, entry, budget))
            except TooMuch:
                raise
            except Unreadable as error:
                yield Skipped(path, str(error))


def open_zip(opened: IO[bytes]) -> zipfile.ZipFile:
    """Return a zip, whose list of files has been read. Raises Unreadable."""
    try:
        return zipfile.ZipFile(opened)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError, LookupError):
        raise Unreadable("damaged zip") from None


def read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, budget: Budget) -> bytes:
    """Return one file of a zip. Raises Unreadable."""
    if entry.flag_bits & _ENCRYPTED:
        raise Unreadable("encrypted with a password")
    try:
        with archive.open(entry) as unpacked:
            return budget.read(unpacked)
    except NotImplementedError:
        raise Unreadable("packed by a method that is not known") from None
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError, RuntimeError):
        raise Unreadable("damaged zip") from None


def read_tar(opened: IO[bytes], name: str, budget: Budget) -> Iterator[Member | Skipped]:
    """Yield a .tar's files, which may be packed as a whole."""
    packed = _UNPACK.get(name.lower().rpartition(".")[2])
    stream = _Counted(packed(opened) if packed else opened, budget)
    try:
        with tarfile.open(fileobj=cast(IO[bytes], stream), mode="r|") as archive:
            for entry in archive:
                path = f"{name}/{printable(entry.name)}"
                reason = _unwanted(entry.name, entry.size)
                if entry.isdir():
                    continue
                if not entry.isfile():
                    reason = "symbolic link" if entry.issym() or entry.islnk() else "not a regular file"
                content = None if reason else archive.extractfile(entry)
                if content is None:
                    yield Skipped(path, reason)
                    continue
                try:
                    member = Member(path, budget.read(content))
                except TooMuch:
                    raise
                except Unreadable as error:
                    yield Skipped(path, str(error))
                else:
                    yield member
    except (tarfile.TarError, lzma.LZMAError, EOFError, ValueError, zlib.error):
        raise Unreadable("damaged archive") from None
    except OSError as error:
        if error.errno is not None:  # gzip and bz2 say "damaged" with one that has none
            raise
        raise Unreadable("damaged archive") from None


def _unwanted(name: str, size: int) -> str:
    """Return why a file of this name is not unpacked, or nothing."""
    steps = name.replace("\\", "/").split("/")
    if ".." in steps or steps[0] == "" or steps[0].endswith(":"):
        return "its name leads out of the archive"
    if any(step.startswith(".") and step != "." for step in steps) or steps[0] == "__MACOSX":
        return "hidden file"
    return "" if size else "empty file"
