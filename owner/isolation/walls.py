"""The walls around private text: no way out to a network, no file elsewhere, files for their owner only.

Raised before anything else is imported, they cannot be taken down again. Three kernel layers, inherited
by every child in any language; two advisory ones that say early what library tried.
docs/threat-model.md tells what they do not stop. Standard library only.
"""

import ctypes
import errno
import os
import stat
import struct
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from owner.isolation.kernel import (
    AF_UNIX,
    LANDLOCK_FILE,
    LANDLOCK_FOLDERS,
    LANDLOCK_WRITES,
    SOCK_STREAM,
    check,
    enter_namespace,
    install_filter,
    libc,
    longs,
    restrict_writes,
)
from shared.errors import IsolationError, PlanearlyError

if sys.platform != "win32":
    import resource


@dataclass(frozen=True)
class Layer:
    """One wall, and in plain words what it stops."""

    name: str
    stops: str


NAMESPACE = Layer("user+network namespace", "every network device, in any language, and in child processes")
LANDLOCK = Layer("landlock", "changing files outside the out folder; TCP, signals to other processes")
SECCOMP = Layer("seccomp", "connecting, sockets but local streams, io_uring, ptrace, others' descriptors")
CLOSED = Layer("closed sockets", "connections that were open before the run")
PRIVATE = Layer(
    "private output", "core files, other users of this machine (umask 077), messages of libraries' errors"
)
AUDIT_HOOK = Layer("audit hook (advisory)", "network calls of Python code, by name")
VARIABLES = Layer("offline variables (advisory)", "look-ups and telemetry of libraries that ask first")

Level = Literal["strong", "kernel", "best-effort"]
LEVELS: dict[str, tuple[tuple[Layer, ...], int]] = {
    "strong": ((NAMESPACE, LANDLOCK, SECCOMP), 3),
    "kernel": ((NAMESPACE, SECCOMP), 1),
    "best-effort": ((), 0),
}
"""For each level of isolation the kernel's layers that count, and how many of them have to stand."""
OFFLINE = {
    "DO_NOT_TRACK": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "WANDB_MODE": "disabled",
}
_EVENTS = (
    *("socket.bind", "socket.connect", "socket.sendmsg", "socket.sendto"),
    *("socket.getaddrinfo", "socket.gethostbyaddr", "socket.gethostbyname", "socket.getnameinfo"),
)
_DEVICES = ("null", "nvidia*", "nvidia-caps/*", "dri/*", "kfd")
"""Below /dev: what a computation opens for writing."""
_PR_SET_DUMPABLE, _SOL_SOCKET, _SO_TYPE, _SO_DOMAIN = 4, 1, 3, 39


