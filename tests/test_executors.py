"""The same stages on other executors: processes here, a real Ray, and Slurm's scripts run by a stand-in."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch

from provider.corpus import list_corpus
from provider.executors import Executor, check_executor, run_tasks
from provider.preparing import _cut
from provider.recipe import CorpusConfig
from provider.signing import create_key
from shared.errors import PlanearlyError, RecipeError
from shared.pieces import write_pieces
from tests.conftest import make_pieces
from tests.parties import ROOT, kill_after, run, start, write_recipe
from tests.stores import BUCKET, put, s3_server, store

N_FILES = 3

SBATCH = """#!/bin/bash
# Stands in for Slurm's sbatch --wait: runs the script once per index of its array, as real processes.
for option in "$@"; do script="$option"; done
cp "$script" "$SLURM_FAKE/$(date +%s%N).slurm"
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
log=$(sed -n 's/^#SBATCH --output=\\(.*\\)\\/%A_%a.out/\\1/p' "$script")
echo "Submitted batch job 7"
for ((i = 0; i <= last; i++)); do
  SLURM_ARRAY_TASK_ID=$i SLURM_JOB_ID=7 SLURM_NODELIST=here RUN_OFFSET=0 bash "$script" > "$log/7_$i.out" 2>&1
  worst=$((worst | $?))
