"""`specialize` for Python programs: the command in a process of its own, behind walls of its own.

Walls stand for as long as their process lives, and must be raised before torch is imported. So the caller's
process raises none, reads no private document, and does as it likes before and after.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from shared.errors import PlanearlyError
from shared.progress import Say
from shared.terminal import INTERRUPTED

COMMAND = (sys.executable, "-P", "-c", "from owner.cli import main; main()")
"""-P: no module is looked for in the current folder, which may hold anyone's files."""
ERROR, HINT = "owner: error: ", "owner: hint: "


def print_line(line: str) -> None:
    """Print a line to stderr, as the command does."""
    print(line, file=sys.stderr, flush=True)


def specialize(
    bundle: Path | str,
    data: Path | str,
    out: Path | str = "specialized",
    say: Say = print_line,
    **options: Any,
) -> dict[str, Any]:
    """Run `owner specialize` on a bundle and a folder of documents; return its report.

    Options are the command's, with underscores: `select="auto"`, `epochs=2`, `with_samples=True`. `say` gets
    each line of progress. The model is in `out/model` then. Called again, an interrupted run goes on.
    Raises PlanearlyError with the message and the hint that the command prints; KeyboardInterrupt.
    """
    arguments: list[object] = ["--bundle", bundle, "--data", data, "--out", out]
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        arguments += [flag] if value is True else [flag, value] if value not in (None, False) else []
    said = [""]
    with subprocess.Popen(
        [*COMMAND, "specialize", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as child:
        assert child.stderr is not None
        for line in child.stderr:
            said.append(line.rstrip("\n"))
            say(said[-1])
    if child.returncode == INTERRUPTED:
        raise KeyboardInterrupt
    if child.returncode:
        errors = [line.removeprefix(ERROR) for line in said if line.startswith(ERROR)]
        hints = [line.removeprefix(HINT) for line in said if line.startswith(HINT)]
        raise PlanearlyError((errors or said)[-1], hint=(hints or [""])[-1])
    report: dict[str, Any] = json.loads((Path(out) / "report.json").read_text(encoding="utf-8"))
    return report
