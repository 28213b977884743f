"""Rewrite what documents repeat from the code: help texts, recipe fields, demo output, file tree.

`make docs` runs it (`python -m docs.refresh`) before it builds the site; tests/test_docs.py fails when a
block is stale. Everything outside the blocks, which stand between `<!-- name -->` and `<!-- /name -->` on any
page, is written by hand. A new file that is no .py file needs a line in OTHER_FILES.
"""

import ast
import fnmatch
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from docs.excerpts import (
    commands_block,
    decisions_block,
    fence,
    python_block,
    python_example_block,
    recipe_block,
)
from docs.excerpts import (
    help_of as help_of,
)

ROOT = Path(__file__).resolve().parent.parent
DEMO_OUTPUT = "examples/demo/output.txt"
NAME_COLUMNS = 32

FOLDERS = ("shared", "provider", "owner", "tests", "benchmarks", "examples", "docs")
"""Folders of the tree, in reading order; a package's line is its own docstring."""

OTHER_FILES = {
    "README.md": "this page",
    "CONTRIBUTING.md": "style, commands, how to add a rule, a vector, a decision, an experiment",
    "CHANGELOG.md": "what changed; the bundle format has a line of its own",
    "SECURITY.md": "what is promised, how to check it, how to report that it does not hold",
    "LICENSE": "Apache-2.0",
    "Makefile": "every habit is one command",
    "pyproject.toml": "the distribution, its two commands, the import contract, tool settings",
    "constraints.txt": "the versions that the tests were run with",
    ".ci/run": "what CI runs: `make check`",
    ".gitignore": "what is never committed: environments, private keys, results",
    "provider/atlas.html.j2": "the page of `provider atlas`, as a Jinja template that escapes every text",
    "provider/atlas.css": "how that page looks, light and dark",
    "tests/vectors/*": "good and bad bundles; vectors.json says which step refuses which",
    "owner/report/report.html.j2": "the page, with holes for what the report says",
    "owner/report/report.css": "its one style sheet: light, dark, narrow, on paper",
    "examples/demo/pn16.toml": "the recipe of the demo bundle",
    "examples/demo/pn16.st": "the demo bundle",
    "examples/demo/provider.pub": "the public key that verifies it",
    "examples/demo/run.sh": "what `make demo` runs",
    "examples/demo/output.txt": "what it printed",
    "examples/quickstart/release.toml": "a laptop's recipe",
    "examples/trust.toml": "the plan of a trust file",
    "zensical.toml": "the documentation site: its pages and their order",
    "docs/index.md": "the first page of the site",
    "docs/tutorials/*.md": "the first quarter of an hour of each party; every command is run by a test",
    "docs/howto/*.md": "one task a page",
    "docs/explanation/*.md": "the paper's ideas in plain words, with pictures",
    "docs/explanation/*.svg": "the pictures",
    "docs/reference/*.md": "made from the code: commands, recipe, report, Python, this tree",
    "docs/assets/*": "a script of 1.4 kB that lets the site's search work from disk; a style for tables",
    "examples/release-pn32.toml": "the paper's full-size run, as it would be run",
    "benchmarks/paper/*-recipe.toml": "the recipe that a plan varies",
    "benchmarks/paper/*.toml": "a plan: systems, budgets, seeds, rates, sizes",
    "benchmarks/scaling.toml": "what the plan takes as given: data sheets, the paper's cells, measured rates",
    "docs/architecture.md": "one page, one picture: floors, data flow, stages, what lies where",
    "docs/paper-map.md": "equation or section to file and function; what we do differently",
    "docs/reliability.md": "what was tried how often, and what happened: figures with their commands",
    "docs/bundle-format.md": "the specification of a bundle",
    "docs/trust-format.md": "the specification of a trust file",
    "docs/benchmarks.md": "speed beside limits and peers: ratios, goals, profile notes",
    "docs/threat-model.md": "what is protected, against whom, by what, which test shows it, what is left",
    "docs/scaling.md": "the full-size run on paper: hours, cost and limits on 1, 8 and 64 GPUs",
    "docs/mutation-testing.md": "what tests of the reader would not notice, and why",
    "docs/experiments.md": "results and failed attempts, newest first",
    "docs/decisions/*.md": "one page per decision that closes a door",
}
"""Line of each file that is not Python, by its path or a pattern for many."""

FOLDER_LINES = {
    "tests": "one file per source file, and whole runs with real processes",
    "benchmarks": "one file per table",
    "examples": "recipes and the demo",
    "docs": "the rest of the documentation",
}


