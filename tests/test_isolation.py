"""The walls, in processes of their own: once raised they stay, so none is raised in this one."""

import json
import os
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from owner.isolation.walls import AUDIT_HOOK, CLOSED, LANDLOCK, NAMESPACE, PRIVATE, SECCOMP, VARIABLES
from tests.test_documents import may_become_others

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel walls are Linux's")
as_root = pytest.mark.skipif(not may_become_others(), reason="needs root, to become somebody else")

PROBES = """
import ctypes, json, os, socket, struct, subprocess, sys
port, udp_port, unix_path, datagram_path, abstract, inherited, outside = json.loads(sys.argv[1])
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
def unix_past_python():
    address = struct.pack("=H", 1) + unix_path.encode() + bytes(1)
    if libc.connect(libc.socket(1, 1, 0), address, len(address)) != 0:
        raise OSError
def abstract_socket():
    with socket.socket(socket.AF_UNIX) as out:
        out.connect(abstract)
def unix_datagram():
    a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    a.sendto(b"leak", datagram_path)
def new_file():
    open(outside + "/leak", "w").write("leak")
def appended():
    open(outside + "/there", "a").write("leak")
def truncated():
    os.truncate(outside + "/there", 0)
def from_child():
    subprocess.run(["sh", "-c", f"echo leak > {outside}/leak"], check=True, stderr=subprocess.DEVNULL)
def renamed_out():
    open("leak", "w").write("leak")
    os.rename("leak", outside + "/leak")
def linked_out():
    open("leak", "w").write("leak")
    os.link("leak", outside + "/linked")
def through_link():
    os.symlink(outside, "link")
    open("link/leak", "w").write("leak")
x86 = os.uname().machine == "x86_64"
probes = {
    "tcp": tcp, "udp": udp, "resolve": resolve, "past_python": past_python, "child": child,
    "opened_before": opened_before, "ipv6": any_of(10), "netlink": any_of(16, 3), "packet": any_of(17, 3),
    "vsock": any_of(40), "io_uring": call(425, 0, 0), "pidfd_getfd": call(438, -1, 0, 0),
    "ptrace": call(101 if x86 else 117, 99, 0, 0, 0), "setns": call(308 if x86 else 268, -1, 0),
    "request_key": call(249 if x86 else 218, 0, 0, 0, 0),
    "unix": unix_socket, "unix_past_python": unix_past_python, "abstract": abstract_socket,
    "unix_datagram": unix_datagram, "new_file": new_file, "appended": appended, "truncated": truncated,
    "from_child": from_child, "renamed_out": renamed_out, "linked_out": linked_out,
    "through_link": through_link,
}
def run():
    found = {}
    for name, probe in probes.items():
        try:
            probe()
            found[name] = "open"
        except (OSError, subprocess.CalledProcessError):
            found[name] = "stopped"
        except Exception as error:
            if type(error).__name__ != "IsolationError":
                raise
            found[name] = "stopped"
    return found
"""
KERNEL_REFUSES = """
import ctypes, struct
def kernel_refuses(*names):
    x86 = __import__("os").uname().machine == "x86_64"
    op = lambda code, value, then=0, otherwise=0: struct.pack("=HBBI", code, then, otherwise, value)
    calls = {"unshare": 272 if x86 else 97, "landlock": 444, "seccomp": 317 if x86 else 277}
    refuse = op(0x06, 0x00050001)
    denied = [calls[name] for name in names or calls]
    code = b"".join([
        op(0x20, 0), *(part for number in denied for part in (op(0x15, number, 0, 1), refuse)),
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


@contextmanager
def listen(tmp_path):
    """Open a real listener of each kind; yield the probes' argument, an open connection, where to run."""
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir()
    inside.mkdir()
    (outside / "there").write_text("there")
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        socket.socket(socket.AF_UNIX) as unix,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagram,
        socket.socket(socket.AF_UNIX) as abstract,
    ):
        udp.bind(("127.0.0.1", 0))
        paths, name = [str(tmp_path / "s"), str(tmp_path / "d")], f"\0planearly-test-{os.getpid()}"
        datagram.bind(paths[1])
        for server, address in ((unix, paths[0]), (abstract, name)):
            server.bind(address)
            server.listen()
        with socket.create_connection(tcp.getsockname()) as inherited:
            ports = (tcp.getsockname()[1], udp.getsockname()[1])
            argument = json.dumps([*ports, *paths, name, inherited.fileno(), str(outside)])
            yield argument, inherited.fileno(), inside


