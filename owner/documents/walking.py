"""Private folder to the files in it, in an order that depends on names alone, opened without surprises.

Hidden entries, symbolic links and special files (pipes, sockets, devices) are listed and never opened.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from owner.documents.decoding import Unreadable
from shared.errors import DocumentsError
from shared.printable import printable

TEXTS = (".txt", ".md", ".jsonl", ".html", ".htm", ".txt.gz", ".md.gz", ".jsonl.gz")
"""Read by the owner's process itself."""
CONVERTED = (
    *(".json", ".csv", ".tsv", ".json.gz", ".csv.gz", ".tsv.gz", ".eml", ".mbox", ".epub"),
    *(".parquet", ".pdf", ".docx", ".pptx", ".xlsx"),
    *(".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz"),
)
"""Read by a child with limits (owner/documents/converting.py)."""
SUFFIXES = TEXTS + CONVERTED
EXTRA = "the extra documents, whose packages `owner doctor` lists"
FORMATS = (
    "files that end in .txt .md .html .jsonl .json .csv .tsv .eml .mbox .epub .zip .tar .tgz, or, with"
    f" {EXTRA}, in .parquet .pdf .docx .pptx .xlsx"
)
USED = "; what was read until then is used"
_INSTEAD = {
    **dict.fromkeys((".doc", ".dot", ".rtf", ".odt", ".pages"), ".docx"),
    **dict.fromkeys((".ppt", ".pps", ".odp", ".key"), ".pptx"),
    **dict.fromkeys((".xls", ".ods", ".numbers"), ".xlsx"),
    **{".docm": ".docx", ".pptm": ".pptx", ".xlsm": ".xlsx", ".xlsb": ".xlsx"},
    **{".msg": ".eml", ".pst": ".mbox", ".mobi": ".epub", ".7z": ".zip", ".rar": ".zip"},
}
"""What an owner can save a file as that is not read."""

MACHINE_FAULTS = (
    *(errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM),
    *(errno.ESTALE, errno.ETIMEDOUT, errno.ENODEV, errno.ENOTCONN),
)
"""Errors that say nothing of the file that was to be read."""


@dataclass(frozen=True)
class Skipped:
    """What was not read: a file, or `n` lines of a .jsonl with the same fault, the first at `line`."""

    path: str
    reason: str
    n: int = 1
    line: int = 0


@dataclass(frozen=True)
class PrivateFile:
    """A file to read: where it is, its relative path, and what the file system said of it."""

    location: str
    name: str
    device: int
    inode: int
    size: int
    mtime_ns: int


def check_root(path: Path) -> Path:
    """Return the resolved path, itself perhaps a link; raises DocumentsError if missing or empty."""
    try:
        root = path.resolve(strict=True)
        if stat.S_ISDIR(root.stat().st_mode) and not os.listdir(root):
            raise DocumentsError(f"{path}: the folder is empty", hint=f"put {FORMATS}")
    except (OSError, RuntimeError) as error:
        reason = "symbolic links in a circle"
        if isinstance(error, OSError):
            missing = error.errno in (errno.ENOENT, errno.ENOTDIR)
            reason = "no such file or folder" if missing else reason_of(error)
        raise DocumentsError(f"{path}: {reason}", hint="--data names a folder of documents") from None
    return root


def list_files(root: Path, skipped: list[Skipped]) -> Iterator[PrivateFile]:
    """Yield the regular files to read, in the order of their whole relative paths as bytes."""
    if not root.is_dir():
        status = os.lstat(root)
        reason = _unwanted(root.name, status, is_root=True)
        if reason:
            skipped.append(Skipped(printable(root.name), reason))
        else:
            yield _file(str(root), root.name, status)
        return
    folders = [_list_folder(str(root), "", skipped)]
    while folders:
        if not folders[-1]:
            folders.pop()
            continue
        key, location = folders[-1].pop()
        name = os.fsdecode(key.removesuffix(b"/"))
        try:
            status = os.lstat(location)
        except OSError as error:
            skipped.append(Skipped(printable(name), reason_of(error)))
            continue
        reason = _unwanted(os.path.basename(name), status)
        if reason:
            skipped.append(Skipped(printable(name), reason))
        elif stat.S_ISDIR(status.st_mode):
            folders.append(_list_folder(location, name + "/", skipped))
        else:
            yield _file(location, name, status)


def _file(location: str, name: str, status: os.stat_result) -> PrivateFile:
    return PrivateFile(location, name, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def _list_folder(location: str, prefix: str, skipped: list[Skipped]) -> list[tuple[bytes, str]]:
    """Return (relative path as bytes, location), last one first; a folder's key ends in a slash.

    The slash makes the walk's order that of the whole paths: "a.txt" comes before "a/b".
    """
    entries = []
    try:
        with os.scandir(location) as scan:
            for entry in scan:
                slash = "/" if entry.is_dir(follow_symlinks=False) else ""
                entries.append((os.fsencode(prefix + entry.name + slash), entry.path))
    except OSError as error:
        skipped.append(Skipped(printable(prefix or "."), f"folder: {reason_of(error)}"))
    return sorted(entries, reverse=True)


def _unwanted(name: str, status: os.stat_result, is_root: bool = False) -> str:
    """Return why an entry is not opened, or nothing."""
    if name.startswith(".") and not is_root:
        return "hidden folder" if stat.S_ISDIR(status.st_mode) else "hidden file"
    if stat.S_ISLNK(status.st_mode):
        return "symbolic link"
    if stat.S_ISDIR(status.st_mode):
        return ""
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file"
    return unsupported(name) or ("" if status.st_size else "empty file")


def unsupported(name: str) -> str:
    """Return why a file of this name is not read, or nothing."""
    if name.lower().endswith(SUFFIXES):
        return ""
    suffix = os.path.splitext(name)[1]
    instead = _INSTEAD.get(suffix.lower())
    reason = f"unsupported extension {printable(suffix[:20]) or '(none)'}"
    return f"{reason}; save it as {instead}" if instead else reason


@contextmanager
def open_file(file: PrivateFile) -> Iterator[IO[bytes]]:
    """Open the very file that was listed: no link, no pipe, nothing put in its place since."""
    # Windows has neither flag.
    flags = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(file.location, os.O_RDONLY | flags)
    with os.fdopen(descriptor, "rb") as opened:
        status = os.fstat(descriptor)
        if (status.st_dev, status.st_ino) != (file.device, file.inode):
            raise Unreadable("replaced while being read")
        yield opened


def refuse_change(file: PrivateFile, opened: IO[bytes], then: str = "") -> None:
    """Raise Unreadable if size or time of the open file are no longer those listed."""
    now = os.fstat(opened.fileno())
    if (now.st_size, now.st_mtime_ns) != (file.size, file.mtime_ns):
        raise Unreadable(f"changed while being read{then}")


def reason_of(error: OSError) -> str:
    """Return what the system said of a file, in a few words; its message could hold more than that.

    Raises DocumentsError where not the file but the machine is at fault: the next run might read it, and
    end with another model.
    """
    if error.errno in MACHINE_FAULTS:
        raise DocumentsError(
            f"private documents cannot be read: {errno.errorcode[error.errno]}, a fault of disk or machine",
            hint="nothing was left out for it; the same command goes on when it is gone",
        ) from None
    if error.errno in (errno.EACCES, errno.EPERM):
        return "no permission"
    if error.errno == errno.ENOENT:
        return "no longer there"
    if error.errno == errno.ELOOP:
        return "symbolic link"
    return f"cannot be read ({errno.errorcode.get(error.errno or 0, 'unknown error')})"
