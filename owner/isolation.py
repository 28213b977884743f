"""The walls around private text: no way out to a network, no core dumps, files for their owner only.

Raised before anything else is imported, they cannot be taken down again. Two kernel layers, each enough
for IP alone and both inherited by every child in any language; two advisory ones that say early what
library tried. docs/threat-model.md tells what they do not stop. Standard library only.
"""

import ctypes
import errno
import os
import stat
import struct
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from owner.kernel import AF_UNIX, check, enter_namespace, install_filter, libc, longs
from shared.errors import IsolationError

if sys.platform != "win32":
    import resource

NAMESPACE, SECCOMP = "user+network namespace (kernel)", "seccomp (kernel)"
AUDIT_HOOK, VARIABLES = "audit hook (advisory)", "offline variables (advisory)"
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
_AF_INET, _AF_INET6, _SOCK_STREAM, _SOCK_DGRAM = 2, 10, 1, 2
_PR_SET_DUMPABLE = 4
_SOL_SOCKET, _SO_DOMAIN = 1, 39


@dataclass(frozen=True)
class Walls:
    """What holds: `layers` against the network, strongest first; `missing`, with the kernel's reason;
    `private`, what keeps text out of other hands.
    """

    layers: tuple[str, ...]
    missing: tuple[str, ...] = ()
    private: tuple[str, ...] = ()


def raise_walls(egress: Literal["deny", "best-effort"] = "deny") -> Walls:
    """Shut this process and all its children off from the network, once and for good.

    Call it in a process with one thread, before numpy or torch is imported. "deny" raises
    IsolationError unless at least one kernel layer stands; "best-effort" goes on with what there is.
    GPUs and AF_UNIX sockets (data loader workers need them) stay usable. IsolationError is also raised
    when there are several threads already, or when a standard stream is a network socket.
    """
    if sys.platform == "linux":
        _check_one_thread()
        _close_network_sockets()
    layers: list[str] = []
    missing: list[str] = []
    for name, build in ((NAMESPACE, enter_namespace), (SECCOMP, install_filter)):
        try:
            if sys.platform != "linux":
                raise OSError(errno.ENOSYS, "not Linux")
            build()
            layers.append(name)
        except OSError as error:
            missing.append(f"{name}: {errno.errorcode.get(error.errno or 0, 'refused')}")
    if egress == "deny" and not layers:
        raise IsolationError(
            f"the kernel cannot shut the network off here: {'; '.join(missing)}",
            hint="use a Linux that allows user namespaces or seccomp, or accept it: --egress best-effort",
        )
    sys.addaudithook(_trip)
    os.environ.update(OFFLINE)
    if layers:
        verify_walls()
    return Walls((*layers, AUDIT_HOOK, VARIABLES), tuple(missing), _keep_files_private())


def verify_walls() -> None:
    """Try to get out (on Linux), without sending anything; raises IsolationError if there is a way.

    For IPv4 and IPv6, stream and datagram, past all Python: either no socket can be had, or it has no
    route. (Connecting a datagram socket only looks the route up; the addresses are for documentation,
    RFC 5737 and RFC 3849.)
    """
    port, v4, v6 = struct.pack(">H", 9), bytes([192, 0, 2, 1]), bytes.fromhex(f"20010db8{1:024x}")
    addresses = {
        _AF_INET: struct.pack("=H", _AF_INET) + port + v4 + bytes(8),
        _AF_INET6: struct.pack("=H", _AF_INET6) + port + bytes(4) + v6 + bytes(4),
    }
    for family, address in addresses.items():
        for kind in (_SOCK_STREAM, _SOCK_DGRAM):
            found = libc().socket(family, kind, 0)
            if found < 0:
                continue
            try:
                reached = kind == _SOCK_DGRAM and libc().connect(found, address, len(address)) == 0
            finally:
                os.close(found)
            if reached:
                raise IsolationError(
                    f"the network is still reachable: address family {family} has a route",
                    hint="report this with the kernel's version; do not run on private text",
                )


def _trip(event: str, arguments: tuple[Any, ...]) -> None:
    """Stop Python code that turns to the network, and name the call; never its address."""
    if event in _EVENTS:
        family = getattr(arguments[0], "family", None)
        if family is None or family != AF_UNIX:
            raise IsolationError(
                f"{event}: refused, this process must not use a network",
                hint="report this: a library tried to connect while it held private text",
            )


def _keep_files_private() -> tuple[str, ...]:
    os.umask(0o077)
    done = ["umask 077"]
    if sys.platform != "win32":
        # 1 byte, not 0: only 1 also stops a core_pattern that pipes to a program (fs/coredump.c).
        hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
        most = 0 if hard == 0 else 1
        resource.setrlimit(resource.RLIMIT_CORE, (most, most))
        done.append("no core files")
    # After the namespace: a process that is not dumpable may not write its own uid_map.
    if sys.platform == "linux" and libc().prctl(_PR_SET_DUMPABLE, *longs(0, 0, 0, 0)) == 0:
        done.append("not dumpable")
    return tuple(done)


def _check_one_thread() -> None:
    n_threads = len(os.listdir("/proc/self/task"))
    if n_threads > 1:
        raise IsolationError(
            f"the walls came too late: the process has {n_threads} threads, found against expected 1",
            hint="call raise_walls() before numpy, torch or anything else that starts threads",
        )


def _close_network_sockets() -> None:
    """Close what was inherited open, but for AF_UNIX: no layer below reaches an open connection."""
    domain, size = ctypes.c_int(), ctypes.c_uint(4)
    for name in os.listdir("/proc/self/fd"):
        descriptor = int(name)
        with suppress(OSError):  # the listing's own descriptor is gone
            if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                continue
            check(
                libc().getsockopt(
                    descriptor, _SOL_SOCKET, _SO_DOMAIN, ctypes.byref(domain), ctypes.byref(size)
                )
            )
            if domain.value != AF_UNIX:
                if descriptor <= 2:
                    raise IsolationError(
                        f"standard stream {descriptor} is a network socket",
                        hint="redirect input and output to a terminal, a pipe or a file",
                    )
                os.close(descriptor)
