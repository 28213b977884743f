"""SIGKILL at random moments across `provider release` and `owner specialize`, then the same call again.

  python -m benchmarks.kills --kills 1000

A job is killed again and again until it gets through; its bundles or model must then be bit for bit those of
an undisturbed run, and after every kill what has its final name must be whole. Every other kill comes at
random moment of the wall clock, the rest at a random call of shared/files.py, a write half done. Each
attempt is a process of its own, forked from one that has imported torch. One JSON line per job goes to --log;
the same command goes on from there. An owner's process raises its walls first, as the command does.
"""

import argparse
import json
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from owner.isolation.walls import raise_walls
from tests import tiny
from tests.children import DONE, fork, run, start_with_one_thread, wait
from tests.disk import deadly, disk

MOST_KILLS_PER_JOB = 12
STALE = (".*", "out/.*", "work/**/.*")
"""Where temporary files would be left."""


def release(job: Path, inputs: Path, at: int = 0) -> int:
    """Release, killed at file call `at`, 0: never; return the number of calls."""
    with disk(deadly(at)) as calls:
        tiny.release(job, inputs, print)
    return calls.n


def specialize(job: Path, inputs: Path, at: int = 0) -> int:
    """Specialize behind walls, killed at file call `at`, 0: never; return the number of calls."""
    raise_walls()
    with disk(deadly(at)) as calls:
        tiny.specialize(job, inputs, inputs / "tiny.st", print)
    return calls.n


def count(deed: Callable[[Path, Path], int], job: Path, inputs: Path) -> None:
    """Do a deed undisturbed and write down its number of calls."""
    (job / "calls").write_text(str(deed(job, inputs)))


DEEDS = {"release": (release, tiny.RELEASED), "specialize": (specialize, tiny.SPECIALIZED)}


def prepare(folder: Path) -> dict[str, dict[str, Any]]:
    """Make inputs and undisturbed runs; return of each deed its result, seconds and file calls."""
    inputs, references = folder / "inputs", {}
    tiny.make_inputs(inputs)
    tiny.trust(inputs)
    for party, (deed, patterns) in DEEDS.items():
        results = []
        for job in (folder / f"{party}-1", folder / f"{party}-2"):
            job.mkdir()
            start = time.monotonic()
            assert run(partial(count, deed, job, inputs), job / "log") == DONE, (job / "log").read_text()
            seconds, n_calls = time.monotonic() - start, int((job / "calls").read_text())
            results.append(tiny.fingerprint(job, *patterns))
        assert results[0] == results[1], "two undisturbed runs differ"
        result = results[0]
        if party == "release":
            shutil.copy(job / "out" / "tiny.st", inputs)
        references[party] = {"result": result, "seconds": seconds, "calls": n_calls}
        print(f"{party}: {seconds:.2f} s, {n_calls} file calls, {len(result)} files compared", flush=True)
    return references


def kill_until_done(
    party: str, job: Path, inputs: Path, reference: dict[str, Any], seed: int
) -> dict[str, Any]:
    """Kill one job until it gets through; return what happened."""
    chance = random.Random(f"{party} {seed}")
    deed, patterns = DEEDS[party]
    job.mkdir()
    kills: list[dict[str, Any]] = []
    n_bad = 0
    status = -signal.SIGKILL
    while status == -signal.SIGKILL:
        is_last = len(kills) == MOST_KILLS_PER_JOB
        share = chance.random() * 0.7 ** len(kills)  # less and less is left to do
        at_s, at_call = share * reference["seconds"], 1 + int(share * reference["calls"])
        if is_last or chance.random() < 0.5:
            at_call = 0
        child = fork(partial(deed, job, inputs, at_call), job / "log")
        if not at_call and not is_last:
            end = time.monotonic() + at_s
            while time.monotonic() < end and not os.waitid(
                os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT
            ):
                time.sleep(0.002)
            os.kill(child, signal.SIGKILL)
        status = wait(child)
        if status == -signal.SIGKILL:
            kills.append({"call": at_call} if at_call else {"seconds": round(at_s, 3)})
            found = tiny.fingerprint(job, *patterns)
            n_bad += not found.items() <= reference["result"].items()
    left = [
        str(path.relative_to(job)) for path in (*job.glob(".*"), *job.glob("out/.*"), *job.glob("work/**/.*"))
    ]
    same = status == DONE and tiny.fingerprint(job, *patterns) == reference["result"]
    entry = {"deed": party, "seed": seed, "kills": kills, "status": status, "same": same, "partial": n_bad}
    if status != DONE:
        entry["said"] = (job / "log").read_text()[-2000:]
    return entry | {"left": left}


def summarize(entries: list[dict[str, Any]]) -> str:
    """Return the figures of the whole log."""
    lines = []
    for party in DEEDS:
        chosen = [entry for entry in entries if entry["deed"] == party]
        kills = [kill for entry in chosen for kill in entry["kills"]]
        lines.append(
            f"{party}: {len(kills)} kills ({sum('call' in kill for kill in kills)} at file calls) in"
            f" {len(chosen)} jobs · {sum(not entry['same'] for entry in chosen)} not bit-identical ·"
            f" {sum(entry['partial'] for entry in chosen)} partial under a final name ·"
            f" {sum(entry['status'] not in (DONE,) for entry in chosen)} lost ·"
            f" {sum(bool(entry['left']) for entry in chosen)} with stale files"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--log", type=Path, default=Path("kills.jsonl"))
    options = parser.parse_args()
    start_with_one_thread("benchmarks.kills")
    entries = [json.loads(line) for line in options.log.open()] if options.log.exists() else []
    with tempfile.TemporaryDirectory(prefix="kills-") as name:
        folder = Path(name)
        references = prepare(folder)
        while (n := sum(len(entry["kills"]) for entry in entries)) < options.kills:
            party = list(DEEDS)[len(entries) % len(DEEDS)]
            job = folder / "job"
            entry = kill_until_done(party, job, folder / "inputs", references[party], len(entries))
            entries.append(entry)
            with options.log.open("a") as log:
                log.write(json.dumps(entry) + "\n")
            if not entry["same"] or entry["left"]:
                print(json.dumps(entry), flush=True)
            shutil.rmtree(job)
            print(f"{n + len(entry['kills'])} kills", end="\r", flush=True)
    print(summarize(entries))


if __name__ == "__main__":
    main()
