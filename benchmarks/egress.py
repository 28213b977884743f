"""Ways out of a process, tried against each wall alone and against all: python benchmarks/egress.py

The probes are those of tests/test_isolation.py, with real listeners on this machine. Prints a table.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from tests.test_isolation import ALONE, LANDLOCK_ALONE, PROBES, ROOT, listen, raised

WALLS = {
    "none": "",
    "audit hook": "import sys; from owner.isolation.walls import _trip; sys.addaudithook(_trip)",
    "namespace": f"{ALONE}enter_namespace()",
    "Landlock": LANDLOCK_ALONE,
    "seccomp": f"{ALONE}install_filter()",
    "all": raised("writable=[Path()]"),
}


def try_all(before: str) -> dict[str, str]:
    """Return what became of each probe in a fresh process, after the code `before`."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        argument, descriptor, inside = stack.enter_context(listen(folder))
        done = subprocess.run(
            [sys.executable, "-c", f"{PROBES}\n{before}\nprint(json.dumps(run()))", argument],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            pass_fds=[descriptor],
            cwd=inside,
            capture_output=True,
            text=True,
            timeout=120,
        )
    if done.returncode:
        return {}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Print the table."""
    found = {name: try_all(before) for name, before in WALLS.items()}
    print(
        f"{platform.system()} {platform.release()}, {platform.machine()}, Python {platform.python_version()}"
    )
    print(f"\n| way out | {' | '.join(WALLS)} |\n| --- |{' --- |' * len(WALLS)}")
    for probe in found["none"]:
        print(f"| {probe} | {' | '.join(found[name].get(probe, 'no such wall here') for name in WALLS)} |")


if __name__ == "__main__":
    main()
