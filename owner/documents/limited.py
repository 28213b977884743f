"""A process with limits and nothing to lose: where code of others meets bytes of others.

It is a fresh interpreter that inherits the walls and the parent's import path; of the environment only what
is named here, and no open file. On Linux its memory and processor time are bounded, it leaves no core file
and cannot write a byte to any file. What it may not do beyond that, the walls say.
"""

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Limits:
    """What a child may use before it is taken for hostile."""

    memory_bytes: int
    """Of address space (Linux)."""
    cpu_s: int | None
    """Of processor time (Linux); None: the child bounds each of its tasks itself."""
    wall_s: float
    """For a machine that is busy."""


ENVIRONMENT = {
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
"""What a child sees: libraries that would reserve memory or start threads at their import do not."""
_KEPT = ("LD_LIBRARY_PATH", "SYSTEMROOT")
"""Without which some systems start no interpreter."""

_START = """
import json, sys
path, limits, argument = json.loads(sys.argv[1])
sys.path[:] = path
if sys.platform == "linux":
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (limits["memory_bytes"],) * 2)
    if limits["cpu_s"] is not None:
        resource.setrlimit(resource.RLIMIT_CPU, (limits["cpu_s"],) * 2)
    # 1 byte, not 0: only 1 also stops a core_pattern that pipes to a program (fs/coredump.c).
    most = min(1, resource.getrlimit(resource.RLIMIT_CORE)[1] % 2**64)  # -1 is no limit
    resource.setrlimit(resource.RLIMIT_CORE, (most, most))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
"""


def start_limited(code: str, argument: Any, limits: Limits) -> subprocess.Popen[bytes]:
    """Start Python code that has `argument` as a variable, with pipes to and from it.

    Raises OSError where the machine has no room for a process.
    """
    # Not the current folder (""), which may be anyone's.
    start = json.dumps([[entry for entry in sys.path if entry], asdict(limits), argument])
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _START + code, start],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # an interrupt from the terminal is for the parent
        env=ENVIRONMENT | {name: os.environ[name] for name in _KEPT if name in os.environ},
    )
