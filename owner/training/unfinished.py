"""The folder of an unfinished run, beside the out folder: enough space, whose it is, what is done already."""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

from owner.training.saving import REPORT_FILE
from shared.errors import PlanearlyError
from shared.files import remove, write_json
from shared.progress import Say
from shared.sizes import SlmConfig
from shared.slm import build_slm, count_parameters

BYTES_PER_PARAMETER, BYTES_PER_TRAINING = 4, 4 * 4 * 3
"""Float32 weights of the result; weights, two moments and the best step's weights in three checkpoints, while
one is being written, of each training."""
RUN_FILE = "run.json"


def needed_space(sizes: SlmConfig, n_trainings: int) -> int:
    """Return the bytes that a run takes of the disk at most: checkpoints, best steps, result."""
    per_parameter = BYTES_PER_PARAMETER + n_trainings * BYTES_PER_TRAINING
    return per_parameter * count_parameters(build_slm(sizes, "meta"))


def check_space(folder: Path, sizes: SlmConfig, n_trainings: int) -> None:
    """Refuse before hours of work what the disk cannot hold."""
    needed = needed_space(sizes, n_trainings)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise PlanearlyError(
            f"{folder}: {free / 1e9:.2f} GB free, {needed / 1e9:.2f} GB needed while fine-tuning",
            hint="free some space, or choose an --out on another disk",
        )


def finished_report(out: Path, run: str, work: Path, say: Say) -> dict[str, Any]:
    """Return the report of a finished run of the same inputs; refuse to touch anything else."""
    try:
        report = json.loads((out / REPORT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        report = None
    if not isinstance(report, dict) or report.get("run") != run:
        raise PlanearlyError(f"{out}: already exists", hint="choose another --out, or move it away")
    say(f"{out}: already finished by the same command")
    discard_work(work)
    return report


def open_work(work: Path, run: str, say: Say) -> None:
    """Keep what the same run left in the work folder; state of other inputs is dropped."""
    try:
        found = json.loads((work / RUN_FILE).read_text())["run"]
    except (OSError, ValueError, KeyError, TypeError):
        found = None
    if found == run:
        say("resuming the unfinished run")
        return
    if found is not None:
        say("starting over: the unfinished run had other inputs")
    # The folder itself stays: the walls around this process know it by its inode.
    remove(work / RUN_FILE)  # first: killed in between, the rest must not pass for that run's state
    for path in work.iterdir():
        remove(path)
    write_json(work / RUN_FILE, {"run": run})


def discard_work(work: Path) -> None:
    """Delete the work folder of a run whose result is saved; what cannot be deleted does no harm."""
    with contextlib.suppress(OSError):
        remove(work)
