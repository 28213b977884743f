"""A deed in a forked child that may be killed: torch and transformers are imported once, in the parent."""

import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from shared.errors import EXPECTED_ERRORS, error_lines

DONE, REFUSED, BUG = 0, 1, 70
ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}


def start_with_one_thread(module: str) -> None:
    """Start this program again unless it was started with the variables that libraries read once."""
    if any(os.environ.get(name) != value for name, value in ONE_THREAD.items()):
        os.execve(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]], os.environ | ONE_THREAD)


def fork(deed: Callable[[], object], log: Path) -> int:
    """Start a child that does the deed and writes what it says to `log`; return its process id.

    Its exit status is DONE, REFUSED for an error that a command prints, or BUG. Call it with one thread: a
    second one would be in the middle of something in the child, for ever.
    """
    n_threads = len(os.listdir("/proc/self/task"))
    assert n_threads == 1, f"{n_threads} threads; set OMP_NUM_THREADS=1 and the like"
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    status = BUG
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        deed()
        status = DONE
    except EXPECTED_ERRORS as error:
        lines = error_lines(error)
        status = REFUSED if lines else BUG
        print("\n".join(lines) or traceback.format_exc(), flush=True)
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        os._exit(status)


def wait(child: int, limit_s: float = 300.0) -> int:
    """Return a child's exit status, negative for the signal that ended it; one that hangs is killed."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, 9)
    os.waitpid(child, 0)
    raise TimeoutError(f"a child still ran after {limit_s:.0f} s")


def run(deed: Callable[[], object], log: Path) -> int:
    """Do the deed in a child, to its end."""
    return wait(fork(deed, log))
