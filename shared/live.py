"""The one live line of the stage at work: name, bar, how much, figures, time left.

Drawn with rich by the thread that works, at every step and never between: a process that forks has no thread
to lose, and what is drawn costs little. Lines printed meanwhile stand above it; at the end it is gone.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column

from shared.progress import Moment, describe, listening

DRAW_EVERY_S = 0.1
BAR_COLUMNS = 20


@contextmanager
def live_line(party: str) -> Iterator[None]:
    """Draw on stderr where each stage of this context is."""
    progress = Progress(
        TextColumn(f"{party}: {{task.description:<12}}", markup=False),
        BarColumn(BAR_COLUMNS),
        TextColumn("{task.fields[text]}", markup=False, table_column=Column(no_wrap=True, ratio=1)),
        console=Console(stderr=True, highlight=False),
        transient=True,
        auto_refresh=False,
        redirect_stdout=False,
        expand=True,
    )
    drawn: list[TaskID] = []
    drawn_s = 0.0

    def draw(moment: Moment | None) -> None:
        nonlocal drawn_s
        if moment is None:
            while drawn:
                progress.remove_task(drawn.pop())
            progress.refresh()
            drawn_s = 0.0  # what comes next is seen at once, and may show itself only once
            return
        if time.monotonic() - drawn_s < DRAW_EVERY_S:
            return
        text = describe(moment, is_short=True)
        if not drawn:
            drawn.append(progress.add_task(moment.stage, total=moment.total, text=text))
        progress.update(
            drawn[0],
            description=moment.stage,
            total=moment.total,
            completed=moment.done,
            text=text,
            refresh=True,
        )
        drawn_s = time.monotonic()

    with progress, listening(draw, is_live=True):
        yield
