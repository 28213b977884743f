"""What Ctrl-C does: the first one unwinds, or waits until work can be saved, the second ends the process."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from shared.progress import Moment, Say, listening


@contextmanager
def one_interrupt() -> Iterator[None]:
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


@contextmanager
def interrupt_held(say: Say) -> Iterator[Callable[[], bool]]:
    """Hold the first Ctrl-C back; yield whether it came. The block then ends, by KeyboardInterrupt or not.

    The next step of the stage says what is waited for; the second Ctrl-C kills. Where interrupts are not
    Python's to handle, and outside of the main thread, nothing is held back.
    """
    before = signal.getsignal(signal.SIGINT)
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    came: list[int] = []
    unsaid = ["interrupted: a checkpoint comes after this step; Ctrl-C again ends at once"]

    def hold(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        came.append(number)

    def tell(moment: Moment | None) -> None:  # not from the handler: it may have cut into a line
        if came and unsaid:
            say(unsaid.pop())

    signal.signal(signal.SIGINT, hold)
    try:
        with listening(tell):
            yield lambda: bool(came)
    except KeyboardInterrupt:
        came.append(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        before(signal.SIGINT, None)
