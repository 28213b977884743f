"""How both commands speak: lines on stderr, a live one on a terminal, errors in words, and what Ctrl-C does.

The result alone goes to stdout.
"""

import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from shared.errors import EXPECTED_ERRORS, error_lines
from shared.progress import Say

INTERRUPTED = 130
"""Exit code after Ctrl-C, as a shell's own: 128 and the number of SIGINT."""


def speaker(party: str) -> Say:
    """Return what prints a line to stderr, `owner: ...` or `provider: ...`."""

    def say(line: str) -> None:
        print(f"{party}: {line}", file=sys.stderr, flush=True)

    return say


@contextmanager
def watched(party: str, is_quiet: bool = False) -> Iterator[Say]:
    """Yield what says the lines of a deed, and show its stages live where stderr is a terminal.

    When quiet neither is seen: errors and the result are left.
    """
    if is_quiet:
        yield _silent
    elif sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        from shared.live import live_line  # late: not every command draws

        with live_line(party):
            yield speaker(party)
    else:
        yield speaker(party)


def _silent(line: str) -> None:
    """Say nothing."""


@contextmanager
def errors_printed(party: str) -> Iterator[None]:
    """Print an expected error as `shared.errors.error_lines` words it and exit with 1.

    After Ctrl-C print the command that goes on, and exit with INTERRUPTED; a second one ends the process at
    once, which loses nothing either: files are whole or not there.
    """
    say = speaker(party)
    try:
        with _one_interrupt():
            yield
    except KeyboardInterrupt:
        say("interrupted; only what came after the last checkpoint is done again. To go on:")
        say(f"  {shlex.join([party, *sys.argv[1:]])}")
        sys.exit(INTERRUPTED)
    except EXPECTED_ERRORS as error:
        lines = error_lines(error)
        if not lines:
            raise
        for line in lines:
            say(line)
        sys.exit(1)


@contextmanager
def _one_interrupt() -> Iterator[None]:
    """Let the first Ctrl-C unwind and the second kill; where interrupts are ignored they stay so."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is interrupt:
            signal.signal(signal.SIGINT, signal.default_int_handler)
