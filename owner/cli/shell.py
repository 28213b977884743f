"""What every command shares: lines to the terminal, errors as lines, the walls, common options."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from owner.isolation.walls import LEVELS, Walls, raise_walls
from shared.errors import EXPECTED_ERRORS, error_lines


def say(line: str) -> None:
    """Print one progress line to stderr."""
    click.echo(f"owner: {line}", err=True)


@contextmanager
def errors_printed() -> Iterator[None]:
    """Print an expected error as `shared.errors.error_lines` words it and exit with 1."""
    try:
        yield
    except EXPECTED_ERRORS as error:
        lines = error_lines(error)
        if not lines:
            raise
        for line in lines:
            say(line)
        sys.exit(1)


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

stale_option = click.option(
    "--accept-stale-trust",
    "stale_reason",
    metavar="REASON",
    help="Go on with a trust file past its expiry, and say why; the report keeps it.",
)


def isolate(level: Any, writable: Sequence[Path], out: Path | None = None) -> Walls:
    """Raise the walls, which need a process that has not imported torch, and print what they stop."""
    walls = raise_walls(level, writable, out)
    for at, line in enumerate(walls.lines()):
        say(f"{'' if at else 'isolation':<12} {line}")
    return walls