done
exit $worst
"""


def write_inputs(folder: Path) -> list[Path]:
    (folder / "corpus").mkdir(parents=True)
    for name in sorted(topics, key=lambda name: (-len(topics[name]), name))[:N_FILES]:
        (folder / "corpus" / f"{name}.txt").write_text(topics[name][:4000])
    (folder / "pieces.json").write_bytes(write_pieces(make_pieces()))
    return [folder / "corpus", folder]


def cut(inputs: Path, out: Path) -> partial[None]:
    """Return the real work of the stage `corpus`."""
    files = list_corpus(inputs / "corpus", CorpusConfig(description=""))
    out.mkdir(exist_ok=True)
    return partial(_cut, out, files, inputs, 64, 5)


def interrupted(work, marks, killed, items, say):
    """Do the work, but when the items named are done for the first time, kill a process with SIGKILL."""
    work(items, say)
    for item in set(items) & set(killed):
        mark = marks / str(item)
        if not mark.exists():
            mark.write_text(str(os.getpid()))
            victim = {"task": os.getpid(), "worker": parent(parent(os.getpid()))}[killed[item]]
            os.kill(victim, signal.SIGKILL)
            time.sleep(60)  # until the kernel ends this process after its parent


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def refused(items, say):
    raise PlanearlyError("the third file is bad", hint="repair it")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    run_tasks(Executor(), folder / "expected", range(N_FILES), cut(folder, folder / "expected"), print)
    return folder


def cut_on(executor: Executor, inputs: Path, out: Path, killed: dict[int, str]) -> None:
    marks = out.with_suffix(".marks")
    marks.mkdir()
    work = partial(interrupted, cut(inputs, out), marks, killed)
    run_tasks(executor, out, range(N_FILES), work, print)
    assert len(list(marks.iterdir())) == len(killed)


def test_a_killed_process_is_replaced_and_the_parts_are_the_same(inputs, tmp_path):
    cut_on(Executor("local", 2), inputs, tmp_path / "out", {1: "task"})
    assert contents(tmp_path / "out") == contents(inputs / "expected")


def test_a_task_that_is_killed_each_time_and_one_that_is_refused_are_errors(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(PlanearlyError, match="the third file is bad") as caught:
        run_tasks(Executor("local", 2), tmp_path / "out", [3], refused, print)
    assert caught.value.hint == "repair it"
    with pytest.raises(PlanearlyError, match=r"killed 3 times \(signal 9\)"):
        run_tasks(Executor("local", 2), tmp_path / "out", [3], suicide, print)


def suicide(items, say):
    os.kill(os.getpid(), signal.SIGKILL)


def test_ray_with_a_killed_task_and_a_killed_worker_gives_the_same_parts(inputs, tmp_path):
    code = (
        "import sys; from pathlib import Path; from provider.executors import Executor;"
        "from tests.test_executors import cut_on, torch; torch.set_num_threads(1);"
        "cut_on(Executor('ray', 2), Path(sys.argv[1]), Path(sys.argv[2]), {0: 'task', 1: 'worker'})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, inputs, tmp_path / "out"], cwd=ROOT, text=True, capture_output=True,
        timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "out") == contents(inputs / "expected")
    assert len(list((tmp_path / "out" / "tasks" / "completions").iterdir())) == N_FILES


@pytest.mark.filterwarnings("ignore")
def test_slurms_job_array_does_what_is_left_and_waits_for_it(inputs, tmp_path, monkeypatch):
    for name, script in (("sbatch", SBATCH), ("scontrol", "#!/bin/bash\necho here\n")):
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_FAKE", str(tmp_path))
    executor = Executor("slurm", 5, ("partition=cpu", "time=01:00:00", "account=us"))
    check_executor(executor)
    out = tmp_path / "out"
    completions = out / "tasks" / "completions"
    completions.mkdir(parents=True)
    for name, content in contents(inputs / "expected").items():
        if "00002" in name:  # the third file is done
            (out / name).write_bytes(content)
    (completions / "00002").touch()
    cut_on(executor, inputs, out, {0: "task"})
    assert contents(out) == contents(inputs / "expected")
    script = min(tmp_path.glob("*.slurm")).read_text()
    for line in (
        "array=0-1%5", "partition=cpu", "time=01:00:00", "account=us", "wait", "requeue", "nodes=1",
        f"cpus-per-task={torch.get_num_threads()}", "job-name=planearly-out", "mem-per-cpu=8G",
    ):  # fmt: skip
        assert f"#SBATCH --{line}\n" in script
    assert f"launch_pickled_pipeline {out}/tasks/executor.pik" in script


def test_what_an_executor_lacks_is_said_before_hours_of_work(monkeypatch):
    with pytest.raises(RecipeError, match="needs a partition"):
        check_executor(Executor("slurm"))
    with pytest.raises(RecipeError, match="0 workers"):
        check_executor(Executor("local", 0))
    with pytest.raises(RecipeError, match="the executor is ray"):
        check_executor(Executor("ray", sbatch=("partition=x",)))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(PlanearlyError, match="no sbatch command"):
        check_executor(Executor("slurm", sbatch=("partition=x",)))


def test_a_mixture_from_a_store_in_two_processes_is_that_of_a_folder_in_one(tmp_path):
    """All stages: embedding, assignment, shards and experts too; and the bundle goes back to the store."""
    write_inputs(tmp_path)
    path = write_recipe(tmp_path / "release.toml", "mix")
    path.write_text(
        path.read_text().replace("steps = 40", "steps = 4").replace("steps = 20", "steps = 2")
        .replace("n_clusters = 4", "n_clusters = 2").replace('["slm"]', "[]").replace("= 500", "= 400")
    )  # fmt: skip
    create_key(tmp_path / "provider.key", tmp_path / "provider.pub")

    def release(corpus: str, out: str, *more: object) -> str:
        places = ("--corpus", corpus, "--out", out, "--work", tmp_path / f"work{len(more)}")
        done = run("provider", "release", path, *places, *more, cwd=tmp_path, home=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    release("corpus", "one")
    with s3_server():
        put(tmp_path / "corpus", f"{BUCKET}/c4")
        command = ("release", path, "--corpus", f"{BUCKET}/c4", "--workers", 2, "--work", tmp_path / "work2")
        process = start("provider", command, tmp_path, tmp_path)
        while process.poll() is None and not list(tmp_path.glob("work2/embeddings-*")):
            time.sleep(0.01)
        assert kill_after(process, 0.5)  # embedding in two processes, which end with it
        found = release(f"{BUCKET}/c4", f"{BUCKET}/out", "--workers", 2)
        assert found == f"{BUCKET}/out/tiny.st"
        for name in ("tiny.st", "provider.pub"):
            assert store().cat_file(f"{BUCKET}/out/{name}") == (tmp_path / "one" / name).read_bytes()
    assert len(list(tmp_path.glob("work2/pretrain-mix-*/expert-*/weights.safetensors"))) == 2
