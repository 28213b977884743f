"""Independent tasks of a stage: in this process, in several, on Ray, or on Slurm.

A stage lists items (files, clusters, experts) and one function that does some of them; each item leaves a
finished file, so what a kill interrupts is done again and what is done is skipped. How many tasks the items
are dealt to depends on their number alone, and every task computes with as many threads as the command: the
bytes are the same on one process and on a thousand. Ray and Slurm are reached through datatrove's executors
and its completion markers (docs/decisions/0017-data-at-size.md).
"""

import ctypes
import json
import logging
import math
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch

from shared.errors import EXPECTED_ERRORS, PlanearlyError, RecipeError, error_lines
from shared.extras import install_hint
from shared.files import make_folder, remove, remove_stale, write_json
from shared.progress import Say

Work = Callable[[Sequence[int], Say], None]
"""Does the items named; picklable, and harmless when two do the same item at once."""

EXECUTORS = ("local", "ray", "slurm")
MAX_TASKS = 1_000
"""Tasks of a stage: one Slurm job array, whose usual limit is 1,001 (MaxArraySize)."""
ATTEMPTS = 3
"""Times that a task is begun when it is killed, for instance by a kernel that is out of memory. Ours."""
TASK_MEMORY_GB = 8
"""Asked of Ray and Slurm per task; the largest is the embedding of one C4 file. Ours."""
TIME_LIMIT = "24:00:00"
"""Slurm's limit per task, unless `time=` is among the options for sbatch. Ours."""
PR_SET_PDEATHSIG = 1
"""Source: prctl(2)."""
CHILDREN = threading.Lock()
"""Starting a child polls all others, which can take an exit status away from the thread that waits for it."""


@dataclass(frozen=True)
class Executor:
    """Where tasks run, and how many at a time; decides no byte of the result."""

    kind: str = "local"
    workers: int | None = None
    """Tasks at a time; None: one for local, and what the cluster has room for on the others."""
    sbatch: tuple[str, ...] = ()
    """Options for sbatch as NAME=VALUE; slurm needs partition=NAME."""


IN_PROCESS = Executor()


def check_executor(executor: Executor) -> None:
    """Find out before hours of work what is missing. Raises PlanearlyError."""
    if executor.workers is not None and executor.workers < 1:
        raise RecipeError(f"{executor.workers} workers", hint="expected 1 or more")
    names = {option.partition("=")[0] for option in executor.sbatch}
    if executor.kind == "slurm" and "partition" not in names:
        raise RecipeError("slurm needs a partition", hint="for instance: --sbatch partition=NAME")
    if executor.kind != "slurm" and executor.sbatch:
        raise RecipeError(f"options for sbatch, but the executor is {executor.kind}")
    if executor.kind == "slurm" and shutil.which("sbatch") is None:
        raise PlanearlyError("there is no sbatch command", hint="start the release where jobs are submitted")
    if executor.kind != "local":
        _datatrove()


def run_tasks(
    executor: Executor,
    folder: Path,
    items: Sequence[int],
    work: Work,
    say: Say,
    needs_gpu: bool = False,
) -> None:
    """Have all items done, in any order, by `work`; `folder` keeps the tasks' logs and markers.

    Raises PlanearlyError with the message of the first task that failed; what others finished stays.
    """
    if executor.kind == "local" and (executor.workers or 1) == 1:
        work(items, say)
        return
    n_tasks = min(len(items), MAX_TASKS)
    tasks = folder / "tasks"
    make_folder(tasks)
    for stale in tasks.glob("failed-*.json"):
        remove(stale)
    threads = torch.get_num_threads()
    start_method = "forkserver" if executor.kind == "local" else "fork"
    attend = partial(_attend, work, items, n_tasks, tasks, threads, start_method)
    if executor.kind == "local":
        _run_locally(attend, n_tasks, executor.workers or 1, threads, say)
    else:
        options = {
            "pipeline": [partial(_step, attend)],
            "tasks": n_tasks,
            "workers": executor.workers or -1,
            "logging_dir": str(tasks),
            "cpus_per_task": threads,
            "gpus_per_task": int(needs_gpu),
        }
        say(f"{n_tasks} tasks on {executor.kind} · logs in {tasks}")
        run = _run_on_ray if executor.kind == "ray" else _run_on_slurm
        left = run(executor, options, threads)
        _raise_failure(tasks)
        if left:
            raise PlanearlyError(
                f"{len(left)} of {n_tasks} tasks did not finish, the first is {left[0]}",
                hint=f"{tasks} has their logs; the same command goes on with what is left",
            )
    _raise_failure(tasks)
    remove_stale(folder)


def _raise_failure(tasks: Path) -> None:
    for path in sorted(tasks.glob("failed-*.json")):
        failure = json.loads(path.read_text())
        raise PlanearlyError(failure["message"], failure["hint"])


