"""What stages tell while they work, the live line on a real terminal, and Ctrl-C in a real run."""

import json
import re
import shlex
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import owner
from shared.errors import PlanearlyError
from shared.progress import Moment, amount, beat, describe, duration, is_live, listening, show, stage
from tests import tiny
from tests.parties import run as run_party
from tests.parties import write_private
from tests.terminals import Terminal

DEMO = Path(__file__).parent.parent / "examples" / "demo"


def test_a_listener_hears_of_every_step_of_a_stage_and_of_its_end():
    heard = []
    show(1)  # nobody listens, in no stage
    with listening(heard.append), stage("read"):
        beat()
        show(1, None, "documents", "7 tokens")
        with stage("inner"):
            show(2, 4, "bytes")
        show(2, None, "documents")
    show(9)
    names = [moment and (moment.stage, moment.done) for moment in heard]
    assert names == [("read", 0), ("read", 1), ("inner", 2), None, ("read", 2), None]
    assert heard[1].figures == "7 tokens"


def test_a_thread_of_its_own_is_not_listened_to_and_lines_are_spared_for_a_live_listener_only():
    heard = []
    with listening(heard.append), stage("read"):
        assert not is_live()
        thread = threading.Thread(target=show, args=(1,))
        thread.start()
        thread.join()
        assert heard == []
        with listening(heard.append, is_live=True):
            assert is_live()
        assert not is_live()


