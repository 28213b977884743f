"""The owner's path on a machine without a network, from a wheelhouse: docs/howto/air-gap.md, rehearsed.

    python benchmarks/airgap.py wheelhouse/

Copies the wheelhouse, the demo's bundle and its key into an empty folder, and runs the commands that the page
shows for the other machine there: in a network namespace without any device up (no route, no name
service), with an empty home and no variables but PATH, HOME, LANG and, where it is set, OMP_NUM_THREADS.
Prints the seconds of each command, and sizes.
The private text is the demo's, written by the Python that runs this.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/howto/air-gap.md"
UNPLUGGED = ["unshare", "--user", "--map-root-user", "--net"]
PROBE = """
import socket
connect = lambda: socket.create_connection(("192.0.2.1", 80), 2)
resolve = lambda: socket.getaddrinfo("example.org", 80)
for attempt in (connect, resolve):
    try:
        attempt()
    except OSError as error:
        print("no network:", error)
    else:
        raise SystemExit("there is a network")
"""
"""192.0.2.1 is RFC 5737's, never routed; without a route the error comes at once."""


def steps_of(page: str) -> list[str]:
    """Return the commands of the page's `sh` blocks, in order."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def size_of(folder: Path) -> float:
    """Return megabytes of all files below a folder."""
    return (
        sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
        / 1e6
    )


def rehearse(wheelhouse: Path, folder: Path) -> None:
    """Run every step in the folder, each in a namespace of its own; stops at the first that fails."""
    shutil.copytree(wheelhouse, folder / "wheelhouse")
    for name in ("pn16.st", "provider.pub"):
        shutil.copy(ROOT / "examples/demo" / name, folder)
    subprocess.run(
        [sys.executable, str(ROOT / "examples/demo/write_topics.py"), str(folder / "private")], check=True
    )
    (folder / "home").mkdir()
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(folder / "home"), "LANG": "C.UTF-8"}
    environment |= {name: os.environ[name] for name in ("OMP_NUM_THREADS",) if name in os.environ}
    python = Path(sys.base_prefix) / "bin"
    exported = f"export PATH={python}:$PATH\n"
    for step in [f"python3 -c '{PROBE}'", *steps_of(PAGE.read_text(encoding="utf-8"))]:
        if step.startswith("export "):
            exported += step + "\n"
            continue
        print(f"$ {step if PROBE not in step else 'python3 (two attempts to reach something)'}", flush=True)
        start = time.monotonic()
        subprocess.run([*UNPLUGGED, "bash", "-euc", exported + step], cwd=folder, env=environment, check=True)
        print(f"# {time.monotonic() - start:.1f} s", flush=True)
    for name in ("wheelhouse", "planearly", "specialized", "home"):
        print(f"# {name}: {size_of(folder / name):,.1f} MB")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="airgap-") as name:
        rehearse(Path(sys.argv[1]), Path(name))
