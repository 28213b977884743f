"""A disk that fails: stands for `os` in shared/files.py, whose calls are all by which we write durably.

Only our own calls pass here, as in SQLite's I/O-error tests; what libraries write goes to the real disk.
"""

import errno
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

CALLS = ("open", "write", "fsync", "replace", "mkdir", "unlink", "rmdir")
Deed = Callable[[int, str, Callable[..., Any], tuple[Any, ...]], Any]
"""What happens instead of a call: its number from 1, its name, the call itself, its arguments."""


class Disk:
    """`os`, with a deed in place of each call that changes a disk."""

    def __init__(self, deed: Deed) -> None:
        self.n, self.deed = 0, deed

    def __getattr__(self, name: str) -> Any:
        call = getattr(os, name)
        if name not in CALLS:
            return call

        def counted(*arguments: Any) -> Any:
            self.n += 1
            return self.deed(self.n, name, call, arguments)

        return counted


@contextmanager
def disk(deed: Deed) -> Iterator[Disk]:
    """Put a disk under shared/files.py."""
    with patch("shared.files.os", Disk(deed)) as found:
        yield found


def plain(n: int, name: str, call: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Do what was asked."""
    return call(*arguments)


def failing(at: int, number: int, is_lasting: bool = False) -> Deed:
    """Return a deed that fails call `at` with an error number, and if it lasts all calls after."""

    def deed(n: int, name: str, call: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        if n == at or (is_lasting and n > at):
            raise OSError(number, os.strerror(number))
        return call(*arguments)

    return deed


def filling_up(at: int) -> Deed:
    """Return a deed by which the disk is full from call `at` on: one more write is done by half."""

    def deed(n: int, name: str, call: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        if n == at and name == "write":
            return call(arguments[0], arguments[1][: len(arguments[1]) // 2])
        if n >= at and name in ("write", "mkdir"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return call(*arguments)

    return deed


def short(n: int, name: str, call: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Write no more than half of what was asked, every time; no error."""
    if name == "write":
        return call(arguments[0], arguments[1][: max(1, len(arguments[1]) // 2)])
    return call(*arguments)


def deadly(at: int) -> Deed:
    """Return a deed that kills its own process with SIGKILL at call `at`, a write half done."""

    def deed(n: int, name: str, call: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        if n == at:
            if name == "write":
                call(arguments[0], arguments[1][: len(arguments[1]) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments)

    return deed
