"""Verify one bundle in a process that imports what that takes and nothing else, and print what it took.

  PYTHONPATH=. python benchmarks/verify_alone.py BUNDLE PUBLIC_KEY_IN_HEX CORES

benchmarks/bundle_speed.py runs it beside its other turns: a process that has torch cannot tell its memory.
"""

import json
import os
import sys
import time
from pathlib import Path

from shared.bundle import open_bundle
from shared.signature import PublicKey


def main(path: str, key: str, cores: str) -> None:
    """Print seconds of clock and processor, and the peak of resident memory of this process, in MB."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(cores)])
    start, start_cpu = time.perf_counter(), time.process_time()
    with open_bundle(Path(path), [PublicKey(bytes.fromhex(key))]) as bundle:
        bundle.verify_all()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
    status = Path("/proc/self/status").read_text()
    peak_kb = int(status.split("VmHWM:")[1].split()[0])
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mb": (peak_kb << 10) / 1e6}))


if __name__ == "__main__":
    main(*sys.argv[1:])
