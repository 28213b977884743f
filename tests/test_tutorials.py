"""The commands that tutorials and how-to pages show do what the pages say: each page in a shell, in order.

A block marked `console` is run: lines after `$ ` (and `> `, its continuation) are commands, the others
what they print, compared as doctest does, with `...` for whatever differs from run to run.
"""

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    path
    for folder in ("tutorials", "howto")
    for path in (ROOT / "docs" / folder).glob("*.md")
    if "```console\n" in path.read_text(encoding="utf-8")
)
BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MARK = "\x1e"
"""Printed between commands; no command prints it."""


def commands_of(text: str) -> list[tuple[str, str]]:
    """Each command of a page, and the output that the page promises, in order."""
    found: list[tuple[str, str]] = []
    for block in BLOCK.findall(text):
        assert block.startswith("$ "), block
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], ""))
            elif line == ">" or line.startswith("> "):
                found[-1] = (f"{found[-1][0]}\n{line[2:]}", "")
            else:
                found[-1] = (found[-1][0], f"{found[-1][1]}{line}\n")
    return found


def is_promised(output: str, promised: str) -> bool:
    """Whether output is what a page shows; a page that shows nothing promises nothing."""
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    return not promised or doctest.OutputChecker().check_output(promised, output, flags)


def run_page(text: str, folder: Path) -> list[tuple[str, str, str]]:
    """Run a page's commands in one shell; return (command, promised, printed) of each that ran."""
    commands = commands_of(text)
    (folder / "examples").symlink_to(ROOT / "examples")
    script = "set -euo pipefail\n" + "".join(f"printf '{MARK}'\n{command}\n" for command, _ in commands)
    environment = {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "HOME": str(folder / "home"),
        "LANG": "C.UTF-8",
        "OMP_NUM_THREADS": "1",
    } | {name: os.environ[name] for name in ("TMPDIR",) if name in os.environ}
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    printed = done.stdout.split(MARK)[1:]
    failed = commands[len(printed) - 1][0] if printed else "(nothing)"
    assert done.returncode == 0, f"exit code {done.returncode} of: {failed}\n{printed[-1:]}"
    return [(*command, output) for command, output in zip(commands, printed, strict=True)]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_command_of_the_page_runs_and_prints_what_is_shown(path, tmp_path):
    for command, promised, printed in run_page(path.read_text(encoding="utf-8"), tmp_path):
        assert is_promised(printed, promised), f"$ {command}\n{printed}\n--- the page shows:\n{promised}"


def test_the_pages_are_found_at_all():
    assert {"owner", "provider"} <= {path.stem for path in PAGES}


def test_a_page_whose_command_fails_or_prints_something_else_is_noticed(tmp_path):
    page = "```console\n$ echo one\none\n$ cat <<'END'\n> two\n> END\nt...\n```\n"
    (tmp_path / "good").mkdir()
    assert [is_promised(printed, promised) for _, promised, printed in run_page(page, tmp_path / "good")] == [
        True,
        True,
    ]
    assert not is_promised("two\n", "one\n")
    (tmp_path / "bad").mkdir()
    with pytest.raises(AssertionError, match="exit code 3 of: exit 3"):
        run_page("```console\n$ echo one\n$ exit 3\n$ echo two\n```\n", tmp_path / "bad")
