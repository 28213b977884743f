"""A thousand specializations in a row in one process behind its walls: nothing may grow.

  python -m benchmarks.soak --runs 1000

Every 50 runs: resident memory, open descriptors, threads, files in the temporary folder, entries beside the
out folder. One JSON line per sample goes to --log; the same command goes on from there in a new process.
Printed are the slopes per run, by least squares over the samples of the longest process after its first 100
runs, when caches are full.
"""

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np

from owner.isolation.walls import raise_walls
from tests import tiny
from tests.children import start_with_one_thread

EVERY_RUNS, WARM_RUNS = 50, 100
FIGURES = ("rss_kib", "descriptors", "threads", "temporary_files", "beside_out")


def sample(n: int, folder: Path, temporary: Path) -> dict[str, float]:
    """Return what could grow, after n runs of this process."""
    status = Path("/proc/self/status").read_text()
    return {
        "pid": os.getpid(),
        "runs": n,
        "rss_kib": int(status.split("VmRSS:")[1].split()[0]),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "temporary_files": sum(len(files) for _, _, files in os.walk(temporary)),
        "beside_out": len(os.listdir(folder)),
    }


def summarize(samples: list[dict[str, float]]) -> str:
    """Return total runs, and first and last value and slope of each figure."""
    processes: dict[float, list[dict[str, float]]] = {}
    for entry in samples:
        processes.setdefault(entry["pid"], []).append(entry)
    longest = max(processes.values(), key=len)
    warm = [entry for entry in longest if entry["runs"] >= WARM_RUNS]
    total = sum(int(entries[-1]["runs"]) for entries in processes.values())
    lines = [f"{total} runs in {len(processes)} processes, slopes over {len(warm)} samples of the longest"]
    for name in FIGURES if len(warm) > 1 else ():
        slope = np.polyfit([entry["runs"] for entry in warm], [entry[name] for entry in warm], 1)[0]
        lines.append(
            f"{name}: {longest[0][name]:,} first, {warm[0][name]:,} warm, {longest[-1][name]:,} last"
            f" · {slope:+.4f} per run"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--log", type=Path, default=Path("soak.jsonl"))
    options = parser.parse_args()
    start_with_one_thread("benchmarks.soak")
    samples = [json.loads(line) for line in options.log.open()] if options.log.exists() else []
    last = {entry["pid"]: entry["runs"] for entry in samples}
    done = int(sum(last.values()))
    log = options.log.open("a", buffering=1)
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder, temporary, inputs = Path(name) / "run", Path(name) / "tmp", Path(name) / "inputs"
        folder.mkdir()
        temporary.mkdir()
        tempfile.tempdir = os.environ["TMPDIR"] = str(temporary)
        tiny.make_inputs(inputs)
        tiny.trust(inputs)
        tiny.release(inputs, inputs, kind="slm")
        raise_walls()
        start = time.monotonic()
        for n in range(1, options.runs - done + 1):
            tiny.specialize(folder, inputs, inputs / "out" / "tiny.st", seed=n, checkpoint_every_s=1e9)
            shutil.rmtree(folder / "result")
            if n % EVERY_RUNS == 0 or n == options.runs - done:
                samples.append(sample(n, folder, temporary))
                log.write(json.dumps(samples[-1]) + "\n")
                print(f"{done + n} runs · {(time.monotonic() - start) / n:.2f} s each", flush=True)
    print(summarize(samples))


if __name__ == "__main__":
    main()
