"""Installing without a network: the wheel is whole, and pip takes nothing but what was packed."""

import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("owner", "provider", "shared")


def load(path: str):
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pip(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check", "--no-input"]
    return subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def wheelhouse(tmp_path_factory) -> Path:
    """This project's own wheel, built without a network, and its line of requirements."""
    folder = tmp_path_factory.mktemp("wheelhouse")
    done = pip("wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", folder, ROOT)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    (folder / "requirements.txt").write_text(load("examples/airgap/pack.py").pin(wheel) + "\n")
    return folder


def install(wheelhouse: Path, environment: Path) -> subprocess.CompletedProcess[str]:
    """Install as docs/howto/air-gap.md says, but for the dependencies, beside this environment's own copy."""
    python = ["--python", environment / "bin/python"]
    source = ["--no-index", "--find-links", wheelhouse, "--require-hashes"]
    one = ["--no-deps", "--ignore-installed"]
    return pip(*python, "install", *one, *source, "-r", wheelhouse / "requirements.txt")


@pytest.fixture
def environment(tmp_path) -> Path:
    """A new environment that sees the dependencies of this one, and not this project."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "planearly"], check=True)
    (site,) = (tmp_path / "planearly").glob("lib/python*/site-packages")
    seen = [path for path in sys.path if path.endswith("site-packages")]
    (site / "dependencies.pth").write_text("\n".join(seen) + "\n")
    return tmp_path / "planearly"


def test_the_wheel_holds_every_file_of_the_three_packages_and_no_other(wheelhouse):
    (wheel,) = wheelhouse.glob("*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    listed = subprocess.run(
        ["git", "ls-files", *PACKAGES], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("no git checkout")
    assert held == set(listed.stdout.split())


def test_the_wheel_installs_without_a_network_and_its_commands_run(wheelhouse, environment, tmp_path):
    done = install(wheelhouse, environment)
    assert done.returncode == 0, done.stderr
    for command in ("owner", "provider"):
        helped = subprocess.run(
            [environment / "bin" / command, "--help"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        assert helped.stdout.startswith(f"Usage: {command} ")
    where = "import owner, provider, shared; print(owner.__file__, provider.__file__, shared.__file__)"
    found = subprocess.run(
        [environment / "bin/python", "-c", where], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert all(path.startswith(str(environment)) for path in found.stdout.split())


def test_a_wheel_that_was_changed_on_its_way_is_refused(wheelhouse, environment, tmp_path):
    (wheel,) = wheelhouse.glob("*.whl")
    changed = tmp_path / "changed"
    changed.mkdir()
    content = bytearray(wheel.read_bytes())
    content[len(content) // 2] ^= 1
    (changed / wheel.name).write_bytes(content)
    (changed / "requirements.txt").write_text((wheelhouse / "requirements.txt").read_text())
    done = install(changed, environment)
    assert done.returncode != 0
    assert "DO NOT MATCH THE HASHES" in done.stderr
    assert not (environment / "bin/owner").exists()


def test_the_rehearsal_runs_the_commands_of_the_page():
    steps = load("benchmarks/airgap.py").steps_of(
        (ROOT / "docs/howto/air-gap.md").read_text(encoding="utf-8")
    )
    assert any("--no-index" in step and "--require-hashes" in step for step in steps)
    assert steps[-1].startswith("owner specialize ")
