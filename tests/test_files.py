"""Whole files, locked folders, and what an owner or a provider hears of a folder that cannot be used."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from provider.publishing import PUBLIC_KEY_FILE
from shared.bundle import open_bundle
from shared.checkpoints import load_checkpoint, save_checkpoint
from shared.errors import CheckpointError, PlanearlyError, error_lines
from shared.files import locked, make_folder, remove, write_atomic
from shared.materializing import materialize
from shared.signature import read_public_key
from tests import test_training, tiny

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A tiny released bundle that its owner trusts."""
    folder = tmp_path_factory.mktemp("files")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLANEARLY_HOME", "")
        tiny.make_inputs(folder)
        tiny.release(folder, folder, kind="slm")
        tiny.trust(folder)
        yield folder


def refusal(deed):
    """Return what a command would print of the error."""
    with pytest.raises((PlanearlyError, OSError)) as caught:
        deed()
    return "\n".join(error_lines(caught.value))


def test_a_flipped_bit_is_loaded_by_the_library_and_refused_by_us(tmp_path):
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, {"a": torch.arange(100.0)}, {"step": 3})
    content = path.read_bytes()
    assert set(load_file(path)) == {"a", "sha256"}
    size = len(content)
    n_loaded = 0
    for at in (*range(0, size, 7), size - 1):
        damaged = bytearray(content)
        damaged[at] ^= 1 << at % 8
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="damaged"):
            load_checkpoint(path)
        n_loaded += _loads(path)
    assert n_loaded > 50  # the library takes every bit of the data
    for length in range(0, size, 5):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="damaged"):
            load_checkpoint(path)


def _loads(path):
    try:
        return bool(load_file(path))
    except (SafetensorError, ValueError):
        return False


def test_a_bit_flipped_in_the_newest_checkpoint_is_named_and_the_one_before_goes_on(tmp_path):
    config = test_training.replace(test_training.CONFIG, steps=6, checkpoint_every_s=0.0)
    _, whole = test_training.run(tmp_path, config)
    newest = sorted(tmp_path.glob("step-*"))[-1]
    content = bytearray(newest.read_bytes())
    content[-5000] ^= 4
    newest.write_bytes(content)
    said = []
    _, resumed = test_training.run(tmp_path, config, said=said)
    assert said[0] == (
        f"skipped {newest}: damaged (its content has another digest than its last 32 bytes);"
        " going on from the one before"
    )
    assert said[1] == "resumed at step 5/6"
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_checkpoint_is_written_without_a_second_copy_of_it_in_memory(tmp_path):
    code = """
import resource, sys, torch
from pathlib import Path
from shared.checkpoints import save_checkpoint
tensors = {str(i): torch.ones(8 << 20) for i in range(4)}
save_checkpoint(Path(sys.argv[1]) / "warm", {"a": torch.ones(9)}, {})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
save_checkpoint(Path(sys.argv[1]) / "c", tensors, {})
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 16 << 10  # KiB, of 128 MiB


def test_a_file_is_whole_or_not_there_and_the_old_one_stays(tmp_path):
    path = tmp_path / "f"
    path.write_text("old")

    def half():
        with write_atomic(path) as out:
            out.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["f"]


def test_a_link_is_removed_and_not_what_it_points_to(tmp_path):
    make_folder(tmp_path / "kept" / "deep")
    make_folder(tmp_path / "gone")
    (tmp_path / "gone" / "link").symlink_to(tmp_path / "kept")
    remove(tmp_path / "gone")
    assert (tmp_path / "kept" / "deep").is_dir()
    assert not (tmp_path / "gone").exists()


HOLD = "import sys, time; from pathlib import Path; from shared.files import locked\n" + (
    "with locked(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(60)"
)


def test_a_second_run_on_the_same_out_folder_is_refused_and_a_dead_one_holds_nothing(job, tmp_path):
    work = tmp_path / ".result.unfinished"
    work.mkdir()
    hold = [sys.executable, "-c", HOLD, str(work)]
    with subprocess.Popen(hold, cwd=ROOT, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        said = refusal(lambda: tiny.specialize(tmp_path, job, job / "out" / "tiny.st"))
        holder.kill()
    assert said.startswith(f"error: {work}: another process is at work there\nhint: wait")
    assert not (tmp_path / "result").exists()
    tiny.specialize(tmp_path, job, job / "out" / "tiny.st", checkpoint_every_s=1e9)
    assert os.listdir(tmp_path) == ["result"]


def test_two_releases_in_one_work_folder_are_refused(job, tmp_path):
    make_folder(tmp_path / "work")
    with locked(tmp_path / "work"):
        said = refusal(lambda: tiny.release(tmp_path, job, kind="slm"))
    assert said.startswith(f"error: {tmp_path / 'work'}: another process is at work there")


def test_folders_that_cannot_be_used_are_errors_before_any_work(job, tmp_path):
    bundle = job / "out" / "tiny.st"
    assert "its folder does not exist" in refusal(lambda: tiny.specialize(tmp_path / "no", job, bundle))
    (tmp_path / "result").write_text("a file")
    assert f"{tmp_path / 'result'}: already exists" in refusal(lambda: tiny.specialize(tmp_path, job, bundle))
    (tmp_path / "result").unlink()
    (tmp_path / ".result.unfinished").write_text("a file")
    assert ".result.unfinished" in refusal(lambda: tiny.specialize(tmp_path, job, bundle))
    for name in ("out", "work"):
        (tmp_path / name / "x").mkdir(parents=True)
        (tmp_path / name / "x" / name).write_text("a file")
        said = refusal(lambda name=name: tiny.release(tmp_path / name / "x", job, kind="slm"))
        assert said == f"error: {tmp_path / name / 'x' / name}: File exists"
        assert not list((tmp_path / name).rglob("done.json"))


MAY_NOT_WRITE = """
import sys
from pathlib import Path
from tests import tiny
from shared.errors import error_lines, PlanearlyError
folder, job = Path(sys.argv[1]), Path(sys.argv[2])
for deed, more in ((tiny.specialize, (job / "out" / "tiny.st",)), (tiny.release, ())):
    try:
        deed(folder, job, *more)
    except (PlanearlyError, OSError) as error:
        print(error_lines(error)[0])
