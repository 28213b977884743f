"""The three kernel walls: a namespace without network devices, Landlock, and a filter of system calls.

Linux only, x86_64 and aarch64; by ctypes, because Python has os.unshare from 3.12 on and neither of the
others. Each raises OSError where the kernel refuses, and leaves the process as it was. Sources:
user_namespaces(7), landlock(7) and linux/landlock.h, seccomp(2).
"""

import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

AF_UNIX, SOCK_STREAM = 1, 1
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_PR_SET_NO_NEW_PRIVS = 38
_SYSCALLS = {  # linux/asm/unistd_64.h and asm-generic/unistd.h
    "x86_64": {"connect": 42, "ptrace": 101, "add_key": 248, "request_key": 249, "setns": 308}
    | {"process_vm_writev": 311, "socket": 41, "socketpair": 53, "seccomp": 317},
    "aarch64": {"connect": 203, "ptrace": 117, "add_key": 217, "request_key": 218, "setns": 268}
    | {"process_vm_writev": 271, "socket": 198, "socketpair": 199, "seccomp": 277},
}
_IO_URING_AND_PIDFD = (425, 426, 427, 438)
"""io_uring_setup, io_uring_enter, io_uring_register and pidfd_getfd, the same on every machine."""
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_BIT = 0x40000000

_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_WRITE_FILE, _REMOVE_DIR, _MAKE_DIR, _REFER, _TRUNCATE = 1 << 1, 1 << 4, 1 << 7, 1 << 13, 1 << 14
LANDLOCK_WRITES = 0b111_1111_1111_0010
"""Every right of ABI 3 that changes a file or a folder; executing and reading stay free."""
LANDLOCK_FILE = _WRITE_FILE | _TRUNCATE
LANDLOCK_FOLDERS = _MAKE_DIR | _REMOVE_DIR | _REFER
"""To make, remove and rename folders, and nothing that holds content."""
_LEAST_ABI, _NET_ABI, _SCOPE_ABI = 3, 4, 6
_TCP_BIND_CONNECT, _SCOPE_ABSTRACT_AND_SIGNALS = 0b11, 0b11


def libc() -> Any:
    """Return the C library of this process."""
    return ctypes.CDLL(None, use_errno=True)


def longs(*values: int) -> Iterator[ctypes.c_ulong]:
    """Return variadic arguments of the width that the kernel reads."""
    return map(ctypes.c_ulong, values)


def check(result: int) -> int:
    """Return what a C call returned; raise its OSError where that is below 0."""
    if result < 0:
        raise OSError(ctypes.get_errno() or errno.EPERM, "refused by the kernel")
    return result


def enter_namespace() -> None:
    """Enter namespaces without any network device; a child tries first, for half way is no way back.

    A system may allow the call and then forbid to map the identity, as rules of AppArmor can.
    """
    status = os.waitstatus_to_exitcode(os.waitpid(_fork(_enter_namespace), 0)[1])
    if status != 0:
        raise OSError(abs(status), "refused by the kernel")
    _enter_namespace()


def _enter_namespace() -> None:
    """Leave for a new user and network namespace in which every user and group id is what it was."""
    parent, user, group = os.getpid(), os.geteuid(), os.getegid()
    same = {}
    for kind in ("uid_map", "gid_map"):
        with open(f"/proc/self/{kind}") as lines:
            same[f"/proc/{parent}/{kind}"] = "".join(
                f"{first} {first} {n}\n" for first, _, n in map(str.split, lines)
            )
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


def restrict_writes(allowed: Iterable[tuple[Path, int]]) -> None:
    """Let this process and its children change only what lies beneath the paths, each with its rights.

    From ABI 4 on also no TCP, from ABI 6 on no abstract UNIX socket and no signal of processes outside.
    """
    check(libc().prctl(_PR_SET_NO_NEW_PRIVS, *longs(1, 0, 0, 0)))
    abi = check(libc().syscall(*longs(_LANDLOCK_CREATE, 0, 0, 1)))
    if abi < _LEAST_ABI:
        raise OSError(errno.ENOSYS, f"Landlock ABI {abi}, expected {_LEAST_ABI} or newer")
    net = _TCP_BIND_CONNECT if abi >= _NET_ABI else 0
    scoped = _SCOPE_ABSTRACT_AND_SIGNALS if abi >= _SCOPE_ABI else 0
    attributes = struct.pack("=QQQ", LANDLOCK_WRITES, net, scoped)
    size = 24 if scoped else 16 if net else 8
    rules = check(libc().syscall(*longs(_LANDLOCK_CREATE), attributes, *longs(size, 0)))
    try:
        for path, rights in allowed:
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
            try:
                beneath = struct.pack("=Qi", rights, place)
                check(libc().syscall(*longs(_LANDLOCK_ADD, rules, 1), beneath, *longs(0)))
            finally:
                os.close(place)
        check(libc().syscall(*longs(_LANDLOCK_RESTRICT, rules, 0)))
    finally:
        os.close(rules)


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
    """Return the BPF instructions: no socket can reach anything, and nobody lends or smuggles in another.

    seccomp sees no addresses behind pointers, so a socket that may name its peer in each message cannot
    be judged: sockets are AF_UNIX streams, which drivers listen on, and none may connect. An allow-list of
    families, for besides IP there are VSOCK, NETLINK, PACKET, TIPC and more. Denied too: io_uring, which
    has sockets of its own; taking part in another process (ptrace, its memory, its descriptors) or its
    network (setns); and kernel keys, whose look-up may ask a name server.
    """
    numbers = dict(_SYSCALLS[machine])
    socket, socketpair, _ = numbers.pop("socket"), numbers.pop("socketpair"), numbers.pop("seccomp")
    load, mask, jump_equal, jump_above, give_back = 0x20, 0x54, 0x15, 0x35, 0x06
    allow, kill, refuse = 0x7FFF0000, 0x80000000, 0x00050000 | errno.EACCES
    number_at, arch_at, family_at, type_at, type_mask = 0, 4, 16, 24, 0xF

    def op(code: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
        return struct.pack("=HBBI", code, then, otherwise, value)

    program = [op(load, arch_at), op(jump_equal, _AUDIT_ARCH[machine], 1), op(give_back, kill)]
    program.append(op(load, number_at))
    if machine == "x86_64":
        program += [op(jump_above, _X32_BIT, 0, 1), op(give_back, kill)]
    for number in (*numbers.values(), *_IO_URING_AND_PIDFD):
        program += [op(jump_equal, number, 0, 1), op(give_back, refuse)]
    program += [op(jump_equal, socket, 1), op(jump_equal, socketpair, 0, 6)]
    program += [op(load, family_at), op(jump_equal, AF_UNIX, 0, 3)]
    program += [op(load, type_at), op(mask, type_mask), op(jump_equal, SOCK_STREAM, 1)]
    return [*program, op(give_back, refuse), op(give_back, allow)]
