"""What a run took: seconds, peak memory, and energy where the machine has counters that this user may read.

Energy is that of whole devices, other programs included: of CPU packages by RAPL (Linux, often for root
alone), of one GPU by NVML. A counter of RAPL comes round within minutes, so it is read at a stage's steps.
"""

import ctypes
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from shared.progress import Moment, stage

if sys.platform != "win32":
    import resource

POWERCAP = Path("/sys/class/powercap")
READ_EVERY_S = 20.0
"""Common counters hold 65 or 262 kJ, which a package of 1 kW goes through in 65 or 262 s."""


class Clock:
    """Seconds per stage of this run; what an interrupted run had spent is not in them."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time spent inside to the stage's."""
        start = time.monotonic()
        with stage(name):
            yield
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.monotonic() - start, 3)


class Meter:
    """Energy since it was made; a listener of `shared.progress`, so that it comes by often enough."""

    def __init__(self, device: torch.device, powercap: Path = POWERCAP) -> None:
        self._device, self._read_s = device, time.monotonic()
        zones = sorted(path for path in powercap.glob("*-rapl:*") if path.name.count(":") == 1)
        self._cpu = {zone: found for zone in zones if (found := _microjoules(zone)) is not None}
        self._cpu_joules = 0.0
        self._gpu_start = _gpu_joules(device)

    def __call__(self, moment: Moment | None) -> None:
        """Read the counters now and then."""
        if time.monotonic() - self._read_s >= READ_EVERY_S:
            self._read()

    def _read(self) -> None:
        self._read_s = time.monotonic()
        for zone, before in self._cpu.items():
            now = _microjoules(zone)
            if now is not None:
                used = now - before if now >= before else now - before + _number(zone / "max_energy_range_uj")
                self._cpu_joules += used / 1e6
                self._cpu[zone] = now

    def figures(self) -> dict[str, Any]:
        """Return peak memory in bytes and energy in joules, of what can be told; None for the rest."""
        self._read()
        gpu_now = _gpu_joules(self._device)
        is_told = gpu_now is not None and self._gpu_start is not None
        return {
            "peak_memory_bytes": peak_memory_bytes(),
            "peak_device_memory_bytes": torch.cuda.max_memory_allocated(self._device)
            if self._device.type == "cuda"
            else None,
            "cpu_joules": round(self._cpu_joules, 1) if self._cpu else None,
            "gpu_joules": round((gpu_now or 0.0) - (self._gpu_start or 0.0), 1) if is_told else None,
        }


def peak_memory_bytes() -> int | None:
    """Return the most memory this process had resident, and None where the system does not say."""
    if sys.platform == "win32":
        return None
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _microjoules(zone: Path) -> int | None:
    """Return a CPU package's counter; None for what is no package, or not for this user to read."""
    with suppress(OSError, ValueError):
        if (zone / "name").read_text().startswith("package"):
            return _number(zone / "energy_uj")
    return None


def _number(path: Path) -> int:
    return int(path.read_text())


def _gpu_joules(device: torch.device) -> float | None:
    """Return a GPU's energy since its driver was loaded. Source: NVML's TotalEnergyConsumption."""
    if device.type != "cuda":
        return None
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}".encode()
    handle, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()
    calls = (
        lambda: nvml.nvmlInit_v2(),
        lambda: nvml.nvmlDeviceGetHandleByUUID(uuid, ctypes.byref(handle)),
        lambda: nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules)),
    )
    return millijoules.value / 1e3 if all(call() == 0 for call in calls) else None