def test_time_left_counts_from_where_a_resumed_stage_began(monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    heard = []
    with listening(heard.append), stage("pretrain"):
        show(500, 1000, "steps")
        assert heard[-1].left_s is None
        now = 110.0
        show(600, 1000, "steps")
        assert heard[-1].left_s == pytest.approx(40.0)
        show(3, 9, "windows")  # another unit, another pace
        assert heard[-1].left_s is None
        now = 112.0
        show(4, 9, "windows")
        assert heard[-1].left_s == pytest.approx(10.0)


def test_a_moment_in_words():
    assert describe(Moment("x", 12, 90, "steps", "train 2.4")).startswith("step 12/90 · train 2.4 · ")
    assert describe(Moment("x", 1234, None, "documents")) == "1,234 documents"
    assert describe(Moment("x", 1500, 3_000_000, "bytes", first=1500)) == "1.5 kB of 3.0 MB"
    assert describe(Moment("x", 12, 90, "steps", "train 2.4", first=12)) == "step 12/90 · train 2.4"
    assert (
        describe(Moment("x", 9, 9, "steps", "train 2.4"), is_short=True) == "step 9/9 · 0 s left · train 2.4"
    )
    assert describe(Moment("x", figures="onnx · f32")) == "onnx · f32"
    assert [duration(s) for s in (3.4, 600, 9000)] == ["3 s", "10 min", "2.5 h"]
    assert [amount(n) for n in (999, 1e6, 2.5e9)] == ["999 bytes", "1.0 MB", "2.5 GB"]


def test_training_shows_every_step_and_says_the_last_one_only_when_it_is_watched(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLANEARLY_HOME", "")
        tiny.make_inputs(tmp_path)
        tiny.release(tmp_path, tmp_path, kind="slm")
        tiny.trust(tmp_path)
        heard, said = [], []
        with listening(heard.append, is_live=True):
            tiny.specialize(tmp_path, tmp_path, tmp_path / "out" / "tiny.st", said.append)
    moments = [moment for moment in heard if moment]
    steps = [m.done for m in moments if m.unit == "steps"]
    assert sorted(set(steps)) == list(range(1, max(steps) + 1))
    assert {m.unit for m in moments} >= {"bytes", "documents", "sub-windows embedded", "steps"}
    assert re.fullmatch(
        r"train \d.\d{3} · held-out \d.\d{3} nats/token · [\d.]+k tokens/s", moments[-1].figures
    )
    assert sum("step " in line and "left" in line for line in said) == 1


LIVE = """
import sys, time
from shared.progress import show, stage
from shared.terminal import errors_printed, watched
with errors_printed("owner"), watched("owner", "--quiet" in sys.argv) as say:
    say("before")
    with stage("reading"):
        for n in range(1, 5):
            show(n, 4, "documents", "and [more]")
            time.sleep(0.15)
            say(f"line {n}")
    say("after")
print("result")
"""


def test_on_a_terminal_a_live_line_is_drawn_below_the_lines_and_is_gone_at_the_end(tmp_path):
    terminal = Terminal(["-c", LIVE], tmp_path, tmp_path / "out")
    assert terminal.wait() == 0
    drawn = terminal.shown.decode()
    assert re.search(r"3 of 4 documents · \d+ s left · and \[more\]", drawn)
    assert "━" in drawn
    assert terminal.screen() == ["owner: before", *(f"owner: line {n}" for n in range(1, 5)), "owner: after"]
    assert (tmp_path / "out").read_text() == "result\n"


def test_when_quiet_nothing_is_drawn_and_nothing_said(tmp_path):
    terminal = Terminal(["-c", LIVE, "--quiet"], tmp_path, tmp_path / "out")
    assert terminal.wait() == 0
    assert terminal.shown == b""
    assert (tmp_path / "out").read_text() == "result\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with private documents, whose owner trusts the demo's key."""
    folder = tmp_path_factory.mktemp("live")
    write_private(folder / "private", 12)
    (folder / "little").mkdir()
    for number in range(2):
        (folder / "little" / f"{number}.txt").write_text(f"The court finds for plaintiff {number}. " * 15)
    added = run_party("owner", "trust", "add", DEMO / "provider.pub", cwd=folder, home=folder / "home")
    assert added.returncode == 0
    return folder


def specialize(place, *more):
    """Start the command on a terminal."""
    code = "from owner.cli import main; main()"
    command = ["specialize", "--bundle", DEMO / "pn16.st", "--data", "private", *more]
    return Terminal(["-c", code, *command], place, place / "out", PLANEARLY_HOME=str(place / "home"))


def test_ctrl_c_says_the_command_that_goes_on_and_it_does(place):
    terminal = specialize(place, "--out", "my model", "--epochs", "1")
    terminal.read_until(lambda text: re.search(r"slm .*step \d+/\d+ · .*train", text) is not None)
    terminal.interrupt()
    assert terminal.wait() == 130
    drawn = terminal.screen()
    assert "Traceback" not in terminal.shown.decode()
    assert any(line.startswith("owner: interrupted;") for line in drawn)
    command = shlex.split(terminal.shown.decode().splitlines()[-1].removeprefix("owner:"))[1:]
    assert command[:3] == ["specialize", "--bundle", str(DEMO / "pn16.st")]
    assert command[-4:] == ["--out", "my model", "--epochs", "1"]
    assert list((place / ".my model.unfinished" / "slm").glob("step-*"))  # the first comes after 15 s
    again = run_party("owner", *command, cwd=place, home=place / "home")
    assert again.returncode == 0, again.stderr
    assert "resuming the unfinished run" in again.stderr
    assert re.search(r"slm +resumed at step [1-9]", again.stderr)
    assert again.stdout == "my model/model\n"


def test_a_second_ctrl_c_ends_the_process_at_once(tmp_path):
    code = (
        "import time\nfrom shared.terminal import errors_printed\n"
        "with errors_printed('owner'):\n    try:\n        print('up', flush=True)\n        time.sleep(60)\n"
        "    finally:\n        open('unwinding', 'w').close()\n        time.sleep(60)\n"
    )
    terminal = Terminal(["-c", code], tmp_path, tmp_path / "out")
    _wait_for(lambda: (tmp_path / "out").exists() and (tmp_path / "out").read_text() == "up\n")
    terminal.interrupt()
    _wait_for((tmp_path / "unwinding").exists)
    began = time.monotonic()
    terminal.interrupt()
    assert terminal.wait() == -2
    assert time.monotonic() - began < 20


def _wait_for(is_there, limit_s=60.0):
    end = time.monotonic() + limit_s
    while not is_there():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_quiet_and_json_leave_the_result_alone_on_stdout(place):
    arguments = ("--bundle", DEMO / "pn16.st", "--data", "little", "--epochs", 1, "--out", "quiet")
    done = run_party("owner", "specialize", *arguments, "--quiet", cwd=place, home=place / "home")
    assert (done.returncode, done.stdout, done.stderr) == (0, "quiet/model\n", "")
    samples = ("--json", "--with-samples")  # of a finished run: behind the walls, which let it add them
    again = run_party("owner", "specialize", *arguments, *samples, cwd=place, home=place / "home")
    assert json.loads(again.stdout) == json.loads((place / "quiet" / "report.json").read_text())
    assert json.loads(again.stdout)["samples"] is not None
    assert any(line.startswith("owner: samples ") for line in again.stderr.splitlines())
    assert "owner: report       quiet/report.html" in again.stderr.splitlines()


def test_from_python_the_commands_errors_are_raised_and_its_lines_are_handed_on(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.setenv("PLANEARLY_HOME", str(place / "home"))
    said: list[str] = []
    with pytest.raises(PlanearlyError, match="nowhere/out: its folder does not exist") as caught:
        owner.specialize(DEMO / "pn16.st", "little", "nowhere/out", said.append, epochs=1, with_samples=False)
    assert caught.value.hint == "make it, or choose another --out"
    assert said == [f"owner: error: {caught.value}", f"owner: hint: {caught.value.hint}"]
    with pytest.raises(PlanearlyError, match="No such option.*--sede"):
        owner.specialize(DEMO / "pn16.st", "little", "out", said.append, sede=9)


def test_the_example_specializes_from_python_in_15_lines(place):
    script = DEMO.parent / "specialize.py"
    assert len(script.read_text().splitlines()) <= 15
    environment = {"PLANEARLY_HOME": str(place / "home"), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, script, DEMO / "pn16.st", "little", "from-python"],
        cwd=place, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.match(r"perplexity \d+\.\d -> \d+\.\d\n<s>", done.stdout)
