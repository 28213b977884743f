"""The two kernel walls: a namespace without network devices, and a filter of system calls.

Linux only, x86_64 and aarch64; by ctypes, because Python has os.unshare from 3.12 on and no seccomp. Each
raises OSError where the kernel refuses, and leaves the process as it was.
"""

import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Callable, Iterator
from typing import Any

AF_UNIX = 1
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_PR_SET_NO_NEW_PRIVS = 38
_SYSCALLS = {  # linux/asm/unistd_64.h and asm-generic/unistd.h
    "x86_64": {"socket": 41, "socketpair": 53, "ptrace": 101, "add_key": 248, "request_key": 249}
    | {"setns": 308, "process_vm_writev": 311, "seccomp": 317},
    "aarch64": {"socket": 198, "socketpair": 199, "ptrace": 117, "add_key": 217, "request_key": 218}
    | {"setns": 268, "process_vm_writev": 271, "seccomp": 277},
}
_SAME_EVERYWHERE = {"io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427} | {
    "pidfd_getfd": 438
}
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_BIT = 0x40000000


def libc() -> Any:
    """Return the C library of this process."""
    return ctypes.CDLL(None, use_errno=True)


def longs(*values: int) -> Iterator[ctypes.c_ulong]:
    """Return variadic arguments of the width that the kernel reads."""
    return map(ctypes.c_ulong, values)


def check(result: int) -> None:
    """Raise the OSError of a C call that did not return 0."""
    if result != 0:
        raise OSError(ctypes.get_errno() or errno.EPERM, "refused by the kernel")


def enter_namespace() -> None:
    """Enter namespaces without any network device; a child tries first, for half way is no way back.

    A system may allow the call and then forbid to map the identity, as rules of AppArmor can.
    """
    _in_child(_enter_namespace)
    _enter_namespace()


def _enter_namespace() -> None:
    """Leave for a new user and network namespace in which every user and group id is what it was."""
    parent, user, group = os.getpid(), os.geteuid(), os.getegid()
    with open("/proc/self/uid_map") as users, open("/proc/self/gid_map") as groups:
        same = {
            f"/proc/{parent}/{kind}": "".join(f"{i} {i} {n}\n" for i, _, n in map(_numbers, lines))
            for kind, lines in (("uid_map", users), ("gid_map", groups))
        }
    ready, go = os.pipe()

    def map_all() -> None:
        os.close(go)
        os.read(ready, 1)  # ends when the parent has left, or died
        for path, text in same.items():
            _write(path, text)

    # Only a process outside may map ids other than its own, and only with privileges there.
    helper = _fork(map_all) if user == 0 else 0
    os.close(ready)
    try:
        check(libc().unshare(_CLONE_NEWUSER | _CLONE_NEWNET))
    finally:
        os.close(go)
        all_mapped = bool(helper) and os.waitpid(helper, 0)[1] == 0
    if not all_mapped:
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{user} {user} 1\n")
        _write("/proc/self/gid_map", f"{group} {group} 1\n")


def _numbers(line: str) -> tuple[int, ...]:
    return tuple(map(int, line.split()))


def _write(path: str, text: str) -> None:
    with open(path, "w") as out:
        out.write(text)


def _fork(deed: Callable[[], None]) -> int:
    """Start a child that does the deed; its status is 0, or the errno of its OSError."""
    child = os.fork()
    if child:
        return child
    status = errno.EPERM
    try:
        deed()
        status = 0
    except OSError as error:
        status = error.errno or errno.EPERM
    finally:
        os._exit(status)


def _in_child(deed: Callable[[], None]) -> None:
    status = os.waitstatus_to_exitcode(os.waitpid(_fork(deed), 0)[1])
    if status != 0:
        raise OSError(abs(status), "refused by the kernel")


def install_filter() -> None:
    """Install the system call filter in all threads, so that none gains privileges and none is left out."""
    machine = platform.machine()
    if machine not in _SYSCALLS or sys.byteorder != "little" or sys.maxsize < 1 << 32:
        raise OSError(errno.ENOSYS, "not an x86_64 or aarch64 process")
    check(libc().prctl(_PR_SET_NO_NEW_PRIVS, *longs(1, 0, 0, 0)))
    code = b"".join(_filter_program(machine))
    instructions = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("@HP", len(code) // 8, ctypes.addressof(instructions))
    set_mode_filter, all_threads = 1, 1
    check(libc().syscall(*longs(_SYSCALLS[machine]["seccomp"], set_mode_filter, all_threads), program))


def _filter_program(machine: str) -> list[bytes]:
    """Return the BPF instructions: sockets are AF_UNIX, and nobody lends or smuggles in another one.

    seccomp sees no pointers, so `connect` cannot be judged; `socket` can. An allow-list of families,
    for besides IP there are VSOCK, NETLINK, PACKET, TIPC and more. Denied too: io_uring, which has
    sockets of its own; taking part in another process (ptrace, its memory, its descriptors) or its
    network (setns); and kernel keys, whose look-up may ask a name server.
    """
    numbers = _SYSCALLS[machine] | _SAME_EVERYWHERE
    load, jump_equal, jump_above, give_back = 0x20, 0x15, 0x35, 0x06
    allow, kill, refuse = 0x7FFF0000, 0x80000000, 0x00050000 | errno.EACCES
    number_at, arch_at, argument_at = 0, 4, 16

    def op(code: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
        return struct.pack("=HBBI", code, then, otherwise, value)

    denied = ("ptrace", "add_key", "request_key", "setns", "process_vm_writev", *_SAME_EVERYWHERE)
    program = [op(load, arch_at), op(jump_equal, _AUDIT_ARCH[machine], 1), op(give_back, kill)]
    program.append(op(load, number_at))
    if machine == "x86_64":
        program += [op(jump_above, _X32_BIT, 0, 1), op(give_back, kill)]
    for name in denied:
        program += [op(jump_equal, numbers[name], 0, 1), op(give_back, refuse)]
    program += [op(jump_equal, numbers["socket"], 1), op(jump_equal, numbers["socketpair"], 0, 3)]
    program += [op(load, argument_at), op(jump_equal, AF_UNIX, 1), op(give_back, refuse)]
    return [*program, op(give_back, allow)]
