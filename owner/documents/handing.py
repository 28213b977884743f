"""Private files to a child with limits, documents back: a parser that dies takes one file with it.

One child reads file after file, so that its imports are paid for once, and is replaced when it has died. A
file within an archive or mailbox that ends it is left out, and the rest is read by the next child. The
child opens the files itself, behind the walls that it inherits; what it sends back is as little trusted as
the files are. Requests are lines of JSON, answers JSON after their length in 4 bytes.
"""

import errno
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import astuple
from threading import Event, Timer
from time import monotonic
from typing import IO, Any, cast

from owner.documents.limited import Limits, start_limited
from owner.documents.texts import PART_CHARACTERS, Document
from owner.documents.walking import USED, PrivateFile, Skipped, reason_of
from shared.errors import DocumentsError
from shared.printable import printable

LIMITS = Limits(memory_bytes=2 << 30, cpu_s=None, wall_s=60.0)
"""Of a child, and to start one; the time is bounded file by file. Ours."""
CPU_S, CPU_S_PER_MIB = 120, 20
"""Processor time for one file; ours, several times what a dense PDF was seen to need."""
WALL_PER_CPU = 5
"""How much longer the parent waits for a file, all in all; a disk may be slow and a machine busy."""
UNPACKED_RATIO = 200
"""A file gives up to this many times its own size, never less than 64 MiB; see reading.GZIP_RATIO."""
DEATHS = 8
"""Children that may die of files within one file before the rest of it is given up."""
_ANSWER_BYTES = 5 * PART_CHARACTERS
_PATH_CHARACTERS, _REASON_CHARACTERS = 4096, 300
_OUT_OF_TIME = "its reader ran out of time"
_NO_ANSWER = "its reader gave what no reader gives"
_CODE = """
from owner.documents.converting import serve
serve()
"""


class _Died(Exception):
    """The child is gone; the text says of what."""


class Converter:
    """Reads files in a child, which starts with the first; `close` ends it."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None

    def read(self, file: PrivateFile, name: str) -> Iterator[Document | Skipped]:
        """Yield a file's documents and what of it was not read.

        Raises DocumentsError where not the file but the machine is at fault.
        """
        without: list[int] = []
        has_some = False
        for _ in range(DEATHS):
            n, path = 0, name
            try:
                for kind, value in self._answers(file, name, without):
                    if kind == "within":
                        n, path = value
                    else:
                        has_some = True
                        yield value
                return
            except GeneratorExit:
                self.close()  # it still answers
                raise
            except _Died as death:
                self.close()
                if not n:
                    yield Skipped(name, f"{death}{USED if has_some else ''}")
                    return
                yield Skipped(path, str(death))
                # What lies in a file that is left out has no numbers any more.
                without = [number for number in without if number < n] + [n]
        yield Skipped(name, f"{DEATHS} files in it ended their reader; the rest of it is not read")

    def close(self) -> None:
        """End the child, if there is one."""
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child = None

    def _answers(self, file: PrivateFile, name: str, without: list[int]) -> Iterator[tuple[str, Any]]:
        """Yield what the child finds, checked; raises _Died, DocumentsError."""
        cpu_s = CPU_S + CPU_S_PER_MIB * (file.size >> 20)
        most_bytes = max(64 << 20, UNPACKED_RATIO * file.size)
        wall_s, sent_bytes = float(WALL_PER_CPU * cpu_s), 0
        location, _, *status = astuple(file)
        request = {
            "file": [os.fsencode(location).hex(), name, *status],
            "cpu_s": cpu_s,
            "most_bytes": most_bytes,
            "without": without,
            "since": max(without, default=0),
        }
        child = self._started()
        requests = cast(IO[bytes], child.stdin)
        try:
            requests.write(json.dumps(request).encode() + b"\n")
            requests.flush()
        except BrokenPipeError:
            raise _Died(_end_of(child.wait())) from None
        while True:
            start = monotonic()
            content = self._answer(wall_s)
            wall_s -= monotonic() - start
            sent_bytes += len(content)
            if sent_bytes > most_bytes + _ANSWER_BYTES:
                raise _Died("its reader gave far more than its size")
            try:
                kind, value = _checked(content, name)
            except (ValueError, TypeError, AttributeError, RecursionError):
                raise _Died(_NO_ANSWER) from None
            match kind:
                case "end":
                    return
                case "memory":
                    raise _Died("its reader ran out of memory")
                case "errno":
                    yield "skipped", Skipped(name, reason_of(OSError(value, "")))
                    return
                case _:
                    yield kind, value

    def _started(self) -> subprocess.Popen[bytes]:
        if self._child is None:
            try:
                self._child = start_limited(_CODE, None, LIMITS)
                self._answer(LIMITS.wall_s)
            except (OSError, _Died) as error:
                why = (
                    errno.errorcode.get(error.errno or 0, "refused") if isinstance(error, OSError) else error
                )
                raise DocumentsError(
                    f"the process that reads documents does not start: {why}",
                    hint="nothing was left out for it; the same command goes on when it does",
                ) from None
        return self._child

    def _answer(self, wall_s: float) -> bytes:
        """Return the child's next answer. Raises _Died where it ends or has no time left."""
        child = cast(subprocess.Popen[bytes], self._child)
        answers = cast(IO[bytes], child.stdout)
        is_late = Event()

        def stop() -> None:
            is_late.set()
            child.kill()

        timer = Timer(max(0.0, wall_s), stop)
        timer.start()
        try:
            size = int.from_bytes(answers.read(4), "big")
            content = answers.read(size) if size <= _ANSWER_BYTES else b""
        finally:
            timer.cancel()
        if is_late.is_set():
            raise _Died(_OUT_OF_TIME)
        if size > _ANSWER_BYTES:
            raise _Died(_NO_ANSWER)
        if not content or len(content) < size:
            raise _Died(_end_of(child.wait()))
        return content


def _end_of(status: int) -> str:
    """Return why a child ended by itself; raises DocumentsError where the system killed it."""
    if status == -signal.SIGKILL:
        raise DocumentsError(
            "the process that reads documents was killed from outside, perhaps for lack of memory",
            hint="nothing was left out for it; the same command goes on",
        )
    if status == -signal.SIGXCPU:
        return _OUT_OF_TIME
    if status < 0:
        return f"its reader ended, perhaps for lack of memory: {signal.strsignal(-status)}"
    return "its reader failed"


def _checked(content: bytes, name: str) -> tuple[str, Any]:
    """Return an answer that is one, as its kind and value. Raises ValueError, TypeError."""
    ((kind, value),) = json.loads(content).items()
    if kind in ("ready", "end", "memory"):
        return kind, None
    if kind == "errno":
        return kind, int(value)
    if kind == "within":
        n, path = value
        return kind, [int(n), _path(path, name)]
    if kind == "document":
        path, index, text = value
        text.encode()
        return kind, Document(_path(path, name), int(index), text)
    if kind == "skipped":
        path, reason, n, line = value
        return kind, Skipped(_path(path, name), printable(reason)[:_REASON_CHARACTERS], int(n), int(line))
    raise ValueError(kind)


def _path(path: str, name: str) -> str:
    """Return a path that is the file's own or one within it, shortened where it is very long."""
    if not path.startswith(name):
        raise ValueError(path)
    return printable(path[:_PATH_CHARACTERS])