def _attend(
    work: Work,
    items: Sequence[int],
    n_tasks: int,
    tasks: Path,
    threads: int,
    start_method: str,
    rank: int,
) -> bool:
    """Have one task done in a child process, again if the child is killed; say whether it was done.

    The child is ours and not the engines': a killed worker of a process pool, and datatrove has one on
    Ray too, is waited for without end.
    """
    exit_code = None
    for _ in range(ATTEMPTS):
        context: Any = multiprocessing.get_context(start_method)
        child = context.Process(target=_do, args=(work, items[rank::n_tasks], tasks, threads, rank))
        with CHILDREN:
            child.start()
        connection.wait([child.sentinel])
        with CHILDREN:
            child.join()
            exit_code = child.exitcode
        if exit_code >= 0:
            break
    failure = tasks / f"failed-{rank:05}.json"
    if exit_code and not failure.exists():
        how = "ended with a bug" if exit_code > 0 else f"was killed {ATTEMPTS} times (signal {-exit_code})"
        write_json(
            failure,
            {"message": f"task {rank} {how}", "hint": "fewer --workers need less memory; see also its log"},
        )
    return exit_code == 0


def _do(work: Work, items: Sequence[int], tasks: Path, threads: int, rank: int) -> None:
    """Do one task's items, in the child."""
    _end_with_parent()
    torch.set_num_threads(threads)
    try:
        work(items, _log)
    except EXPECTED_ERRORS as error:
        lines = error_lines(error)
        if not lines:
            raise
        message, hint = lines[0].removeprefix("error: "), "".join(lines[1:]).removeprefix("hint: ")
        write_json(tasks / f"failed-{rank:05}.json", {"message": message, "hint": hint})
        sys.exit(1)


def _log(line: str) -> None:
    print(f"provider: {line}", file=sys.stderr, flush=True)


def _end_with_parent() -> None:
    """Have this process killed when its parent ends, so that no task goes on beside its repetition."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _run_locally(attend: Callable[[int], bool], n_tasks: int, workers: int, threads: int, say: Say) -> None:
    """Keep `workers` children busy; they are forked from one process that has imported torch once."""
    cores = os.cpu_count() or 1
    if workers * threads > cores:
        say(
            f"{workers} workers of {threads} threads on {cores} cores: OMP_NUM_THREADS=1 may be faster;"
            " it stays part of what decides the last bits"
        )
    multiprocessing.set_forkserver_preload(["provider.preparing", "provider.pretraining"])
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(attend, rank) for rank in range(n_tasks)]
        for future in as_completed(futures):
            if not future.result():  # the rest is not begun
                pool.shutdown(wait=False, cancel_futures=True)
                break


def _step(attend: Callable[[int], bool], data: Any, rank: int, world_size: int) -> None:
    """Do one task as a datatrove pipeline's only step: raising keeps its completion marker away."""
    _end_with_parent()
    if not attend(rank):
        raise ChildProcessError(f"task {rank} failed")


def _datatrove() -> Any:
    """Return datatrove's executors, silent; its dependencies are an extra."""
    try:
        import datatrove.executor
        from loguru import logger
    except ImportError:
        raise PlanearlyError(
            "datatrove is not installed", hint=f"{install_hint('cluster')}, or --executor local"
        ) from None
    logger.disable("datatrove")
    return datatrove.executor


def _run_on_ray(executor: Executor, options: dict[str, Any], threads: int) -> list[int]:
    """Run on the cluster that RAY_ADDRESS names, else on one that is started here; return what is left."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    engine = _datatrove()
    import ray

    has_cluster = "RAY_ADDRESS" in os.environ
    if not ray.is_initialized():
        cores = None if executor.workers is None else executor.workers * threads
        here: dict[str, Any] = {} if has_cluster else {"include_dashboard": False, "num_cpus": cores}
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **here)
    memory_gb = TASK_MEMORY_GB / threads if has_cluster else 0  # one machine is shared as it is
    run = engine.RayPipelineExecutor(**options, mem_per_cpu_gb=memory_gb)
    run.run()
    return run.get_incomplete_ranks()


def _run_on_slurm(executor: Executor, options: dict[str, Any], threads: int) -> list[int]:
    """Submit a job array, wait for its end as `sbatch --wait` does; return what is left."""
    sbatch = {name: value for name, _, value in (option.partition("=") for option in executor.sbatch)}
    run = _datatrove().SlurmPipelineExecutor(
        **options,
        partition=sbatch.pop("partition"),
        time=sbatch.pop("time", TIME_LIMIT),
        mem_per_cpu_gb=math.ceil(TASK_MEMORY_GB / threads),
        job_name=f"planearly-{Path(options['logging_dir']).parent.name}",
        qos="",
        env_command=f'export PATH="{Path(sys.executable).parent}:$PATH"',
        sbatch_args={"wait": "", **sbatch},
        with_srun=False,
    )
    try:
        run.run()
    except subprocess.CalledProcessError as error:
        if not (Path(options["logging_dir"]) / "slurm_logs").exists() or not run.get_incomplete_ranks():
            raise PlanearlyError(f"sbatch ended with {error.returncode}", hint="it has said why") from None
    return run.get_incomplete_ranks()
