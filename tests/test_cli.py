"""The two commands: help that comes at once, exit codes, errors as lines."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import owner.cli
import provider.cli
from shared.errors import error_lines

COMMANDS = {"owner": owner.cli.main, "provider": provider.cli.main}


@pytest.mark.parametrize("party", ["owner", "provider"])
def test_help_imports_neither_torch_nor_numpy(party):
    code = (
        f"import sys; sys.argv = [{party!r}, '--help']\nfrom {party}.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'numpy', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
def test_inspect_verifies_in_100_mb_because_it_imports_no_torch(tmp_path):
    """Of the largest bundle at hand; what grows with a bundle's size is in docs/benchmarks.md."""
    demo = Path(__file__).parent.parent / "examples" / "demo"
    environment = os.environ | {"PLANEARLY_HOME": str(tmp_path)}
    code = (
        "import pathlib, sys\nfrom owner.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])\n"
        "print(pathlib.Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])"
    )
    for arguments in (["trust", "add", demo / "provider.pub"], ["inspect", demo / "pn16.st"]):
        command = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    *shown, modules, peak_kb = done.stdout.splitlines()
    assert any("every digest verified" in line for line in shown)
    assert modules == "[]"
    assert int(peak_kb) < 100_000


@pytest.mark.parametrize("party", ["owner", "provider"])
def test_every_commands_help_ends_in_an_example(party):
    for name in COMMANDS[party].commands:
        shown = CliRunner().invoke(COMMANDS[party], [name, "--help"])
        assert shown.exit_code == 0
        assert f"Example: {party} {name}" in shown.output.strip().splitlines()[-1]


@pytest.mark.parametrize("arguments", [["specialize"], ["specialize", "--bundle", "x"], ["nonsense"]])
def test_wrong_usage_exits_with_2(arguments):
    assert CliRunner().invoke(owner.cli.main, arguments).exit_code == 2


def test_a_missing_bundle_is_one_line_and_exit_code_1(tmp_path, monkeypatch):
    monkeypatch.setenv("PLANEARLY_HOME", str(tmp_path))
    done = CliRunner().invoke(owner.cli.main, ["inspect", str(tmp_path / "no.st")])
    assert done.exit_code == 1
    assert "no.st" in done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)


def test_inspect_prints_the_signed_manifest_as_json(tmp_path, monkeypatch):
    vectors = Path(__file__).parent / "vectors"
    monkeypatch.setenv("PLANEARLY_HOME", str(tmp_path))
    runner = CliRunner()
    assert runner.invoke(owner.cli.main, ["trust", "add", str(vectors / "provider.pub")]).exit_code == 0
    listed = runner.invoke(owner.cli.main, ["trust", "list"])
    shown = runner.invoke(owner.cli.main, ["inspect", str(vectors / "pn.st"), "--json"])
    found = json.loads(shown.stdout)
    assert found["verified"] is True
    assert found["key_id"] in listed.stdout
    assert found["manifest"]["kind"] == "pn"
    text = runner.invoke(owner.cli.main, ["inspect", str(vectors / "pn.st")]).stdout
    assert found["largest_clusters"] == []
    assert "every digest verified" in text
    assert f"key {found['key_id']}" in text


def test_an_unreadable_recipe_names_the_field(tmp_path):
    recipe = tmp_path / "r.toml"
    recipe.write_text('name = "x"\nspeed = 3\n[model]\npreset = "laptop"\n[corpus]\ndescription = ""\n')
    done = CliRunner().invoke(provider.cli.main, ["release", str(recipe), "--corpus", str(tmp_path)])
    assert done.exit_code == 1
    assert "r.toml" in done.output


def test_a_package_that_an_update_needs_and_nobody_installed_is_named():
    missing = ModuleNotFoundError("No module named 'rensa'", name="rensa")
    assert error_lines(missing)[0] == "error: the package rensa is not installed"
    assert "make setup" in error_lines(missing)[1]
