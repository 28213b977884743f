"""How both commands speak: lines on stderr, a live one on a terminal, errors in words, and what Ctrl-C does.

The result alone goes to stdout.
"""

import os
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from shared.errors import EXPECTED_ERRORS, error_lines
from shared.interrupts import one_interrupt
from shared.progress import SAY_EVERY_S, Listener, Moment, Say, describe, listening

INTERRUPTED = 130
"""Exit code after Ctrl-C, as a shell's own: 128 and the number of SIGINT."""


def speaker(party: str) -> Say:
    """Return what prints a line to stderr, `owner: ...` or `provider: ...`."""

    def say(line: str) -> None:
        print(f"{party}: {line}", file=sys.stderr, flush=True)

    return say


@contextmanager
def watched(party: str, is_quiet: bool = False) -> Iterator[Say]:
    """Yield what says the lines of a deed; show its stages live where stderr is a terminal, else as lines.

    When quiet nothing of it is seen: errors and the result are left.
    """
    if is_quiet:
        yield _silent
    elif sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        from shared.live import live_line  # late: not every command draws

        with live_line(party):
            yield speaker(party)
    else:
        say = speaker(party)
        with listening(_lines(say), is_live=True):
            yield say


def _lines(say: Say) -> Listener:
    """Return what says now and then where a stage is that lasts."""
    said_s = 0.0

    def tell(moment: Moment | None) -> None:
        nonlocal said_s
        now_s = time.monotonic()
        if moment and now_s - max(said_s, moment.since_s) >= SAY_EVERY_S and (where := describe(moment)):
            say(f"{moment.stage:<12} {where}")
            said_s = now_s

    return tell


def _silent(line: str) -> None:
    """Say nothing."""


@contextmanager
def errors_printed(party: str) -> Iterator[None]:
    """Print an expected error as `shared.errors.error_lines` words it and exit with 1.

    After Ctrl-C print the command that goes on, and exit with INTERRUPTED; a second one ends the process at
    once, which spoils nothing either: files are whole or not there.
    """
    say = speaker(party)
    try:
        with one_interrupt():
            yield
    except KeyboardInterrupt:
        say("interrupted; the same command goes on from what was saved:")
        say(f"  {shlex.join([party, *sys.argv[1:]])}")
        sys.exit(INTERRUPTED)
    except EXPECTED_ERRORS as error:
        lines = error_lines(error)
        if not lines:
            raise
        for line in lines:
            say(line)
        sys.exit(1)
