"""What every command shares: lines to the terminal, errors as lines, the walls, common options."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from owner.isolation.walls import LEVELS, Walls, raise_walls
from shared import terminal
from shared.progress import Say

PARTY = "owner"
say = terminal.speaker(PARTY)


def errors_printed() -> AbstractContextManager[None]:
    """Print an expected error and exit; see `shared.terminal.errors_printed`."""
    return terminal.errors_printed(PARTY)


def watched(is_quiet: bool = False) -> AbstractContextManager[Say]:
    """Show the stages of a deed while it lasts; see `shared.terminal.watched`."""
    return terminal.watched(PARTY, is_quiet)


def given(config: Any, **options: Any) -> Any:
    """Return the config with the options that were given; its own defaults stand for the others."""
    return replace(config, **{name: value for name, value in options.items() if value is not None})


embedder_option = click.option(
    "--embedder",
    type=click.Path(path_type=Path),
    help="Folder with the embedder's model.safetensors and vocab.txt.",
)
isolation_option = click.option(
    "--require-isolation",
    "level",
    type=click.Choice(list(LEVELS)),
    default="kernel",
    show_default=True,
    help="Stop unless it can be had. strong: namespace, Landlock and seccomp; kernel: the network shut off"
    " by namespace or seccomp; best-effort: go on without, and say so.",
)

quiet_option = click.option("--quiet", is_flag=True, help="Print errors and the result only.")
stale_option = click.option(
    "--accept-stale-trust",
    "stale_reason",
    metavar="REASON",
    help="Go on with a trust file past its expiry, and say why; the report keeps it.",
)


def isolate(level: Any, writable: Sequence[Path], out: Path | None = None, is_quiet: bool = False) -> Walls:
    """Raise the walls, which need a process that has not imported torch, and print what they stop."""
    walls = raise_walls(level, writable, out)
    for at, line in enumerate([] if is_quiet else walls.lines()):
        say(f"{'' if at else 'isolation':<12} {line}")
    return walls
