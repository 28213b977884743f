"""What reference pages quote from the code: help texts, recipe fields, the Python API, titles of decisions.

Each function returns one block for docs/refresh.py to put on a page.
"""

import ast
import inspect
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

import click
from click.testing import CliRunner

ROOT = Path(__file__).resolve().parent.parent
HELP_COLUMNS = 100


def command_groups() -> dict[str, click.Group]:
    """Return the two commands by name."""
    from owner.cli import main as owner
    from provider.cli import main as provider

    return {"owner": owner, "provider": provider}


def all_commands(name: str, command: click.Command) -> list[str]:
    """Return a command's name and those of all below it, in the order of its help."""
    below = sorted(command.commands.items()) if isinstance(command, click.Group) else []
    return [name, *(leaf for part, child in below for leaf in all_commands(f"{name} {part}", child))]


def help_of(command: str) -> str:
    """Return what `command --help` prints on a terminal of HELP_COLUMNS columns."""
    groups = command_groups()
    name, *rest = command.split()
    result = CliRunner().invoke(groups[name], [*rest, "--help"], prog_name=name, terminal_width=HELP_COLUMNS)
    if result.exit_code != 0:
        raise RuntimeError(f"{command} --help: exit code {result.exit_code}")
    return result.output.rstrip()


def commands_block(party: str) -> str:
    """Return a heading and the help text of every command of a party."""
    names = all_commands(party, command_groups()[party])
    return spaced(*(f"## {name}\n\n{fence(help_of(name))}" for name in names))


def field_docstrings(kind: type[Any]) -> dict[str, str]:
    """Return the string below each field of a dataclass, on one line."""
    (declared,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(declared, ast.ClassDef)
    found = {}
    for node, after in zip(declared.body, declared.body[1:], strict=False):
        if (
            isinstance(node, ast.AnnAssign)
            and isinstance(after, ast.Expr)
            and isinstance(node.target, ast.Name)
        ):
            found[node.target.id] = " ".join(ast.literal_eval(after.value).split())
    return found


def _default(item: Field[Any], required: str) -> str:
    if item.default is MISSING:
        return required if item.default_factory is MISSING else "its table's"
    if item.default is None:
        return "none"
    shown = list(item.default) if isinstance(item.default, tuple) else item.default
    return f"`{shown}`" if not isinstance(shown, str) else f'`"{shown}"`'


def fields_table(kind: type[Any], left_out: tuple[str, ...] = (), required: str = "required") -> str:
    """Return a Markdown table of a dataclass: field, default, what its docstring says."""
    said = field_docstrings(kind)
    rows = [
        f"| `{item.name}` | {_default(item, required)} | {said.get(item.name, '')} |"
        for item in fields(kind)
        if item.name not in left_out
    ]
    return "\n".join(["| field | default | meaning |", "| --- | --- | --- |", *rows])


def recipe_block() -> str:
    """Return every table of a recipe with its fields."""
    from provider import recipe
    from shared.sizes import PRESETS, SlmConfig
    from shared.train_config import TrainConfig

    sections: dict[str, type[Any]] = {
        "corpus": recipe.CorpusConfig,
        "tokenizer": recipe.TokenizerConfig,
        "clustering": recipe.ClusteringConfig,
        "projection": recipe.ProjectionConfig,
        "pretraining": TrainConfig,
        "replay": recipe.ReplayConfig,
    }
    parts = ["## Top level", fields_table(recipe.Recipe, ("model", *sections)), "## `[model]`"]
    parts.append(
        "`preset` is required and gives every size its value; the other fields change it. Presets: "
        + ", ".join(f"`{name}`" for name in PRESETS)
        + "."
    )
    parts.append(fields_table(SlmConfig, required="the preset's"))
    for name, kind in sections.items():
        parts += [f"## `[{name}]`", inspect.cleandoc(kind.__doc__ or ""), fields_table(kind)]
    return spaced(*parts)


def python_block() -> str:
    """Return a heading, the signature and the docstring of every name that owner hands out."""
    import owner

    parts = []
    for name in owner.__all__:
        (node,) = ast.parse(inspect.getsource(getattr(owner, name))).body
        assert isinstance(node, ast.FunctionDef)
        parameters = ",\n    ".join(ast.unparse(node.args).split(", "))
        signature = f"{name}(\n    {parameters},\n) -> {ast.unparse(node.returns) if node.returns else None}"
        parts += [f"## owner.{name}", fence(signature, "python"), ast.get_docstring(node) or ""]
    return spaced(*parts)


def python_example_block(root: Path = ROOT) -> str:
    """Return the example program."""
    return fence((root / "examples/specialize.py").read_text(encoding="utf-8").rstrip(), "python")


def decisions_block(root: Path = ROOT) -> str:
    """Return a line for every decision, with its title."""
    pages = sorted((root / "docs/decisions").glob("*.md"))
    titles = [page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ") for page in pages]
    links = [f"- [{title}](../decisions/{page.name})" for page, title in zip(pages, titles, strict=True)]
    return spaced("\n".join(links))


def spaced(*parts: str) -> str:
    """Return the parts as paragraphs, the block's markers apart from them."""
    return "\n" + "\n\n".join(parts) + "\n"


def fence(text: str, language: str = "") -> str:
    """Return the text as a fenced block."""
    return f"```{language}\n{text}\n```"
