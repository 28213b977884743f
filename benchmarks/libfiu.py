"""libfiu under the whole process: the C library's calls fail at random while an owner specializes.

  python -m benchmarks.libfiu --runs 100

Needs libfiu (Debian: libfiu-dev, fiu-utils). Unlike the faults of tests/disk.py these hit libraries too, and
reads and messages. Each run fails one kind of call with a probability; then the same call without faults must
end bit for bit as undisturbed, unless a document could not be read: the run names it and goes on without.
One JSON line per run goes to --log; the same command goes on from there.
"""

import argparse
import ctypes
import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from owner.isolation.walls import raise_walls
from owner.specializing import SpecializeConfig
from owner.specializing import specialize as owner_specialize
from owner.training.finetuning import FinetuneConfig
from owner.trust.remembering import HOME_VARIABLE
from tests.children import BUG, DONE, ONE_THREAD, REFUSED, run

PRELOAD = "/usr/lib/fiu/fiu_posix_preload.so"
FAULTS = (
    ("posix/io/rw/write", errno.ENOSPC),
    ("posix/io/rw/write", errno.EIO),
    ("posix/io/sync/fsync", errno.EIO),
    ("posix/io/dir/rename", errno.ENOSPC),
    ("posix/io/oc/open", errno.EMFILE),
    ("posix/io/rw/read", errno.EIO),
)
PROBABILITIES = (0.3, 0.05, 0.01)
PREPARE = """
import sys
from pathlib import Path
from tests import tiny
inputs = Path(sys.argv[1])
tiny.make_inputs(inputs)
tiny.trust(inputs)
tiny.release(inputs, inputs, kind="slm")
"""
"""The provider's part, in a process of its own: pyarrow's allocator and libfiu do not go together."""
CONFIG = SpecializeConfig(
    finetune=FinetuneConfig(max_epochs=1, least_steps_per_epoch=6, evals_per_epoch=3, checkpoint_every_s=0.0)
)


def specialize(job: Path, inputs: Path, fault: tuple[str, int] | None, probability: float) -> None:
    raise_walls()
    if fault is not None:
        name, number = fault
        enable = ctypes.CDLL("libfiu.so.0").fiu_enable_random
        enable(name.encode(), 1, ctypes.c_void_p(number), 0, ctypes.c_float(probability))
    bundle, data = inputs / "out" / "tiny.st", inputs / "private"
    owner_specialize(bundle, data, job / "result", CONFIG, print, device_name="cpu")


def result(job: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in job.glob("result/model/*")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--log", type=Path, default=Path("libfiu.jsonl"))
    options = parser.parse_args()
    if os.environ.get("LD_PRELOAD") != PRELOAD:
        command = [sys.executable, "-m", "benchmarks.libfiu", *sys.argv[1:]]
        os.execve(sys.executable, command, os.environ | ONE_THREAD | {"LD_PRELOAD": PRELOAD})
    entries = [json.loads(line) for line in options.log.open()] if options.log.exists() else []
    with tempfile.TemporaryDirectory(prefix="libfiu-") as name:
        folder = Path(name)
        inputs, job = folder / "inputs", folder / "job"
        clean = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
        subprocess.run([sys.executable, "-c", PREPARE, str(inputs)], env=clean, check=True)
        os.environ[HOME_VARIABLE] = str(inputs / "home")
        job.mkdir()
        assert run(partial(specialize, job, inputs, None, 0.0), folder / "log") == DONE
        whole = result(job)
        while len(entries) < options.runs:
            shutil.rmtree(job)
            job.mkdir()
            fault = FAULTS[len(entries) % len(FAULTS)]
            probability = PROBABILITIES[len(entries) // len(FAULTS) % len(PROBABILITIES)]
            status = run(partial(specialize, job, inputs, fault, probability), folder / "log")
            said = (folder / "log").read_text(errors="replace")
            partial_result = result(job) not in ({}, whole)
            again = run(partial(specialize, job, inputs, None, 0.0), folder / "log")
            same = result(job) == whole
            entry = {"fault": fault[0], "errno": errno.errorcode[fault[1]], "probability": probability}
            entry |= {"status": status, "partial": partial_result, "again": again, "same": same}
            entry |= {"skipped": "skipped (see report.json)" in said}
            entries.append(entry)
            with options.log.open("a") as log:
                log.write(json.dumps(entry) + "\n")
            if status not in (DONE, REFUSED) or (not same and not entry["skipped"]):
                print(json.dumps(entry), said[-1500:], (folder / "log").read_text()[-500:], flush=True)
    print(f"{len(entries)} runs: {sum(e['status'] == DONE for e in entries)} got through,"
          f" {sum(e['status'] == REFUSED for e in entries)} ended with a clear error,"
          f" {sum(e['status'] == BUG for e in entries)} with another exception,"
          f" {sum(e['status'] < 0 for e in entries)} by a signal;"
          f" {sum(e['partial'] for e in entries)} partial results, {sum(not e['same'] for e in entries)} not"
          " bit-identical afterwards")  # fmt: skip


if __name__ == "__main__":
    main()
