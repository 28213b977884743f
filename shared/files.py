"""Files that are either whole or not there: temporary name, fsync, rename, fsync of the folder."""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


def sync_folder(folder: Path) -> None:
    """Make a rename in the folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def write_atomic(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file beside the path; on success it takes the name, else it is removed.

    The old file, if any, stays until the very rename. Raises OSError as the file system does (no space
    left, no permission), with nothing left behind.
    """
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    sync_folder(path.parent)


def write_json(path: Path, content: Any) -> None:
    """Write one JSON document, atomically; keys keep their order."""
    with write_atomic(path) as out:
        out.write((json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def remove_stale(folder: Path) -> None:
    """Delete temporary files that a killed `write_atomic` left in the folder."""
    for path in folder.glob(".*"):
        if path.is_file() and not path.is_symlink():
            path.unlink()