"""


def test_folders_that_may_not_be_written_into_are_errors_before_any_work(job, tmp_path):
    for inside in ("out", "work"):
        (tmp_path / inside).mkdir()
        (tmp_path / inside).chmod(0o555)
    tmp_path.chmod(0o555)
    # root, as in containers, may write everywhere unless it gives that up
    ordinary = ["setpriv", "--bounding-set=-dac_override"] if os.getuid() == 0 else []
    done = subprocess.run(
        [*ordinary, sys.executable, "-c", MAY_NOT_WRITE, str(tmp_path), str(job)],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    tmp_path.chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"error: {tmp_path / '.result.unfinished'}: Permission denied",
        f"error: {tmp_path / 'out'}: cannot be written into",
    ]


def test_a_clock_set_back_changes_nothing(job, tmp_path, monkeypatch):
    """Files from the future, the newest with the oldest time, and a clock that runs backwards."""
    config = test_training.replace(test_training.CONFIG, steps=6, checkpoint_every_s=0.0)
    _, whole = test_training.run(tmp_path, config)
    paths = sorted(tmp_path.glob("step-*"))
    for age, path in enumerate(paths):
        os.utime(path, (2**33 - age, 2**33 - age))
    paths[-1].unlink()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 10**8)
    said = []
    _, resumed = test_training.run(tmp_path, config, said=said)
    assert said[0] == "resumed at step 5/6"
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    sources = [path for party in ("shared", "provider", "owner") for path in (ROOT / party).rglob("*.py")]
    asking = [p.name for p in sources if "time.time(" in p.read_text() or "datetime.now" in p.read_text()]
    # An expiry date, judged by the latest time ever seen; and the doctor asks whether the clock is right.
    assert sorted(asking) == ["remembering.py", "surroundings.py"]


LITTLE_MEMORY = """
import resource, sys
import owner.cli.shell
more, raised = int(sys.argv.pop()), owner.cli.shell.raise_walls
def raise_walls(*arguments):
    found = raised(*arguments)
    import owner.specializing
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + more, used + more))
    return found
owner.cli.shell.raise_walls = raise_walls
owner.cli.main()
"""
"""The command, with so many bytes of memory to go once its libraries are loaded."""


def test_too_little_memory_is_one_clear_error_and_the_same_command_goes_on_with_more(job, tmp_path):
    arguments = ["specialize", "--bundle", job / "out" / "tiny.st", "--data", job / "private", "--out"]
    arguments += [tmp_path / "result", "--epochs", "1", "--device", "cpu"]
    environment = os.environ | {"PLANEARLY_HOME": str(job / "home"), "OMP_NUM_THREADS": "1"}

    def run(n_bytes):
        return subprocess.run(
            [sys.executable, "-c", LITTLE_MEMORY, *map(str, arguments), str(n_bytes)],
            cwd=ROOT, env=environment, capture_output=True, text=True,
        )  # fmt: skip

    done = run(20 << 20)
    assert done.returncode == 1, done.stderr
    assert "owner: error: out of memory; nothing that was saved is lost" in done.stderr
    assert "the same command goes on from here" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "result").exists()
    done = run(1 << 40)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "result" / "report.json").read_text())["perplexity"]["after"] > 1


def test_a_result_worse_than_its_start_is_never_written_and_the_report_says_so(job, tmp_path):
    said = []
    report = tiny.specialize(tmp_path, job, job / "out" / "tiny.st", said.append, rate_fraction=1e9)
    words = "as it was before fine-tuning: no step was better on the held-out text"
    assert report["result"].startswith(words)
    assert f"result       {report['result']}" in said
    assert report["perplexity"]["after"] == report["perplexity"]["before"]
    written = load_file(tmp_path / "result" / "model" / "model.safetensors")
    with open_bundle(job / "out" / "tiny.st", [read_public_key(job / "provider.pub")]) as bundle:
        for name, weight in materialize(bundle, 0).named_parameters():
            assert torch.equal(written[name], weight.detach())


def test_a_killed_release_leaves_no_temporary_file_beside_the_bundle(job, tmp_path):
    make_folder(tmp_path / "out")
    for name in (f".{PUBLIC_KEY_FILE}.0a1b2c3d", ".tiny.unchecked", "..tiny.unchecked.0a1b2c3d"):
        (tmp_path / "out" / name).write_text("half")
    tiny.release(tmp_path, job, kind="slm")
    assert not list((tmp_path / "out").glob(".*"))


def test_publishing_waits_for_its_folder(tmp_path):
    with locked(tmp_path):
        other = subprocess.Popen(
            [sys.executable, "-c", f"from pathlib import Path\nfrom shared.files import locked\n"
             f"print('at it', flush=True)\nwith locked(Path({str(tmp_path)!r}), wait=True): print('mine')"],
            stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip
        assert other.stdout.readline() == "at it\n"
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(timeout=0.5)
    assert other.communicate(timeout=30)[0] == "mine\n"
