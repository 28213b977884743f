"""The walls, in processes of their own: once raised they stay, so none is raised in this one."""

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from owner.isolation import AUDIT_HOOK, NAMESPACE, SECCOMP, VARIABLES
from tests.test_documents import may_become_others

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel walls are Linux's")
as_root = pytest.mark.skipif(not may_become_others(), reason="needs root, to become somebody else")

PROBES = """
import ctypes, json, os, socket, struct, subprocess, sys
port, udp_port, unix_path, abstract, inherited = json.loads(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
def tcp():
    socket.create_connection(("127.0.0.1", port), timeout=5).sendall(b"leak")
def udp():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
        out.sendto(b"leak", ("127.0.0.1", udp_port))
def resolve():
    socket.getaddrinfo("localhost", port)
def past_python():
    found = libc.socket(2, 1, 0)
    address = struct.pack("=H", 2) + struct.pack(">H", port) + bytes([127, 0, 0, 1]) + bytes(8)
    if found < 0 or libc.connect(found, address, 16) != 0:
        raise OSError
def child():
    code = f"import socket; socket.create_connection(('127.0.0.1', {port}), timeout=5)"
    subprocess.run([sys.executable, "-c", code], check=True, stderr=subprocess.DEVNULL)
def opened_before():
    os.write(inherited, b"leak")
def any_of(family, kind=1):
    def probe():
        if libc.socket(family, kind, 0) < 0:
            raise OSError
    return probe
def call(*numbers):
    def probe():
        if libc.syscall(*map(ctypes.c_ulong, numbers)) < 0 and ctypes.get_errno() == 13:
            raise OSError
    return probe
def unix_socket():
    with socket.socket(socket.AF_UNIX) as out:
        out.connect(unix_path)
def abstract_socket():
    with socket.socket(socket.AF_UNIX) as out:
        out.connect(abstract)
x86 = os.uname().machine == "x86_64"
probes = {
    "tcp": tcp, "udp": udp, "resolve": resolve, "past_python": past_python, "child": child,
    "opened_before": opened_before, "ipv6": any_of(10), "netlink": any_of(16, 3), "packet": any_of(17, 3),
    "vsock": any_of(40), "io_uring": call(425, 0, 0), "pidfd_getfd": call(438, -1, 0, 0),
    "ptrace": call(101 if x86 else 117, 99, 0, 0, 0), "setns": call(308 if x86 else 268, -1, 0),
    "request_key": call(249 if x86 else 218, 0, 0, 0, 0),
    "unix": unix_socket, "abstract": abstract_socket,
}
def run():
    found = {}
    for name, probe in probes.items():
        try:
            probe()
            found[name] = "open"
        except Exception as error:
            found[name] = "stopped"
    return found
"""
KERNEL_REFUSES = """
import ctypes, struct
def kernel_refuses():
    x86 = __import__("os").uname().machine == "x86_64"
    op = lambda code, value, then=0, otherwise=0: struct.pack("=HBBI", code, then, otherwise, value)
    code = b"".join([
        op(0x20, 0),
        op(0x15, 272 if x86 else 97, 4), op(0x15, 317 if x86 else 277, 3),
        op(0x15, 157 if x86 else 167, 0, 3), op(0x20, 16), op(0x15, 22, 0, 1), op(0x06, 0x00050001),
        op(0x06, 0x7fff0000),
    ])
    held = ctypes.create_string_buffer(code, len(code))
    libc = ctypes.CDLL(None)
    assert libc.prctl(38, *map(ctypes.c_ulong, (1, 0, 0, 0))) == 0
    program = struct.pack("@HP", len(code) // 8, ctypes.addressof(held))
    seccomp = map(ctypes.c_ulong, (317 if x86 else 277, 1, 0))
    assert libc.syscall(*seccomp, program) == 0
"""


def python(code, *arguments, **options):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )


def answer(code, *arguments, **options):
    """Run code that prints JSON last; return it."""
    done = python(code, *arguments, **options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def listeners(tmp_path):
    """A real listener of each kind; yields the argument and the open connection for the probes."""
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        socket.socket(socket.AF_UNIX) as unix,
        socket.socket(socket.AF_UNIX) as abstract,
    ):
        udp.bind(("127.0.0.1", 0))
        path, name = str(tmp_path / "s"), f"\0planearly-test-{os.getpid()}"
        for server, address in ((unix, path), (abstract, name)):
            server.bind(address)
            server.listen()
        with socket.create_connection(tcp.getsockname()) as inherited:
            ports = (tcp.getsockname()[1], udp.getsockname()[1])
            yield json.dumps([*ports, path, name, inherited.fileno()]), inherited.fileno()


def probe(listeners, before):
    argument, descriptor = listeners
    code = f"{PROBES}\n{before}\nprint(json.dumps(run()))"
    return answer(code, argument, pass_fds=[descriptor])


WAYS_OUT = {"tcp", "udp", "resolve", "past_python", "child", "opened_before", "ipv6", "netlink", "packet"}
WAYS_OUT |= {"vsock", "io_uring", "pidfd_getfd", "ptrace", "setns", "request_key"}
BY_IP = {"tcp", "udp", "past_python", "child"}


def test_without_walls_the_probes_do_get_out(listeners):
    found = probe(listeners, "")
    assert {found[name] for name in BY_IP | {"opened_before", "unix", "abstract"}} == {"open"}


def test_behind_the_walls_every_way_out_is_stopped_and_unix_sockets_work(listeners):
    found = probe(listeners, "from owner.isolation import raise_walls; raise_walls()")
    assert {name for name in WAYS_OUT if found[name] == "open"} == set()
    assert found["unix"] == "open"


def test_seccomp_alone_stops_every_socket_but_unix(listeners):
    found = probe(listeners, "from owner.kernel import install_filter; install_filter()")
    still_open = {name for name in WAYS_OUT if found[name] == "open"}
    assert still_open <= {"opened_before", "resolve"}
    assert found["unix"] == found["abstract"] == "open"


def test_the_namespace_alone_stops_ip_and_abstract_sockets(listeners):
    done = python("from owner.kernel import enter_namespace; enter_namespace()")
    if done.returncode:
        pytest.skip("this kernel allows no user namespace")
    found = probe(listeners, "from owner.kernel import enter_namespace; enter_namespace()")
    assert {found[name] for name in BY_IP | {"abstract"}} == {"stopped"}


def test_the_walls_say_what_holds():
    code = """
import json, os, resource
from dataclasses import asdict
from owner.isolation import raise_walls, verify_walls
walls = raise_walls()
verify_walls()
umask = os.umask(0)
core_bytes = resource.getrlimit(resource.RLIMIT_CORE)[0]
print(json.dumps([asdict(walls), umask, core_bytes, os.environ["HF_HUB_OFFLINE"]]))
"""
    walls, umask, core_bytes, offline = answer(code)
    assert {NAMESPACE, SECCOMP} & set(walls["layers"])
    assert walls["layers"][-2:] == [AUDIT_HOOK, VARIABLES]
    assert len(walls["layers"]) + len(walls["missing"]) == 4
    assert walls["private"] == ["umask 077", "no core files", "not dumpable"]
    assert (umask, core_bytes <= 1, offline) == (0o077, True, "1")


def test_verify_walls_finds_an_open_network():
    """Asked of a process without walls; a machine without any route cannot show it."""
    code = """
import socket
from owner.isolation import verify_walls
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
    try:
        out.connect(("192.0.2.1", 9))
    except OSError:
        print("no route"); raise SystemExit
verify_walls()
"""
    done = python(code)
    if "no route" in done.stdout:
        pytest.skip("this machine has no route to anywhere")
    assert "IsolationError: the network is still reachable" in done.stderr


def test_a_crash_leaves_no_core_file(tmp_path):
    code = "from owner.isolation import raise_walls; raise_walls(); import os; os.abort()"
    assert python(code, cwd=tmp_path).returncode == -6
    assert list(tmp_path.iterdir()) == []


def test_deny_fails_closed_where_the_kernel_refuses_both_layers():
    done = python(
        f"{KERNEL_REFUSES}\nkernel_refuses()\nfrom owner.isolation import raise_walls\n"
        "from shared.errors import IsolationError\n"
        "try: raise_walls()\nexcept IsolationError as error: print(error, '|', error.hint)"
    )
    assert done.returncode == 0, done.stderr
    assert "the kernel cannot shut the network off here" in done.stdout
    assert f"{NAMESPACE}: EPERM; {SECCOMP}: EPERM" in done.stdout
    assert "--egress best-effort" in done.stdout


