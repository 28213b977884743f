"""A million damaged bundles through the real reader: none accepted, nothing raised but our own errors.

    python benchmarks/mutants.py --count 1000000 --seed 1 --out mutants.jsonl

First every cut of the small bundle and every single bit of its length, header and signature flipped; then
the mutators of tests/mutants.py in turn, seeded by part. Each mutant is written to memory, opened by path,
and verified whole. A worker process with an address-space limit does one part after another; each part
appends a line to the file, and the same command goes on after the last one. Ends with the table, in Markdown.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from shared.bundle import open_bundle
from shared.errors import BundleError
from tests.mutants import Good, every_bit, every_cut, make_good, mutants
from tests.vectors.build import PROVIDER

PART = 20_000
"""Mutants per line of the file."""
MAX_S, MAX_BYTES = 1.0, 256 << 20
"""What one mutant may take: wall-clock time, and memory above the worker's before it."""
MAX_MESSAGE_CHARACTERS = 500
"""Of an error, so that no file can flood a terminal."""


def exhaustive(good: Good) -> Iterator[tuple[str, bytes]]:
    yield from every_cut(good)
    yield from every_bit(good, 0, good.header_end)


def peak_bytes() -> int:
    """Highest memory in use since `forget_peak`."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    raise OSError("no VmHWM in /proc/self/status")


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def refusal(path: Path) -> str:
    """Read the file as an owner would; the error's name, "accepted", or what was not ours."""
    try:
        with open_bundle(path, [PROVIDER.public_key]) as bundle:
            bundle.verify_all()
    except BundleError as error:
        message = str(error).removeprefix(f"{path}: ")
        is_plain = message.isascii() and message.isprintable() and len(message) <= MAX_MESSAGE_CHARACTERS
        return "refused" if is_plain else "unprintable"
    except BaseException as error:  # noqa: B902, anything else is what the campaign looks for
        return f"raised {type(error).__name__}"
    return "accepted"


def work(seed: int, part: int, count: int, folder: Path) -> dict[str, Any]:
    """Try one part's mutants; part -1 is the exhaustive one."""
    good = make_good(folder)
    source = mutants(good, random.Random(f"{seed} {part}")) if part >= 0 else exhaustive(good)
    path, counts = folder / "mutant.st", Counter()
    slowest: dict[str, float] = {}
    most: dict[str, int] = {}
    path.write_bytes(good.content)
    assert refusal(path) == "accepted"
    limit = resource.getrlimit(resource.RLIMIT_AS)[1]
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + (1 << 30), limit))
    forget_peak()
    baseline = peak_bytes()
    for name, mutant in islice(source, count if part >= 0 else None):
        counts[f"{name}|tried"] += 1
        if mutant in (good.content, good.other):
            counts[f"{name}|identical"] += 1
            continue
        path.write_bytes(mutant)
        forget_peak()
        begin = time.perf_counter()
        outcome = refusal(path)
        taken = time.perf_counter() - begin
        slowest[name] = max(slowest.get(name, 0), taken)
        most[name] = max(most.get(name, 0), peak_bytes() - baseline)
        counts[f"{name}|{outcome}"] += 1
        if outcome != "refused":
            kept = Path(tempfile.gettempdir()) / f"mutant-{seed}-{part}-{counts.total()}.st"
            kept.write_bytes(mutant)
            print(f"{name}: {outcome}: kept as {kept}", file=sys.stderr)
    return {"seed": seed, "part": part, "counts": counts, "slowest_s": slowest, "most_bytes": most}


def table(lines: list[dict[str, Any]]) -> str:
    """Return all parts' sums, one row per mutator."""
    counts: Counter[str] = Counter()
    slowest: dict[str, float] = {}
    most: dict[str, int] = {}
    for line in lines:
        counts.update(line["counts"])
        for name, value in line["slowest_s"].items():
            slowest[name] = max(slowest.get(name, 0), value)
        for name, size in line["most_bytes"].items():
            most[name] = max(most.get(name, 0), size)
    columns = ("tried", "identical", "refused", "accepted")
    rows = ["| mutator | " + " | ".join(columns) + " | other | slowest ms | most MB |", "|---" * 8 + "|"]
    for name in [*slowest, "all"]:
        own = {key.split("|")[1]: 0 for key in counts}
        for key, value in counts.items():
            if name in (key.split("|")[0], "all"):
                own[key.split("|")[1]] += value
        other = sum(value for outcome, value in own.items() if outcome not in columns)
        ms = 1000 * (max(slowest.values()) if name == "all" else slowest[name])
        mb = (max(most.values()) if name == "all" else most[name]) / 2**20
        shown = " | ".join(str(own.get(column, 0)) for column in columns)
        rows.append(f"| {name} | {shown} | {other} | {ms:.1f} | {mb:.1f} |")
    bad = sum(n for key, n in counts.items() if key.split("|")[1] not in ("tried", "identical", "refused"))
    is_within = max(slowest.values()) < MAX_S and max(most.values()) < MAX_BYTES
    rows.append(f"\n{'passed' if not bad and is_within else 'FAILED'}: {counts_of(lines)} mutants")
    return "\n".join(rows)


def counts_of(lines: list[dict[str, Any]]) -> int:
    return sum(n for line in lines for key, n in line["counts"].items() if key.endswith("|tried"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--part", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part is not None:
        with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
            print(json.dumps(work(options.seed, options.part, PART, Path(folder))))
        return
    lines = (
        [json.loads(text) for text in options.out.read_text().splitlines()] if options.out.exists() else []
    )
    assert all(line["seed"] == options.seed for line in lines), "the file is of another seed"
    part = -1 + len(lines)
    while counts_of(lines) < options.count:
        command = [sys.executable, __file__, *sys.argv[1:], "--part", str(part)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        with options.out.open("a") as out:
            out.write(done.stdout)
        lines.append(json.loads(done.stdout))
        print(f"mutants: {counts_of(lines)} of {options.count}", file=sys.stderr)
        part += 1
    print(table(lines))


if __name__ == "__main__":
    main()
