"""What stands around a run: walls, ways out to a network, who else may write, the clock.

Looked at from outside, in tables of the kernel and in files; no packet is sent. The walls are raised in a
child process, which then ends, because they cannot be taken down again.
"""

import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

from owner.doctoring.findings import MISSING, OK, WARN, Check, lines_of
from owner.isolation.walls import LEVELS
from owner.trust.remembering import read_clock, read_state, trust_home
from shared.errors import PlanearlyError
from shared.names import read_time

PROXIES = ("http_proxy", "https_proxy", "all_proxy")
ROUTE_UP, ROUTE_REJECTED = 0x1, 0x200
"""RTF_UP and RTF_REJECT of linux/route.h: the kernel lists routes to nowhere too."""
RAISE_WALLS = (
    "import json; from owner.isolation.walls import raise_walls; w = raise_walls('best-effort');"
    " print(json.dumps({'layers': [layer.name for layer in w.layers], 'missing': w.missing}))"
)


def check_walls() -> Check:
    """Raise all that can be raised here, in a child, and say which levels of isolation that is enough for."""
    done = subprocess.run([sys.executable, "-P", "-c", RAISE_WALLS], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["ended without a word"])[-1]
        return Check("walls", MISSING, last, "see docs/threat-model.md", is_needed=True)
    walls = json.loads(done.stdout)
    stands = {
        level: sum(layer.name in walls["layers"] for layer in counted) >= needed
        for level, (counted, needed) in LEVELS.items()
    }
    found = f"{', '.join(walls['layers'])}"
    if walls["missing"]:
        found += f" · missing: {'; '.join(walls['missing'])}"
    if stands["strong"]:
        return Check("walls", OK, found, is_needed=True)
    if stands["kernel"]:
        return Check(
            "walls", WARN, found, "enough for the default; --require-isolation strong is refused", True
        )
    return Check(
        "walls",
        MISSING,
        found,
        "a Linux with user namespaces or seccomp; or --require-isolation best-effort",
        True,
    )


def check_network() -> Check:
    """Tell from the kernel's tables whether there is a way out; a run is shut off in either case."""
    if sys.platform != "linux":
        return Check("network", WARN, "only Linux tells without asking the network", "unplug it to be sure")
    ways = []
    routes = [line.split() for line in lines_of("/proc/net/route")[1:]]
    if any(row[1] == "00000000" and int(row[3], 16) & ROUTE_UP for row in routes):
        ways.append("default route (IPv4)")
    routes6 = [line.split() for line in lines_of("/proc/net/ipv6_route")]
    if any(row[1] == "00" and not int(row[8], 16) & ROUTE_REJECTED for row in routes6):
        ways.append("default route (IPv6)")
    names = [line.split(":")[0].strip() for line in lines_of("/proc/net/dev")[2:]]
    up = [name for name in names if "up" in lines_of(f"/sys/class/net/{name}/operstate")]
    if up:
        ways.append(f"interfaces up: {', '.join(up)}")
    proxies = [name for name in PROXIES if os.environ.get(name) or os.environ.get(name.upper())]
    if proxies:
        ways.append(f"proxy variables: {', '.join(proxies)}")
    servers = sum(line.startswith("nameserver ") for line in lines_of("/etc/resolv.conf"))
    looked = f"{servers} name servers in resolv.conf · nothing was sent to find out"
    if not ways:
        return Check("network", OK, f"offline: no default route, no interface up · {looked}")
    hint = "a run is walled off all the same; unplug to be sure"
    return Check("network", WARN, f"{' · '.join(ways)} · {looked}", hint)


def check_permissions(out: Path) -> Check:
    """Say whether the out folder's place can be written into, and whether by others too."""
    folder = out.absolute().parent
    if not os.access(folder, os.W_OK | os.X_OK):
        return Check(
            "permissions", MISSING, f"{folder} cannot be written into", "name an --out of your own", True
        )
    open_to_others = [
        str(path)
        for path in (folder, trust_home())
        if path.is_dir()
        and path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        and not path.stat().st_mode & stat.S_ISVTX
    ]
    if open_to_others:
        return Check(
            "permissions", WARN, f"others may write into {', '.join(open_to_others)}", "chmod go-w them", True
        )
    running = "as root" if hasattr(os, "geteuid") and os.geteuid() == 0 else "as an ordinary user"
    return Check("permissions", OK, f"{folder} can be written into · {running}", is_needed=True)


def check_clock() -> Check:
    """Compare the clock with what must lie behind it: our files' times, and the latest time seen here."""
    newest = max(path.stat().st_mtime for path in Path(__file__).parents[1].rglob("*.py"))
    found = f"{read_clock():%Y-%m-%d %H:%M} UTC"
    try:
        seen = read_state()["time"]
    except PlanearlyError:
        seen = ""
    if time.time() < newest or (seen and read_clock() < read_time(seen)):
        return Check(
            "clock", WARN, f"{found} · earlier than times seen here", "set it: expiries are judged by it"
        )
    return Check("clock", OK, found)
