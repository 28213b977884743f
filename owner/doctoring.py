"""What this machine is like before private text is near it: can `owner specialize` run here, and how freely.

Everything is looked at from outside: tables of the kernel, files, sizes. No packet is sent, no document read.
The walls are raised in a child process, which then ends, because they cannot be taken down again.
"""

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from owner.isolation.walls import LEVELS
from owner.training.finetuning import FinetuneConfig
from owner.training.unfinished import needed_space
from owner.trust.opening import open_vouched
from owner.trust.remembering import read_clock, read_state, trust_home
from owner.trust.vouching import Trust, read_trust
from shared.bundle import Bundle
from shared.device import choose_device, has_bf16
from shared.embedder import find_embedder_files
from shared.errors import PlanearlyError
from shared.extras import install_hint
from shared.names import read_time
from shared.sizes import PRESETS, SlmConfig
from shared.slm import build_slm, count_parameters

OK, WARN, MISSING = "ok", "warn", "missing"
STATE_BYTES = 16
"""Per trained weight: itself, its gradient and Adam's two moments, in float32 (benchmarks/costs.py)."""
LIVE_WIDTHS, LIVE_FFN_WIDTHS, LIVE_VOCABULARIES = 18, 4, 3
"""Floats kept per token for the backward pass: of each layer, and of the logits. Ours, from peaks of six
sizes on a CPU: from 2 % under to 30 % over for llama, 92 % over for starcoder2."""
SHOWN_PRESETS = ("laptop", "slm-126m", "llm-771m")
EXTRAS = {
    "documents": ("pypdf", "PDF, Word, PowerPoint, Excel and Parquet"),
    "lora": ("peft", "--lora"),
    "histogram": ("opendp", "owner histogram"),
    "dp": ("opacus", "--dp-epsilon"),
    "gguf": ("gguf", "owner export --format gguf"),
    "llamacpp": ("llama_cpp", "owner export --quantize"),
    "onnx": ("onnxruntime", "owner export --format onnx"),
}
"""Of each extra the module that shows whether it is installed, and what needs it."""
PROXIES = ("http_proxy", "https_proxy", "all_proxy")
ROUTE_UP, ROUTE_REJECTED = 0x1, 0x200
"""RTF_UP and RTF_REJECT of linux/route.h: the kernel lists routes to nowhere too."""
RAISE_WALLS = (
    "import json; from owner.isolation.walls import raise_walls; w = raise_walls('best-effort');"
    " print(json.dumps({'layers': [layer.name for layer in w.layers], 'missing': w.missing}))"
)


@dataclass(frozen=True)
class Check:
    """One line: what was looked at, how it is, and one thing to do about it."""

    name: str
    state: str
    found: str
    hint: str = ""
    is_needed: bool = False
    """Whether `owner specialize` cannot run without it."""

    @property
    def is_in_the_way(self) -> bool:
        """Whether `owner specialize` would fail."""
        return self.is_needed and self.state == MISSING


def examine(bundle: Path | None, out: Path, embedder: Path | None = None) -> list[Check]:
    """Return all checks, about in the order in which a run would meet them."""
    with ExitStack() as stack:
        trust, trusted = _trust()
        opened, verified = _bundle(bundle, trust, stack)
        return [
            _software(),
            _processor(),
            _memory(opened),
            _disk(out, opened),
            trusted,
            *verified,
            _embedder(opened, embedder),
            *_extras(),
            _walls(),
            _network(),
            _permissions(out),
            _clock(),
        ]


def _software() -> Check:
    packages = ("torch", "transformers", "planearly")
    versions = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    machine = f"{platform.system()} {platform.machine()}"
    found = " · ".join([f"Python {platform.python_version()}", *versions, machine])
    if sys.platform != "linux":
        return Check("software", WARN, found, "the kernel's walls are Linux's; elsewhere they are missing")
    return Check("software", OK, found, is_needed=True)


def _processor() -> Check:
    device = choose_device()
    bf16 = "bfloat16 in hardware" if has_bf16(device) else "no bfloat16 in hardware, float32 is used"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        return Check("device", OK, f"cuda · {name} · {bf16}", is_needed=True)
    found = f"{device.type} · {torch.get_num_threads()} threads on {os.cpu_count()} cores · {bf16}"
    return Check("device", OK, found, is_needed=True)


def training_bytes(sizes: SlmConfig) -> int:
    """Return what training a model of these sizes holds at its peak, about."""
    tokens = FinetuneConfig.rows_per_microbatch * sizes.context_tokens
    per_token = sizes.n_layers * (LIVE_WIDTHS * sizes.width + LIVE_FFN_WIDTHS * sizes.ffn_width)
    per_token += LIVE_VOCABULARIES * sizes.vocab_size
    return STATE_BYTES * count_parameters(build_slm(sizes, "meta")) + 4 * tokens * per_token


