"""Where a stage is: told at every step to whoever listens, as a terminal's live line or a meter.

Lines that stay are said (`Say`) and go wherever the caller wants them; this is for what is worth seeing only
while it is true. Nothing here prints. Listeners belong to the thread that set them.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace

Say = Callable[[str], None]
"""Takes a line that stays."""
SAY_EVERY_S = 10.0
"""Seconds between lines about one stage, where they stay. Ours."""


@dataclass(frozen=True)
class Moment:
    """Where a stage is."""

    stage: str
    done: int = 0
    total: int | None = None
    """None: nobody knows how much there is."""
    unit: str = ""
    """Of `done` and `total`: bytes, documents, windows, steps; "": nothing is counted."""
    figures: str = ""
    """What else is worth seeing, in words and numbers."""
    since_s: float = 0.0
    """When the stage began, by `time.monotonic`."""
    first: int = 0
    """What was done when the stage first told of itself: a resumed one does not begin at 0."""

    @property
    def left_s(self) -> float | None:
        """Seconds left at the pace until now; None where that cannot be told yet."""
        if self.total is None or self.done <= self.first:
            return None
        pace_s = (time.monotonic() - self.since_s) / (self.done - self.first)
        return pace_s * max(0, self.total - self.done)


Listener = Callable[[Moment | None], None]
"""Called with where a stage is, at every step of it; None: it has ended."""

_listeners: ContextVar[tuple[Listener, ...]] = ContextVar("listeners", default=())
_is_live: ContextVar[bool] = ContextVar("is_live", default=False)
_moment: ContextVar[Moment | None] = ContextVar("moment", default=None)


@contextmanager
def listening(listener: Listener, is_live: bool = False) -> Iterator[None]:
    """Tell the listener where every stage in this context is; a live one spares the lines on the way."""
    tokens = _listeners.set((*_listeners.get(), listener)), _is_live.set(is_live or _is_live.get())
    try:
        yield
    finally:
        _listeners.reset(tokens[0])
        _is_live.reset(tokens[1])


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Name what `show` tells of inside; stages may lie in each other."""
    token = _moment.set(Moment(name, since_s=time.monotonic()))
    try:
        yield
    finally:
        _moment.reset(token)
        for listener in _listeners.get():
            listener(None)


def show(done: int, total: int | None = None, unit: str = "", figures: str = "") -> None:
    """Tell where the stage is; one unit at a time, and another unit starts its clock anew."""
    before = _moment.get()
    if before is None or not _listeners.get():
        return
    now = replace(before, done=done, total=total, unit=unit, figures=figures)
    if (unit, total) != (before.unit, before.total) or done < before.done:
        now = replace(now, since_s=time.monotonic(), first=done)
    _moment.set(now)
    beat()


def beat() -> None:
    """Tell the same again: still at work, in the middle of a long step."""
    moment = _moment.get()
    if moment is not None:
        for listener in _listeners.get():
            listener(moment)


def per_second(done: float, since_s: float) -> float:
    """Return how many were done a second since a moment of `time.monotonic`."""
    return done / max(1e-9, time.monotonic() - since_s)


def is_live() -> bool:
    """Say whether somebody sees every step as it happens."""
    return _is_live.get()


def describe(moment: Moment, is_short: bool = False) -> str:
    """Return a moment's figures in words; nothing where there are none yet.

    The time left comes last, or before what a short line may cut off.
    """
    done, total, unit = moment.done, moment.total, moment.unit
    counted = ""
    if unit == "bytes":
        counted = amount(done) + ("" if total is None else f" of {amount(total)}")
    elif unit == "steps":
        counted = f"step {done}" + ("" if total is None else f"/{total}")
    elif unit:
        counted = (f"{done:,}" if total is None else f"{done:,} of {total:,}") + f" {unit}"
    left = "" if moment.left_s is None else f"{duration(moment.left_s)} left"
    parts = (counted, left, moment.figures) if is_short else (counted, moment.figures, left)
    return " · ".join(filter(None, parts))


def duration(seconds: float) -> str:
    """Return seconds in the unit that a person would use."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86_400:.1f} days"


def amount(n_bytes: float) -> str:
    """Return bytes in the unit that a person would use."""
    if n_bytes < 1000:
        return f"{n_bytes:.0f} bytes"
    for unit in ("kB", "MB"):
        n_bytes /= 1000
        if n_bytes < 1000:
            return f"{n_bytes:.1f} {unit}"
    return f"{n_bytes / 1000:.1f} GB"