def first_sentence(source: str) -> str:
    """Return the first sentence of a Python file's docstring, on one line; empty without one."""
    docstring = ast.get_docstring(ast.parse(source)) or ""
    text = " ".join(docstring.split("\n\n")[0].split())
    # A full stop ends a sentence before a capital or at the end, but not that of "App. C".
    return re.split(r"(?<!\bApp)\.(?: (?=[A-Z])|$)", text)[0]


def _python_line(root: Path, path: Path) -> str:
    """Return a Python file's line: its first sentence, or for a test without one, what it tests."""
    sentence = first_sentence(path.read_text(encoding="utf-8"))
    if sentence:
        return sentence
    tested = path.name.removeprefix("test_")
    found = [
        file.relative_to(root).as_posix()
        for package in FOLDERS[:3]
        for file in sorted((root / package).rglob(tested))
    ]
    return f"tests {' and '.join(found)}" if found else ""


def _entries(root: Path, folder: str) -> Iterator[tuple[str, str]]:
    """Yield (path below the folder, line) of one folder, Python files first."""
    paths = [path for path in (root / folder).rglob("*.py") if "__pycache__" not in path.parts]
    for path in sorted(paths, key=lambda path: (len(path.relative_to(root).parts) > 2, path)):
        name = path.relative_to(root / folder)
        if name.name != "__init__.py":
            yield name.as_posix(), _python_line(root, path)
        elif len(name.parts) > 1:
            yield f"{name.parent.as_posix()}/", _python_line(root, path)
    for pattern, line in OTHER_FILES.items():
        if pattern.startswith(f"{folder}/") and any(root.glob(pattern)):
            yield pattern.removeprefix(f"{folder}/"), line


def has_line(name: str) -> bool:
    """Say whether a file, by its path below the root, has a line in the tree."""
    if name.endswith(".py"):
        return name.split("/")[0] in FOLDERS
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in OTHER_FILES)


def tree_block(root: Path = ROOT) -> str:
    """Return the file tree, a line per file."""
    lines = [
        f"{name:<{NAME_COLUMNS}} {line}"
        for name, line in OTHER_FILES.items()
        if name.split("/")[0] not in FOLDERS and (root / name).exists()
    ]
    for folder in FOLDERS:
        package = root / folder / "__init__.py"
        entries = list(_entries(root, folder))
        if not entries:
            continue
        own = FOLDER_LINES.get(folder) or first_sentence(package.read_text(encoding="utf-8"))
        lines += ["", f"{folder + '/':<{NAME_COLUMNS}} {own}"]
        lines += [f"  {name:<{NAME_COLUMNS - 2}} {line}".rstrip() for name, line in entries]
    return fence("\n".join(lines))


def demo_block(root: Path = ROOT) -> str | None:
    """Return the demo's recorded output, or None where there is none."""
    path = root / DEMO_OUTPUT
    return fence("$ make demo\n" + path.read_text(encoding="utf-8").rstrip()) if path.exists() else None


def replace_block(text: str, name: str, content: str) -> str:
    """Return the text with a new content between a block's two markers; each must be there once."""
    begin, end = f"<!-- {name} -->\n", f"\n<!-- /{name} -->"
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"expected one {begin.strip()} and one {end.strip()}")
    head, rest = text.split(begin)
    return head + begin + content + rest[rest.index(end) :]


BLOCKS: dict[str, Callable[[Path], str | None]] = {
    "demo": demo_block,
    "owner-commands": lambda root: commands_block("owner"),
    "provider-commands": lambda root: commands_block("provider"),
    "recipe-fields": lambda root: recipe_block(),
    "python-api": lambda root: python_block(),
    "python-example": python_example_block,
    "decisions": decisions_block,
    "tree": tree_block,
}
"""What may stand on a page, by the name between its markers; None leaves the block as it is."""


def refresh(text: str, root: Path = ROOT) -> str:
    """Return a page's text with every block that it has as it should be."""
    for name, block in BLOCKS.items():
        has_block = f"<!-- {name} -->\n" in text
        if has_block and (content := block(root)) is not None:
            text = replace_block(text, name, content)
    return text


def pages(root: Path = ROOT) -> list[Path]:
    """Return every document that may have blocks."""
    return sorted([*root.glob("*.md"), *root.glob("docs/**/*.md")])


def main() -> None:
    """Rewrite the pages whose blocks are stale, and name them."""
    for path in pages():
        before = path.read_text(encoding="utf-8")
        after = refresh(before)
        if after != before:
            path.write_text(after, encoding="utf-8")
            print(f"{path.relative_to(ROOT)}: rewritten")


if __name__ == "__main__":
    main()
