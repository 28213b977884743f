"""Leaks tried from inside a real run; a canary in the private documents is searched for everywhere."""

import base64
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from owner.trust.pinning import pin_key
from shared.bundle import open_bundle
from shared.pieces import build_tokenizer, read_pieces
from shared.signature import read_public_key
from shared.tokenizer import encode_document
from tests.parties import ROOT, write_private
from tests.test_isolation import PROBES, listeners  # noqa: F401

DEMO = ROOT / "examples" / "demo"
CANARY = "zebra-77-quartz-Vexillology"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel walls are Linux's")

SABOTAGE = f"""
import sys
given, sys.argv = sys.argv[:2], ["owner", *sys.argv[2:]]
import owner.cli.shell as shell
from owner.cli import main
from owner.isolation.walls import raise_walls
def raise_and_lie_in_wait(*arguments):
    walls = raise_walls(*arguments)
    import owner.specializing as story
    adapt = story.adapt
    def leak_first(*arguments, **options):
        command, sys.argv = sys.argv, given
        found = {{}}
        exec({PROBES!r}, found)
        sys.argv = command
        print("PROBED", found["json"].dumps(found["run"]()), file=sys.stderr)
        return adapt(*arguments, **options)
    story.adapt = leak_first
    return walls
shell.raise_walls = raise_and_lie_in_wait
main()
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A machine of its own: home, temporary folder, private documents with the canary, the demo's key."""
    for name in ("home", "tmp", "trust"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("PLANEARLY_HOME", str(tmp_path / "trust"))
    pin_key(DEMO / "provider.pub")
    private = write_private(tmp_path / "private", 6)
    for path in sorted(private.iterdir()):
        path.write_text(f"{CANARY} {path.read_text()[:3000]} {CANARY}")
    (private / "broken.jsonl").write_text(f'{{"text": "{CANARY}"}}\n{{"text": {CANARY}\n["{CANARY}"]\n')
    (private / "latin.txt").write_bytes(CANARY.encode() + b"\xff\xfe\x00")
    (private / "empty.txt").write_text("")
    return tmp_path


def start(place, code="from owner.cli import main; main()", more=(), **options):
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "HOME": str(place / "home"),
        "TMPDIR": str(place / "tmp"),
        "OMP_NUM_THREADS": "1",
    }
    command = ["specialize", "--bundle", DEMO / "pn16.st", "--data", place / "private", "--epochs", "1"]
    return subprocess.Popen(
        [sys.executable, "-c", code, *more, *map(str, command)],
        cwd=place,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def canaries():
    """Return the canary as it could stand in a file: text, wide text, base64, token ids."""
    with open_bundle(DEMO / "pn16.st", [read_public_key(DEMO / "provider.pub")]) as bundle:
        tokenizer = build_tokenizer(read_pieces(bundle.file("tokenizer.json")))
    ids = encode_document(tokenizer, CANARY)[1:-1]
    assert len(ids) > 4
    wide = [ids.astype(kind).tobytes() for kind in (np.uint16, np.uint32, np.int64)]
    text = CANARY.encode()
    return [text, text[::-1], CANARY.encode("utf-16-le"), base64.b64encode(text)[:-4], *wide]


def leaked(place, *printed):
    """Return where a canary is found: every file but the private documents and the model, and the output."""
    found = ["printed" for text in printed if CANARY in text]
    for path in place.rglob("*"):
        kept = path.relative_to(place).parts[0] == "private" or path.suffix == ".safetensors"
        if path.is_file() and not kept:
            content = path.read_bytes()
            found += [str(path) for canary in canaries() if canary in content]
    return found


def test_from_inside_a_run_nothing_gets_out_and_the_run_ends_well(place, listeners):  # noqa: F811
    argument, descriptor, _ = listeners
    run = start(place, SABOTAGE, [argument], pass_fds=[descriptor])
    out, err = run.communicate(timeout=300)
    assert run.returncode == 0, err
    probed = json.loads(next(line for line in err.splitlines() if line.startswith("PROBED"))[7:])
    assert len(probed) == 26
    assert set(probed.values()) == {"stopped"}
    assert out.strip() == "specialized/model"


def test_the_canary_is_nowhere_but_in_the_model_and_nothing_else_was_written(place):
    before = {path for path in place.rglob("*") if path.is_file()}
    run = start(place)
    out, err = run.communicate(timeout=300)
    assert run.returncode == 0, err
    assert "broken.jsonl" in (place / "specialized" / "report.json").read_text()
    assert leaked(place, out, err) == []
    written = {path.relative_to(place) for path in place.rglob("*") if path.is_file()} - before
    elsewhere = {path for path in written if path.parts[0] not in ("specialized", "private")}
    assert {str(path) for path in elsewhere} <= {"trust/state.json", *map(str, _under(place, before))}


def _under(place, paths):
    return [path.relative_to(place) for path in paths]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT, signal.SIGINT])
def test_a_run_that_is_ended_leaves_no_text_and_no_core(place, number):
    run = start(place)
    work = place / ".specialized.unfinished"
    deadline = time.monotonic() + 120
    while not list(work.glob("*/step-*")) and time.monotonic() < deadline and run.poll() is None:
        time.sleep(0.05)
    assert run.poll() is None
    run.send_signal(number)
    out, err = run.communicate(timeout=60)
    assert run.returncode == (130 if number == signal.SIGINT else -number)
    assert leaked(place, out, err) == []
    assert not list(place.glob("core*"))
    assert work.stat().st_mode & 0o077 == 0


def test_an_error_in_the_midst_of_the_text_does_not_quote_it(place):
    # A library's own exception, raised while it holds the text, with the text in its message.
    code = """
import sys
import owner.cli.shell as shell
from owner.cli import main
from owner.isolation.walls import raise_walls
def raise_and_break(*arguments):
    walls = raise_walls(*arguments)
    import owner.documents.windows as windows
    def broken(tokenizer, text):
        raise ValueError("cannot encode " + text)
    windows.encode_document = broken
    return walls
shell.raise_walls = raise_and_break
main()
"""
    run = start(place, code)
    out, err = run.communicate(timeout=120)
    assert run.returncode == 1
    assert "owner: error: ValueError: withheld, may quote private text" in err
    assert "windows.py:" in err
    assert leaked(place, out, err) == []
    assert not (place / ".specialized.unfinished").exists()
    assert not Path(place / "specialized").exists()