def available_bytes() -> tuple[int, str]:
    """Return the memory that training could have, and whose: the GPU's, the container's or the machine's."""
    device = choose_device()
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0], "free on the GPU"
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            free = 1024 * int(line.split()[1])
    limit, used = (_lines(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    if limit and used and limit[0].isdecimal() and int(limit[0]) - int(used[0]) < free:
        return int(limit[0]) - int(used[0]), "left in this container"
    return free, "available"


def _memory(opened: Bundle | None) -> Check:
    free, whose = available_bytes()
    sizes = {name: PRESETS[name] for name in SHOWN_PRESETS}
    if opened:
        sizes = {opened.manifest.name: opened.manifest.model}
    needs = {name: training_bytes(size) for name, size in sizes.items()}
    hint = "" if min(needs.values()) <= free else "close other programs, or use a machine with more memory"
    found = f"{free / 1e9:.1f} GB {whose} · {_needs(needs, free)}"
    return Check("memory", MISSING if hint else OK, found, hint, is_needed=True)


def _disk(out: Path, opened: Bundle | None) -> Check:
    folder = out.absolute().parent
    if not folder.is_dir():
        return Check("disk", MISSING, f"{folder}: no such folder", "make it, or choose another --out", True)
    free = shutil.disk_usage(folder).free
    if opened:
        n_trainings = 1 + len(opened.manifest.comparison)
        needs = {opened.manifest.name: needed_space(opened.manifest.model, n_trainings)}
    else:
        needs = {name: needed_space(PRESETS[name], 1) for name in SHOWN_PRESETS}
    hint = "" if min(needs.values()) <= free else "free some space, or choose an --out on another disk"
    return Check(
        "disk",
        MISSING if hint else OK,
        f"{free / 1e9:.1f} GB free at {folder} · {_needs(needs, free)}",
        hint,
        True,
    )


def _needs(needs: dict[str, int], free: int) -> str:
    return " · ".join(
        f"{name} needs about {need / 1e9:.1f}{'' if need <= free else ', too much'}"
        for name, need in needs.items()
    )


def _trust() -> tuple[Trust | None, Check]:
    hint = "owner trust add provider.pub"
    try:
        trust = read_trust(None)
    except PlanearlyError as error:
        return None, Check("trust", MISSING, str(error), error.hint, is_needed=True)
    usable = [file for file in trust.files if trust.is_usable(file)]
    found = f"{len(trust.pinned)} keys pinned · {len(trust.files)} trust files, {len(usable)} not expired"
    if not trust.pinned and not usable:
        return trust, Check("trust", MISSING, found, hint, is_needed=True)
    return trust, Check("trust", OK, found, is_needed=True)


def _bundle(path: Path | None, trust: Trust | None, stack: ExitStack) -> tuple[Bundle | None, list[Check]]:
    if path is None or trust is None:
        return None, []
    try:
        bundle, _ = open_vouched(path, stack, trust, lambda line: None)
        bundle.verify_all()
    except (PlanearlyError, OSError) as error:
        return None, [Check("bundle", MISSING, str(error), getattr(error, "hint", ""), is_needed=True)]
    manifest = bundle.manifest
    size = f"{count_parameters(build_slm(manifest.model, 'meta')):,} parameters"
    found = f"{path.name} · key {bundle.key_id} · {manifest.kind} · {size} · every digest verified"
    return bundle, [Check("bundle", OK, found, is_needed=True)]


def _embedder(bundle: Bundle | None, folder: Path | None) -> Check:
    if bundle and (bundle.manifest.n_experts == 1 or bundle.manifest.embedder.embedded):
        return Check("embedder", OK, "in the bundle, or not needed by it", is_needed=True)
    try:
        weights, _ = find_embedder_files(folder)
    except PlanearlyError as error:
        return Check("embedder", MISSING, str(error), error.hint, is_needed=True)
    return Check("embedder", OK, f"{len(weights):,} bytes", is_needed=True)


def _extras() -> Iterator[Check]:
    for extra, (module, use) in EXTRAS.items():
        if importlib.util.find_spec(module):
            yield Check(extra, OK, f"for {use}")
        else:
            yield Check(extra, MISSING, f"for {use}", install_hint(extra))


def _walls() -> Check:
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


def _network() -> Check:
    """Tell from the kernel's tables whether there is a way out; a run is shut off in either case."""
    if sys.platform != "linux":
        return Check("network", WARN, "only Linux tells without asking the network", "unplug it to be sure")
    ways = []
    routes = [line.split() for line in _lines("/proc/net/route")[1:]]
    if any(row[1] == "00000000" and int(row[3], 16) & ROUTE_UP for row in routes):
        ways.append("default route (IPv4)")
    routes6 = [line.split() for line in _lines("/proc/net/ipv6_route")]
    if any(row[1] == "00" and not int(row[8], 16) & ROUTE_REJECTED for row in routes6):
        ways.append("default route (IPv6)")
    names = [line.split(":")[0].strip() for line in _lines("/proc/net/dev")[2:]]
    up = [name for name in names if "up" in _lines(f"/sys/class/net/{name}/operstate")]
    if up:
        ways.append(f"interfaces up: {', '.join(up)}")
    proxies = [name for name in PROXIES if os.environ.get(name) or os.environ.get(name.upper())]
    if proxies:
        ways.append(f"proxy variables: {', '.join(proxies)}")
    servers = sum(line.startswith("nameserver ") for line in _lines("/etc/resolv.conf"))
    looked = f"{servers} name servers in resolv.conf · nothing was sent to find out"
    if not ways:
        return Check("network", OK, f"offline: no default route, no interface up · {looked}")
    hint = "a run is walled off all the same; unplug to be sure"
    return Check("network", WARN, f"{' · '.join(ways)} · {looked}", hint)


def _permissions(out: Path) -> Check:
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


def _clock() -> Check:
    """Compare the clock with what must lie behind it: these files' times, and the latest time seen here."""
    newest = max(path.stat().st_mtime for path in Path(__file__).parent.rglob("*.py"))
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


def _lines(path: str) -> list[str]:
    """Return a small file's lines; none where there is no such file."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def describe(checks: list[Check]) -> list[str]:
    """Return one line for each check, and whether `owner specialize` can run."""
    lines = [
        f"{check.state:<8}{check.name:<13}{check.found}" + (f" | {check.hint}" if check.hint else "")
        for check in checks
    ]
    stopping = [check.name for check in checks if check.is_in_the_way]
    if stopping:
        return [*lines, f"`owner specialize` cannot run here: {', '.join(stopping)}"]
    return [*lines, "`owner specialize` can run here"]
