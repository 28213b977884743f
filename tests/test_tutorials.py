"""The commands that tutorials and how-to pages show do what the pages say: each page in a shell, in order.

A block marked `console` is run: lines after `$ ` (and `> `, its continuation) are commands, the others
what they print, compared as doctest does, with `...` for whatever differs from run to run. Of the README the
blocks marked `sh` are run, each line a command, on less text; what no test could run has its equivalent here.
"""

import doctest
import os
import re
import shutil
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
    (folder / "examples").symlink_to(ROOT / "examples")
    return run_commands(commands_of(text), folder)


def run_commands(commands: list[tuple[str, str]], folder: Path) -> list[tuple[str, str, str]]:
    """Run commands in one shell, each with what it should print; return both and what it printed."""
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


README = (ROOT / "README.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LESS_TEXT = (
    "python examples/demo/write_topics.py private/",
    "mkdir texts; mv private/f* texts/; rm private/[b-z]*",
)
SMALLER_RECIPE = {
    "steps = 300": "steps = 4",
    "warmup_steps = 30": "warmup_steps = 2",
    'preset = "laptop"\nn_layers = 2\nvocab_size = 2048': 'preset = "test"\nvocab_size = 600',
}
"""In the quickstart's recipe, which takes minutes as it stands."""
UNATTENDED = {"provider keygen ": "provider keygen --no-passphrase "}
"""Nobody is there to be asked for a passphrase."""


def test_the_readmes_commands_run_in_order_on_less_text(tmp_path):
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    recipe = tmp_path / "examples" / "quickstart" / "release.toml"
    text = recipe.read_text()
    for theirs, ours in SMALLER_RECIPE.items():
        assert theirs in text
        text = text.replace(theirs, ours)
    recipe.write_text(text)
    commands = [line for mark, block in FENCE.findall(README) if mark == "sh" for line in block.splitlines()]
    for theirs, ours in UNATTENDED.items():
        assert sum(command.startswith(theirs) for command in commands) == 1
        commands = [command.replace(theirs, ours) for command in commands]
    (python,) = (block for mark, block in FENCE.findall(README) if mark == "python")
    (tmp_path / "use.py").write_text(f"{python}print(model(ids).logits.shape)\n")
    at = next(n for n, command in enumerate(commands) if command.startswith("owner generate"))
    commands.insert(at, "python use.py")
    printed = {
        command: output
        for command, _, output in run_commands([(c, "") for c in (*LESS_TEXT, *commands)], tmp_path)
    }
    assert printed["python use.py"].endswith(", 4096])\n")
    assert "perplexity" in printed["owner evaluate specialized --data private/"]
    assert (tmp_path / "exported" / "model.gguf").is_file()
    assert (tmp_path / "specialized" / "audit.json").is_file()
    assert (tmp_path / "pn4-quickstart.st").is_file()


def test_what_of_the_readme_is_not_run_has_an_equivalent_that_is():
    blocks = [block for mark, block in FENCE.findall(README) if not mark]
    demo, transcript, paper = blocks
    # `make demo` installs and runs a script; the transcript is what that prints: commands that are run above.
    assert demo == "make demo\n"
    target = (ROOT / "Makefile").read_text().partition("\ndemo:")[2].partition("\n\n")[0]
    assert target.count("\n") == 1
    assert "bash examples/demo/run.sh" in target
    script = (ROOT / "examples" / "demo" / "run.sh").read_text()
    commands = re.findall(r"^\$ (.*)$", transcript, re.MULTILINE)
    assert commands.pop(0) == "make demo"
    assert commands == re.findall(r"^(?:run |echo \"\\\$ )(\w[^\"\n]*)", script, re.MULTILINE)
    run_here = [
        LESS_TEXT[0],
        *(line for mark, block in FENCE.findall(README) if mark == "sh" for line in block.splitlines()),
    ]
    assert set(commands) <= set(run_here)
    # The paper's tables take hours; tests/test_paper.py runs the same driver at its smallest size.
    assert paper.startswith(
        "python benchmarks/paper/run.py tiny --corpus generic/ --domains domains/ --work "
    )
    driver = (ROOT / "tests" / "test_paper.py").read_text()
    assert '"run.py", "toy", "--corpus"' in driver


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