def test_best_effort_goes_on_there_and_still_trips_on_python(listeners):
    before = (
        f"{KERNEL_REFUSES}\nkernel_refuses()\nfrom owner.isolation import raise_walls\n"
        "walls = raise_walls('best-effort'); assert len(walls.missing) == 2, walls"
    )
    found = probe(listeners, before)
    assert {found[name] for name in ("tcp", "udp", "resolve", "opened_before")} == {"stopped"}
    assert found["past_python"] == "open"  # the hook is a tripwire and no wall


def test_the_tripwire_names_the_call_and_not_the_address():
    code = """
import socket
from owner.isolation import raise_walls
raise_walls()
socket.getaddrinfo("canary.example.org", 443)
"""
    done = python(code)
    assert "IsolationError: socket.getaddrinfo: refused" in done.stderr
    assert "canary" not in done.stderr.splitlines()[-1]


def test_walls_after_a_thread_has_started_are_refused():
    code = """
import threading
from owner.isolation import raise_walls
hold = threading.Event()
threading.Thread(target=hold.wait, daemon=True).start()
raise_walls()
"""
    assert "IsolationError: the walls came too late: the process has 2 threads" in python(code).stderr


def test_a_standard_stream_that_is_a_network_socket_is_refused():
    with socket.create_server(("127.0.0.1", 0)) as server:
        accepted = []
        thread = threading.Thread(target=lambda: accepted.append(server.accept()[0]))
        thread.start()
        with socket.create_connection(server.getsockname()) as connection:
            thread.join()
            code = "from owner.isolation import raise_walls; raise_walls()"
            done = python(code, stdin=connection)
        accepted[0].close()
    assert "IsolationError: standard stream 0 is a network socket" in done.stderr


@as_root
def test_root_still_reads_what_belongs_to_others(tmp_path):
    theirs = tmp_path / "theirs"
    theirs.write_text("7")
    theirs.chmod(0o600)
    os.chown(theirs, 12345, 23456)
    code = """
import os, sys
from owner.isolation import raise_walls
raise_walls()
print(open(sys.argv[1]).read())
assert (os.stat(sys.argv[1]).st_uid, os.stat(sys.argv[1]).st_gid) == (12345, 23456)
"""
    assert answer(code, str(theirs)) == 7


@as_root
def test_an_unprivileged_user_keeps_its_files(tmp_path):
    tmp_path.chmod(0o700)
    os.chown(tmp_path, 65534, 65534)
    code = """
import ctypes, json, os, sys
from owner.isolation import raise_walls
os.chdir(sys.argv[1])
os.setgroups([]); os.setgid(65534); os.setuid(65534)
ctypes.CDLL(None).prctl(4, *map(ctypes.c_ulong, (1, 0, 0, 0)))  # as after exec
walls = raise_walls()
with open("written", "w") as out:
    out.write("x")
found = os.stat("written")
print(json.dumps([len(walls.missing) < 2, found.st_uid, found.st_gid, found.st_mode & 0o777]))
"""
    # The folders above belong to root alone; the child has gone in before it changes.
    assert answer(code, str(tmp_path)) == [True, 65534, 65534, 0o600]
    assert (tmp_path / "written").stat().st_uid == 65534


def test_torch_data_loader_workers_run_behind_the_walls(tmp_path):
    script = tmp_path / "load.py"
    script.write_text("""
from owner.isolation import raise_walls
if __name__ == "__main__":
    raise_walls()
import torch
from torch.utils.data import DataLoader
class Squares(torch.utils.data.Dataset):
    def __len__(self):
        return 7
    def __getitem__(self, i):
        return torch.full((1000,), i * i)
if __name__ == "__main__":
    for start, n_workers in (("fork", 2), ("spawn", 1)):
        loader = DataLoader(Squares(), num_workers=n_workers, multiprocessing_context=start)
        print(sum(int(batch[0, 0]) for batch in loader))
""")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(sum(i * i for i in range(7)))] * 2