@pytest.fixture
def listeners(tmp_path):
    with listen(tmp_path) as found:
        yield found


def probe(listeners, before):
    argument, descriptor, inside = listeners
    code = f"{PROBES}\n{before}\nprint(json.dumps(run()))"
    found = answer(code, argument, pass_fds=[descriptor], cwd=inside)
    return {name for name, state in found.items() if state == "open"}


BY_IP = {"tcp", "udp", "past_python", "child"}
BY_UNIX = {"unix", "unix_past_python", "abstract", "unix_datagram"}
BY_FILE = {"new_file", "appended", "truncated", "from_child", "renamed_out", "linked_out", "through_link"}
ALONE = "from pathlib import Path; from owner.isolation import kernel; kernel."
LANDLOCK_ALONE = (
    f"{ALONE}restrict_writes([(Path(), kernel.LANDLOCK_WRITES), (Path('/dev/null'), kernel.LANDLOCK_FILE)])"
)


def raised(arguments=""):
    return (
        f"from pathlib import Path; from owner.isolation.walls import raise_walls; raise_walls({arguments})"
    )


def needs(code):
    if python(f"{ALONE}{code}").returncode:
        pytest.skip("this kernel does not have it")


def test_without_walls_the_probes_do_get_out(listeners):
    assert BY_IP | BY_UNIX | BY_FILE | {"opened_before"} <= probe(listeners, "")


def test_behind_the_walls_nothing_gets_out(listeners):
    assert probe(listeners, raised("writable=[Path()]")) == set()
    assert (listeners[2].parent / "outside" / "there").read_text() == "there"


def test_seccomp_alone_stops_all_sockets_and_no_file(listeners):
    needs("install_filter()")
    found = probe(listeners, f"{ALONE}install_filter()")
    assert found <= BY_FILE | {"opened_before", "resolve"}
    assert found >= BY_FILE


def test_the_namespace_alone_stops_ip_and_abstract_sockets(listeners):
    needs("enter_namespace()")
    found = probe(listeners, f"{ALONE}enter_namespace()")
    assert found & (BY_IP | {"abstract"}) == set()
    assert {"unix", "new_file"} <= found


def test_landlock_alone_stops_every_change_outside_tcp_and_abstract_sockets(listeners):
    needs("restrict_writes([])")
    found = probe(listeners, LANDLOCK_ALONE)
    assert found & BY_FILE == set()
    assert "udp" in found  # Landlock knows TCP only


def test_behind_the_walls_a_folder_beside_out_can_be_made_and_holds_nothing(tmp_path):
    code = f"""
import json, os
{raised("writable=[Path('work')], out=Path('out')")}
Path("work/result").mkdir()
Path("work/result/report.json").write_text("7")
os.rename("work/result", "out")
for name in ("other", "out"):
    Path(name).mkdir(exist_ok=True)
    try: Path(name, "leak").write_text("leak")
    except PermissionError: continue
    raise SystemExit(name)
print(Path("out/report.json").read_text())
"""
    needs("restrict_writes([])")
    (tmp_path / "work").mkdir()
    assert answer(code, cwd=tmp_path) == 7


def test_the_walls_say_what_holds():
    code = """
import json, os, resource
from owner.isolation.walls import raise_walls, verify_walls
walls = raise_walls("best-effort")
verify_walls()
umask = os.umask(0)
core_bytes = resource.getrlimit(resource.RLIMIT_CORE)[0]
names = [layer.name for layer in walls.layers]
print(json.dumps([names, walls.missing, walls.lines(), umask, core_bytes, os.environ["HF_HUB_OFFLINE"]]))
"""
    names, missing, lines, umask, core_bytes, offline = answer(code)
    assert {NAMESPACE.name, SECCOMP.name} & set(names)
    assert [names[0], *names[-3:]] == [CLOSED.name, PRIVATE.name, AUDIT_HOOK.name, VARIABLES.name]
    assert len(names) + len(missing) == 7
    assert len(lines) == 7
    assert f"{SECCOMP.name} · stops {SECCOMP.stops}" in lines
    assert (umask, core_bytes <= 1, offline) == (0o077, True, "1")