@dataclass(frozen=True)
class Walls:
    """What holds, in the order it was raised, and what is missing here, with the kernel's reason."""

    layers: tuple[Layer, ...]
    missing: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Return one line of text for each layer and for each that is missing."""
        stand = [f"{layer.name} · stops {layer.stops}" for layer in self.layers]
        return stand + [f"MISSING {reason}" for reason in self.missing]


def raise_walls(level: Level = "kernel", writable: Sequence[Path] = (), out: Path | None = None) -> Walls:
    """Shut this process and all its children off, once and for good.

    From then on files can be changed beneath the `writable` folders only; folders, which hold no content
    themselves, can be made and renamed beside `out` too. Call it in a process with one thread, before
    numpy or torch is imported. Raises IsolationError when fewer kernel layers stand than `level`
    demands, when there are several threads already, or when a standard stream is a network socket; OSError
    for a folder that is not there.
    """
    for folder in writable:
        os.stat(folder)  # before the walls: what is missing there is no fault of the kernel's
    rights = [(folder, LANDLOCK_WRITES) for folder in writable]
    rights += [(out.absolute().parent, LANDLOCK_FOLDERS)] if out else []
    rights += [(path, LANDLOCK_FILE) for name in _DEVICES for path in Path("/dev").glob(name)]
    rights += [(Path("/proc/self"), LANDLOCK_FILE)]  # threads are named there
    layers: list[Layer] = []
    missing: list[str] = []
    if sys.platform == "linux":
        _check_one_thread()
        _close_sockets()
        layers.append(CLOSED)
    kernel_walls: tuple[tuple[Layer, Callable[[], None]], ...] = (
        (NAMESPACE, enter_namespace),
        (LANDLOCK, partial(restrict_writes, rights)),
        (SECCOMP, install_filter),
    )
    for layer, build in kernel_walls:  # a namespace writes to /proc, so Landlock comes after it
        try:
            if sys.platform != "linux":
                raise OSError(errno.ENOSYS, "not Linux")
            build()
            layers.append(layer)
        except OSError as error:
            missing.append(f"{layer.name} ({errno.errorcode.get(error.errno or 0, 'refused')})")
    counted, needed = LEVELS[level]
    if len(set(counted) & set(layers)) < needed:
        raise IsolationError(
            f"this machine cannot give isolation {level!r}, missing: {'; '.join(missing)}",
            hint="use a Linux with user namespaces, Landlock and seccomp, or accept less:"
            " --require-isolation best-effort",
        )
    sys.addaudithook(_trip)
    sys.excepthook = _withhold_message
    os.environ.update(OFFLINE)
    if {NAMESPACE, SECCOMP} & set(layers):
        verify_walls()
    if sys.platform != "win32":
        _keep_files_private()
        layers.append(PRIVATE)
    return Walls((*layers, AUDIT_HOOK, VARIABLES), tuple(missing))


def verify_walls() -> None:
    """Try to get out (on Linux), without sending anything; raises IsolationError if there is a way.

    Past all Python: either no socket can be had, or it has no route. (Connecting a datagram socket only
    looks the route up; the addresses are for documentation, RFC 5737 and RFC 3849.)
    """
    port, v4, v6 = struct.pack(">H", 9), bytes([192, 0, 2, 1]), bytes.fromhex(f"20010db8{1:024x}")
    inet, inet6, datagram = 2, 10, 2
    for family, rest in ((inet, v4 + bytes(8)), (inet6, bytes(4) + v6 + bytes(4))):
        address = struct.pack("=H", family) + port + rest
        found = libc().socket(family, datagram, 0)
        if found >= 0:
            try:
                reached = libc().connect(found, address, len(address)) == 0
            finally:
                os.close(found)
            if reached:
                raise IsolationError(
                    f"the network is still reachable: address family {family} has a route",
                    hint="report this with the kernel's version; do not run on private text",
                )


def _trip(event: str, arguments: tuple[Any, ...]) -> None:
    """Stop Python code that turns to the network, and name the call; never its address."""
    if event in _EVENTS and getattr(arguments[0], "family", None) != AF_UNIX:
        raise IsolationError(
            f"{event}: refused, this process must not use a network",
            hint="report this: a library tried to connect while it held private text",
        )


def _withhold_message(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print where an error that nobody expected came from, without the words of a library that held text."""
    for frame in traceback.extract_tb(trace):
        print(f"owner:   {frame.filename}:{frame.lineno} in {frame.name}", file=sys.stderr)
    words = str(error) if isinstance(error, PlanearlyError) else "withheld, may quote private text"
    print(f"owner: error: {kind.__qualname__}: {words}", file=sys.stderr)


def _keep_files_private() -> None:
    os.umask(0o077)
    # 1 byte, not 0: only 1 also stops a core_pattern that pipes to a program (fs/coredump.c).
    most = min(1, resource.getrlimit(resource.RLIMIT_CORE)[1] % 2**64)  # -1 is no limit
    resource.setrlimit(resource.RLIMIT_CORE, (most, most))
    # After the namespace: a process that is not dumpable may not write its own uid_map.
    if sys.platform == "linux":
        check(libc().prctl(_PR_SET_DUMPABLE, *longs(0, 0, 0, 0)))


def _check_one_thread() -> None:
    n_threads = len(os.listdir("/proc/self/task"))
    if n_threads > 1:
        raise IsolationError(
            f"the walls came too late: the process has {n_threads} threads, found against expected 1",
            hint="call raise_walls() before numpy, torch or anything else that starts threads",
        )


def _close_sockets() -> None:
    """Close sockets that were inherited open: no layer reaches an open connection."""
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        with suppress(OSError):  # the listing's own descriptor is gone
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                continue
            if descriptor > 2:
                os.close(descriptor)
            elif (_option(descriptor, _SO_DOMAIN), _option(descriptor, _SO_TYPE)) != (AF_UNIX, SOCK_STREAM):
                raise IsolationError(
                    f"standard stream {descriptor} is a network socket",
                    hint="redirect input and output to a terminal, a pipe or a file",
                )


def _option(descriptor: int, option: int) -> int:
    value, size = ctypes.c_int(), ctypes.c_uint(4)
    check(libc().getsockopt(descriptor, _SOL_SOCKET, option, ctypes.byref(value), ctypes.byref(size)))
    return value.value
