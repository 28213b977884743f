"""Which device runs, in which precision, and what makes a run repeat bit for bit."""

import contextlib
import ctypes
import os
import warnings
from contextlib import AbstractContextManager

import torch

from shared.errors import PlanearlyError


def choose_device(name: str = "auto") -> torch.device:
    """Return the named device, or for "auto" the first of cuda, mps, cpu that is there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind = name.split(":")[0]
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there.get(kind, False):
        names = ", ".join(known for known, is_there in there.items() if is_there)
        raise PlanearlyError(f"device {name!r} is not on this machine", hint=f"there is: {names}")
    return torch.device(name)


def has_bf16(device: torch.device) -> bool:
    """Say whether bfloat16 products run in hardware: recent CUDA, MPS, CPUs with AVX-512 BF16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "mps":
        return True
    return torch.cpu._is_avx512_bf16_supported()


def autocast(device: torch.device) -> AbstractContextManager[object]:
    """Return a context in which products run in bfloat16 where the hardware has it."""
    if has_bf16(device):
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def make_deterministic(seed: int) -> None:
    """Seed torch and ask for deterministic kernels; on CPU a run then repeats bit for bit.

    CUDA's products ask for a workspace of fixed size, before the first of them (cuBLAS manual, "Results
    Reproducibility"). Its attention still adds in an order that varies: docs/howto/gpu.md says so, and torch
    need not in the middle of a run.
    """
    warnings.filterwarnings("ignore", ".* attention defaults to a non-deterministic algorithm", UserWarning)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)


def keep_freed_memory() -> None:
    """Ask the C library to keep large freed blocks for the next step instead of giving them back.

    A training step on the CPU allocates its logits anew each time; with glibc's defaults the pages are
    unmapped and faulted in again, which took half of the time of a small model's step. Does nothing
    where the C library is another. Source: glibc manual, "Malloc Tunable Parameters".
    """
    trim_threshold, mmap_threshold = -1, -3
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(mmap_threshold, 1 << 30)
        mallopt(trim_threshold, (1 << 31) - 1)
