"""The documents are true: fresh blocks, links that lead somewhere, names and numbers as in the code."""

import ast
import importlib.util
import re
import shlex
import shutil
import subprocess
import tomllib
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from docs.excerpts import help_of
from owner.cli import main as owner
from provider.cli import main as provider
from provider.recipe import read_recipe

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
GROUPS = {"owner": owner, "provider": provider}
CODE_FOLDERS = "shared|provider|owner|docs|tests|examples|benchmarks"
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
PATH = re.compile(rf"`((?:{CODE_FOLDERS})/[\w./-]+\.(?:py|toml))(?::([\w.-]+))?`")
NUMBER = re.compile(r"(\d[\d,._]*(?:e-?\d+)?)\s+\(`((?:shared|provider|owner)/[\w/]+\.py):([\w.-]+)`\)")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HOSTS = re.compile(
    r"pypi\.org|pythonhosted\.org|huggingface\.co|\bhf\.co|anaconda\.org|conda\.io|npmjs\.|crates\.io"
    r"|modelscope\.|download\.pytorch\.org|pip install ['\"]?planearly"
)


@cache
def load_refresh() -> ModuleType:
    spec = importlib.util.spec_from_file_location("refresh", ROOT / "docs/refresh.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def without_fences(text: str) -> str:
    return FENCE.sub("", text)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def defined_names(path: Path) -> frozenset[str]:
    """Functions, classes, constants and members (`Class.member`) of a Python file."""
    names: set[str] = set()

    def collect(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names.add(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                collect(node.body, f"{prefix}{node.name}.")
            targets = node.targets if isinstance(node, ast.Assign) else []
            targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
            for target in targets:
                for leaf in ast.walk(target):
                    if isinstance(leaf, ast.Name):
                        names.add(prefix + leaf.id)

    collect(ast.parse(text_of(path)).body, "")
    return frozenset(names)


def value_of(path: str, name: str) -> Any:
    """A constant, a dataclass default, or an entry of a table of presets, by its dotted name."""
    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    value: Any = module
    for part in name.split("."):
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    return value


def numbers_in(text: str) -> list[tuple[str, str, str]]:
    return NUMBER.findall(text)


def anchors_of(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", without_fences(text_of(path)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands_in(text: str) -> list[str]:
    lines = [line.removeprefix("$ ") for _, block in FENCE.findall(text) for line in block.splitlines()]
    return [line for line in lines if re.match(r"(owner|provider) [\w-]", line)]


def tracked_files() -> list[str]:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("no git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True)
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()]


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_what_a_document_repeats_from_the_code_is_fresh(path):
    found = text_of(path)
    assert found == load_refresh().refresh(found), "stale: run `make docs`"


def test_every_block_stands_in_a_document():
    texts = [text_of(path) for path in DOCUMENTS]
    for name in load_refresh().BLOCKS:
        assert any(f"<!-- {name} -->\n" in text for text in texts), name


def test_the_reference_names_every_command_and_every_recipe_field():
    commands = text_of(ROOT / "docs/reference/owner.md") + text_of(ROOT / "docs/reference/provider.md")
    for party, group in GROUPS.items():
        for name in group.commands:
            assert f"\n## {party} {name}\n" in commands
    recipe = text_of(ROOT / "docs/reference/recipe.md")
    for path in RECIPES:
        sections = tomllib.loads(text_of(path))
        names = {name for table in sections.values() if isinstance(table, dict) for name in table}
        for name in names | {name for name in sections if not isinstance(sections[name], dict)}:
            assert f"`{name}`" in recipe, f"{name} of {path.name}"


def test_a_block_without_its_two_markers_is_refused():
    refresh = load_refresh()
    assert (
        refresh.replace_block("<!-- a -->\nold\n<!-- /a -->\n", "a", "new")
        == "<!-- a -->\nnew\n<!-- /a -->\n"
    )
    for text in ("no markers", "<!-- a -->\n", "<!-- a -->\nx\n<!-- /a -->\n" * 2):
        with pytest.raises(ValueError, match="expected one"):
            refresh.replace_block(text, "a", "new")


def test_the_demo_block_is_the_recorded_output_and_stays_without_one(tmp_path):
    refresh = load_refresh()
    assert refresh.demo_block(tmp_path) is None
    recorded = tmp_path / refresh.DEMO_OUTPUT
    recorded.parent.mkdir(parents=True)
    recorded.write_text("owner: done\n")
    assert refresh.demo_block(tmp_path) == "```\n$ make demo\nowner: done\n```"


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ('"""One line."""', "One line"),
        ('"""Wrapped\nover two lines: both. Not this.\n\nNor this.\n"""', "Wrapped over two lines: both"),
        ('"""See paper §4, App. C, and `bundle.py`."""', "See paper §4, App. C, and `bundle.py`"),
        ("x = 1", ""),
    ],
)
def test_a_files_line_is_the_first_sentence_of_its_docstring(source, sentence):
    assert load_refresh().first_sentence(source) == sentence


def test_every_tracked_file_has_a_line_in_the_file_tree():
    refresh = load_refresh()
    missing = [name for name in tracked_files() if not refresh.has_line(name)]
    assert not missing, "add to OTHER_FILES in docs/refresh.py"
    tree = refresh.tree_block()
    for name in tracked_files():
        folder, _, rest = name.partition("/")
        if name.endswith(".py") and not name.endswith("__init__.py"):
            assert re.search(rf"^{folder}/", tree, re.MULTILINE), name
            assert re.search(rf"^  {re.escape(rest)} +\S", tree, re.MULTILINE), f"{name} has no docstring"


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_relative_link_leads_to_a_file_and_a_heading(path):
    for link in LINK.findall(without_fences(text_of(path))):
        if "://" in link:
            continue
        target, _, anchor = link.partition("#")
        file = (path.parent / target).resolve() if target else path
        assert file.exists(), link
        assert file.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors_of(file), link


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_named_file_and_function_exists(path):
    for file, name in PATH.findall(text_of(path)):
        assert (ROOT / file).exists(), file
        owner_name = name if not name.startswith("PRESETS.") else "PRESETS"
        assert not name or owner_name in defined_names(ROOT / file), f"{file}:{name}"


def test_the_paper_map_names_a_place_or_says_planned():
    rows = re.findall(r"^\| ((?:§|App).+?) \| (.+) \|$", text_of(ROOT / "docs/paper-map.md"), re.MULTILINE)
    assert len(rows) > 20
    for section, place in rows:
        assert PATH.search(place) or place == "planned", section


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_numbers_with_a_name_behind_them_are_those_of_the_code(path):
    for number, file, name in numbers_in(text_of(path)):
        assert float(number.replace(",", "").replace("_", "")) == value_of(file, name), f"{file}:{name}"


def test_the_numbers_of_the_paper_map_are_found_at_all():
    assert len(numbers_in(text_of(ROOT / "docs/paper-map.md"))) >= 15


def test_what_is_said_in_words_is_true():
    from shared.embedder import NAME, SUB_WINDOW_PIECES
    from shared.manifest import FORMAT
    from shared.pieces import BYTE_PIECES, SPECIAL_PIECES
    from shared.sizes import PRESETS

    recipe = read_recipe(ROOT / "examples/release-pn32.toml")
    assert recipe.projection is not None
    assert recipe.projection.capacity == recipe.projection.expert_size == recipe.clustering.n_clusters
    assert (len(recipe.projection.layers), recipe.model.n_layers) == (5, 7)  # docs/paper-map.md
    assert SUB_WINDOW_PIECES + 2 == 256  # decision 5
    assert (len(SPECIAL_PIECES), len(BYTE_PIECES)) == (3, 256)  # decision 7
    assert f"Bundle format: {FORMAT}, new." in text_of(ROOT / "CHANGELOG.md")
    assert NAME in text_of(ROOT / "docs/decisions/0005-embedder.md")
    assert {
        name for name in re.findall(r"`((?:slm|llm)-[\w-]+)`", text_of(ROOT / "docs/paper-map.md"))
    } <= set(PRESETS)


def fields_of_the_report() -> set[str]:
    """The keys of the dictionary `report` in owner/specializing.py, and those that are added to it there."""
    fields: set[str] = set()
    for node in ast.walk(ast.parse(text_of(ROOT / "owner/specializing.py"))):
        if not isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
            continue
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        if isinstance(target, ast.Subscript) and ast.unparse(target.value) == "report":
            fields.add(ast.literal_eval(target.slice))
        elif ast.unparse(target) == "report" and isinstance(node.value, ast.Dict):
            fields |= {key.value for key in node.value.keys if isinstance(key, ast.Constant)}
    return fields


def test_the_documents_list_every_field_of_the_report():
    tables = [text_of(path).partition("\n| field | holds |")[2] for path in DOCUMENTS]
    sections = [table.partition("\n\n")[0] for table in tables if table]
    assert sections
    for section in sections:
        rows = re.findall(r"^\| (`.+?`) \|", section, re.MULTILINE)
        assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == fields_of_the_report()


def test_architecture_lists_every_stage():
    trees = [
        ast.parse(text_of(ROOT / "provider" / name)) for name in ("naming.py", "preparing.py", "releasing.py")
    ]
    calls = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    names = [
        call.args[1].value if isinstance(call.args[1], ast.Constant) else "pretrain-<system>"
        for call in calls
        if isinstance(call.func, ast.Name) and call.func.id == "run_stage"
    ]
    listed = re.findall(r"^\| `([\w<>-]+)` \| ", text_of(ROOT / "docs/architecture.md"), re.MULTILINE)
    assert len(names) == 7
    assert sorted(names) == sorted(listed)


def test_every_dependency_has_its_reason():
    project = tomllib.loads(text_of(ROOT / "pyproject.toml"))["project"]
    extras = project["optional-dependencies"]
    named = [*project["dependencies"], *(name for extra in extras.values() for name in extra)]
    packages = {re.split(r"[\[<>=]", name)[0] for name in named} - {"planearly"}
    page = text_of(ROOT / "docs/decisions/0004-dependencies.md")
    listed = set(re.findall(rf"^\| (?:(?:{'|'.join(extras)}) \| )?([\w-]+) \| ", page, re.MULTILINE))
    assert packages == listed - {"package", "extra", "---"}


def test_every_make_target_in_the_documents_exists():
    targets = set(re.findall(r"^([\w-]+):", text_of(ROOT / "Makefile"), re.MULTILINE))
    for path in DOCUMENTS:
        for target in re.findall(r"`make\s+([a-z]+)[^`]*`", text_of(path)):
            assert target in targets, f"{name_of(path)}: make {target}"
    for target in targets:
        assert f"| `make {target}" in text_of(ROOT / "CONTRIBUTING.md"), target


@pytest.mark.parametrize("party", list(GROUPS))
def test_every_commands_help_ends_in_an_example_that_parses(party):
    for name in GROUPS[party].commands:
        last = help_of(f"{party} {name}").splitlines()[-1]
        assert last.startswith(f"  Example: {party} {name}"), name
        check_parses(last.removeprefix("  Example: "))


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_every_command_in_a_fenced_block_parses(path):
    for command in commands_in(text_of(path)):
        if "--help" not in command:
            check_parses(command)


def check_parses(command: str) -> None:
    party, name, *arguments = shlex.split(command, comments=True)
    with GROUPS[party].commands[name].make_context(name, arguments):
        pass


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_no_document_names_a_registry_or_a_model_hub(path):
    found = HOSTS.search(text_of(path))
    assert found is None, found


RECIPES = sorted(set(ROOT.glob("examples/**/*.toml")) - {ROOT / "examples/trust.toml"})  # no recipe


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_every_recipe_under_examples_parses(path):
    assert read_recipe(path).kind in ("pn", "mix", "slm")


def test_decisions_are_numbered_one_after_the_other():
    pages = sorted((ROOT / "docs/decisions").glob("*.md"))
    assert [int(page.name[:4]) for page in pages] == list(range(1, len(pages) + 1))
    for page in pages:
        first, _, rest = text_of(page).partition("\n\n")
        assert first.startswith(f"# {int(page.name[:4])}. ")
        assert rest.startswith("Status: ")
