"""A command on a real terminal: a pseudo-terminal of its own, what it drew there, and Ctrl-C."""

import fcntl
import os
import pty
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pyte

ROWS, COLUMNS = 40, 110


class Terminal:
    """A process with a terminal for standard error and input; its standard output goes to a file."""

    def __init__(self, arguments: Sequence[object], cwd: Path, out: Path, **variables: str) -> None:
        """Start Python with these arguments."""
        self.shown = b""
        self.pid, self._descriptor = pty.fork()
        if self.pid == 0:  # the child: only what is safe after a fork
            os.chdir(cwd)
            os.dup2(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 1)
            size = {"COLUMNS": str(COLUMNS), "LINES": str(ROWS)}  # parallel tests are told other ones
            environment = os.environ | size | {"TERM": "xterm", "OMP_NUM_THREADS": "1"} | variables
            os.execve(sys.executable, [sys.executable, *map(str, arguments)], environment)
        fcntl.ioctl(self._descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))

    def read_until(self, is_enough: Callable[[str], bool], limit_s: float = 120.0) -> str:
        """Return all that was drawn once it is enough, or the process has closed its terminal."""
        end = time.monotonic() + limit_s
        while not is_enough(self.shown.decode(errors="replace")):
            if time.monotonic() > end:
                raise TimeoutError(self.shown.decode(errors="replace")[-2000:])
            if select.select([self._descriptor], [], [], 0.2)[0]:
                try:
                    self.shown += os.read(self._descriptor, 65536)
                except OSError:  # EIO: the last process of the terminal is gone
                    break
        return self.shown.decode(errors="replace")

    def screen(self) -> list[str]:
        """Return the lines that a terminal shows after all that was drawn, blank ones left out."""
        screen = pyte.Screen(COLUMNS, ROWS)
        pyte.ByteStream(screen).feed(self.shown)
        return [line.rstrip() for line in screen.display if line.strip()]

    def interrupt(self) -> None:
        """Type Ctrl-C."""
        os.write(self._descriptor, b"\x03")

    def wait(self) -> int:
        """Read to the end; return the exit status, negative for a signal."""
        self.read_until(lambda text: False)
        _, status = os.waitpid(self.pid, 0)
        os.close(self._descriptor)
        return os.waitstatus_to_exitcode(status)

    def kill(self) -> None:
        """End it, however it is."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
