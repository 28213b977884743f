"""What the machine is made of, and whether a model of these sizes fits: software, device, memory, disk."""

import importlib.metadata
import os
import platform
import shutil
import sys
from pathlib import Path

import torch

from owner.doctoring.findings import MISSING, OK, WARN, Check, lines_of
from owner.training.finetuning import FinetuneConfig
from owner.training.unfinished import needed_space
from shared.bundle import Bundle
from shared.device import choose_device, has_bf16
from shared.sizes import PRESETS, SlmConfig
from shared.slm import build_slm, count_parameters

STATE_BYTES = 16
"""Per trained weight: itself, its gradient and Adam's two moments, in float32 (benchmarks/costs.py)."""
LIVE_WIDTHS, LIVE_FFN_WIDTHS, LIVE_VOCABULARIES = 18, 4, 3
"""Floats kept per token for the backward pass: of each layer, and of the logits. Ours, from peaks of six
sizes on a CPU: from 2 % under to 30 % over for llama, 92 % over for starcoder2."""
SHOWN_PRESETS = ("laptop", "slm-126m", "llm-771m")


def check_software() -> Check:
    """Name the versions; a system without the kernel's walls is a warning."""
    packages = ("torch", "transformers", "planearly")
    versions = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    machine = f"{platform.system()} {platform.machine()}"
    found = " · ".join([f"Python {platform.python_version()}", *versions, machine])
    if sys.platform != "linux":
        return Check("software", WARN, found, "the kernel's walls are Linux's; elsewhere they are missing")
    return Check("software", OK, found, is_needed=True)


def check_processor() -> Check:
    """Name the device that a run would take, and whether it has bfloat16."""
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
    for line in lines_of("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            free = 1024 * int(line.split()[1])
    limit, used = (lines_of(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    if limit and used and limit[0].isdecimal() and int(limit[0]) - int(used[0]) < free:
        return int(limit[0]) - int(used[0]), "left in this container"
    return free, "available"


def check_memory(opened: Bundle | None) -> Check:
    """Hold the memory there is against what training the bundle's model, or presets, takes."""
    free, whose = available_bytes()
    sizes = {name: PRESETS[name] for name in SHOWN_PRESETS}
    if opened:
        sizes = {opened.manifest.name: opened.manifest.model}
    needs = {name: training_bytes(size) for name, size in sizes.items()}
    hint = "" if min(needs.values()) <= free else "close other programs, or use a machine with more memory"
    found = f"{free / 1e9:.1f} GB {whose} · {_needs(needs, free)}"
    return Check("memory", MISSING if hint else OK, found, hint, is_needed=True)


def check_disk(out: Path, opened: Bundle | None) -> Check:
    """Hold the space beside the out folder against what a run leaves there."""
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
