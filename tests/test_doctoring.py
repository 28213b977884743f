"""The doctor's findings against what is known of this machine, and completion in a real bash."""

import json
import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

import owner.cli
from owner.doctoring.examining import describe, examine
from owner.doctoring.findings import MISSING, OK, WARN
from owner.doctoring.inputs import EXTRAS
from owner.doctoring.machine import available_bytes, training_bytes
from owner.trust.remembering import HOME_VARIABLE
from shared.sizes import PRESETS
from shared.slm import build_slm, count_parameters
from tests.children import ONE_THREAD

VECTORS = Path(__file__).parent / "vectors"
ROOT = Path(__file__).parent.parent


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path / "home"))
    return tmp_path / "home"


def trusting(home):
    assert CliRunner().invoke(owner.cli.main, ["trust", "add", str(VECTORS / "provider.pub")]).exit_code == 0


def by_name(checks):
    return {check.name: check for check in checks}


def test_without_a_trusted_key_no_run_is_possible_and_the_hint_says_how(home, tmp_path):
    checks = by_name(examine(None, tmp_path / "out"))
    assert checks["trust"].state == MISSING
    assert checks["trust"].hint == "owner trust add provider.pub"
    assert describe(list(checks.values()))[-1] == "`owner specialize` cannot run here: trust"


def test_with_a_key_and_its_bundle_all_that_is_needed_is_there(home, tmp_path):
    trusting(home)
    checks = by_name(examine(VECTORS / "pn.st", tmp_path / "out"))
    assert not [check.name for check in checks.values() if check.is_in_the_way]
    assert "every digest verified" in checks["bundle"].found
    assert "landlock" in checks["walls"].found or checks["walls"].state == WARN
    assert describe(list(checks.values()))[-1] == "`owner specialize` can run here"


def test_a_damaged_bundle_stands_in_the_way(home, tmp_path):
    trusting(home)
    done = CliRunner().invoke(
        owner.cli.main, ["doctor", "--bundle", str(VECTORS / "flipped-data-byte.st"), "--json"]
    )
    found = json.loads(done.stdout)
    assert done.exit_code == 1
    assert found["can_specialize"] is False
    assert next(check for check in found["checks"] if check["name"] == "bundle")["state"] == MISSING


def test_an_out_folder_that_is_nowhere_stands_in_the_way(home, tmp_path):
    trusting(home)
    checks = by_name(examine(None, tmp_path / "no" / "out"))
    assert checks["disk"].is_in_the_way
    assert "no such folder" in checks["disk"].found


def test_a_missing_extra_is_named_with_its_command_and_stands_in_nobodys_way(home, tmp_path, monkeypatch):
    monkeypatch.setitem(EXTRAS, "lora", ("no_such_module_here", "--lora"))
    lora = by_name(examine(None, tmp_path / "out"))["lora"]
    assert (lora.state, lora.hint) == (MISSING, "pip install peft")
    assert not lora.is_in_the_way


def test_memory_is_counted_from_parameters_and_live_values():
    sizes = PRESETS["laptop"]
    state = 16 * count_parameters(build_slm(sizes, "meta"))
    assert state < training_bytes(sizes) < state + 200e6
    free, _ = available_bytes()
    assert 0 < free <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_a_process_without_network_devices_is_found_offline():
    code = (
        "from owner.isolation.kernel import enter_namespace; enter_namespace()\n"
        "from owner.doctoring.surroundings import check_network\n"
        "check = check_network(); print(check.state, check.found)"
    )
    environment = {
        name: value for name, value in os.environ.items() if "proxy" not in name.lower()
    } | ONE_THREAD
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment
    )
    if "PermissionError" in done.stderr or "Errno" in done.stderr:
        pytest.skip("this machine gives no user namespaces")
    assert done.stdout.startswith(f"{OK} offline: no default route"), done.stderr


def test_a_proxy_variable_is_a_way_out(home, tmp_path, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    network = by_name(examine(None, tmp_path / "out"))["network"]
    assert network.state == WARN
    assert "proxy variables: https_proxy" in network.found
    assert "proxy.example" not in network.found


def test_a_clock_that_went_back_is_noticed(home, tmp_path, monkeypatch):
    home.mkdir()
    (home / "state.json").write_text(
        json.dumps(
            {
                "format": "planearly-trust/v1",
                "names": {},
                "versions": {},
                "time": "2999-01-01T00:00:00Z",
                "trust_files": {},
            }
        )
    )
    assert by_name(examine(None, tmp_path / "out"))["clock"].state == WARN


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for_the_shell(shell):
    done = CliRunner().invoke(owner.cli.main, ["completion", shell], prog_name="owner")
    assert done.exit_code == 0
    assert f"_OWNER_COMPLETE={shell}_complete" in done.output


def typed(terminal, keys, expected, limit_s=60.0):
    """Type into a terminal until it shows the expected text; return what it showed."""
    os.write(terminal, keys.encode())
    shown, end = "", time.monotonic() + limit_s
    while expected not in shown and time.monotonic() < end:
        if select.select([terminal], [], [], 0.1)[0]:
            shown += os.read(terminal, 4096).decode(errors="replace")
    assert expected in shown, shown
    return shown


def test_bash_completes_commands_options_choices_and_paths(tmp_path):
    (tmp_path / "privates").mkdir()
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(tmp_path)
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = os.environ | {"PATH": path, "PS1": "ready> ", "TERM": "dumb"}
        os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i"], environment)
    try:
        typed(terminal, "", "ready> ")
        registered = "-F _owner_completion owner\r\nready> "
        typed(terminal, 'eval "$(owner completion bash)"; complete -p owner\n', registered)
        typed(terminal, "owner specia\t", "owner specialize ")
        typed(terminal, "--bun\t", "--bundle ")
        typed(terminal, "x.st --data priv\t", "privates")
        typed(terminal, "\x15owner export m --format onn\t", "--format onnx ")
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        os.close(terminal)