def test_verify_walls_finds_an_open_network():
    """Asked of a process without walls; a machine without any route cannot show it."""
    code = """
import socket
from owner.isolation.walls import verify_walls
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
    code = "from owner.isolation.walls import raise_walls; raise_walls(); import os; os.abort()"
    assert python(code, cwd=tmp_path).returncode == -6
    assert list(tmp_path.iterdir()) == []


def test_it_stops_where_the_kernel_refuses_every_layer():
    done = python(
        f"{KERNEL_REFUSES}\nkernel_refuses()\nfrom owner.isolation.walls import raise_walls\n"
        "from shared.errors import IsolationError\n"
        "try: raise_walls()\nexcept IsolationError as error: print(error, '|', error.hint)"
    )
    assert done.returncode == 0, done.stderr
    names = (NAMESPACE.name, LANDLOCK.name, SECCOMP.name)
    assert "this machine cannot give isolation 'kernel', missing: " in done.stdout
    assert "; ".join(f"{name} (EPERM)" for name in names) in done.stdout
    assert "--require-isolation best-effort" in done.stdout


@pytest.mark.parametrize("refused", ["unshare", "landlock", "seccomp"])
def test_strong_needs_every_kernel_layer_and_kernel_one_against_the_network(refused):
    for wall in ("enter_namespace()", "install_filter()", "restrict_writes([])"):
        needs(wall)
    code = f"{KERNEL_REFUSES}\nkernel_refuses({refused!r})\nfrom owner.isolation.walls import raise_walls\n"
    done = python(f"{code}raise_walls('strong')")
    assert "this machine cannot give isolation 'strong', missing: " in done.stderr
    assert python(f"{code}assert len(raise_walls('kernel').missing) == 1").returncode == 0


def test_best_effort_goes_on_there_and_still_trips_on_python(listeners):
    before = (
        f"{KERNEL_REFUSES}\nkernel_refuses()\nfrom owner.isolation.walls import raise_walls\n"
        "walls = raise_walls('best-effort'); assert len(walls.missing) == 3, walls"
    )
    found = probe(listeners, before)
    assert found & {"tcp", "udp", "resolve", "opened_before"} == set()
    assert "past_python" in found  # the hook is a tripwire and no wall


def test_the_tripwire_names_the_call_and_not_the_address():
    code = """
import socket
from owner.isolation.walls import raise_walls
raise_walls()
socket.getaddrinfo("canary.example.org", 443)
"""
    done = python(code)
    assert "IsolationError: socket.getaddrinfo: refused" in done.stderr
    assert "canary" not in done.stderr.splitlines()[-1]


def test_walls_after_a_thread_has_started_are_refused():
    code = """
import threading
from owner.isolation.walls import raise_walls
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
            code = "from owner.isolation.walls import raise_walls; raise_walls()"
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
from owner.isolation.walls import raise_walls
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
from pathlib import Path
from owner.isolation.walls import raise_walls
os.chdir(sys.argv[1])
os.setgroups([]); os.setgid(65534); os.setuid(65534)
ctypes.CDLL(None).prctl(4, *map(ctypes.c_ulong, (1, 0, 0, 0)))  # as after exec
walls = raise_walls(writable=[Path()])
with open("written", "w") as out:
    out.write("x")
found = os.stat("written")
print(json.dumps([len(walls.missing) < 3, found.st_uid, found.st_gid, found.st_mode & 0o777]))
"""
    # The folders above belong to root alone; the child has gone in before it changes.
    assert answer(code, str(tmp_path)) == [True, 65534, 65534, 0o600]
    assert (tmp_path / "written").stat().st_uid == 65534
