"""What every speed table shares: systems that take turns, the ratios of neighbours, the machine.

A table names its systems, each a function from the options to a dict of figures. Systems take turns, each
turn in a process of its own (a toy run: in this one), so that a busy machine slows neighbours alike and no
system inherits another's memory or allocator. What is told is the median of the ratios, and their spread.
"""

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import torch

Figures = dict[str, Any]
System = Callable[[argparse.Namespace], Figures]
STATUS = Path("/proc/self/status")
DEVICE: tuple[str, dict[str, Any]] = ("--device", {"default": "cpu", "help": "cpu or cuda (cpu)"})
"""The option of a table whose systems can run elsewhere."""


class NotInstalled(Exception):
    """A peer is not here; its part of the table is left out and said so."""


class Compare(NamedTuple):
    """One line of a table: a figure of ours over the same figure of a peer."""

    ours: str
    peer: str
    figure: str = "seconds"
    goal: float | None = None
    """At most this; None: no goal, the line documents."""


def options_of(doc: str, *arguments: tuple[str, dict[str, Any]], rounds: int = 5) -> argparse.Namespace:
    """Parse the options of a table: the shared ones, and some of its own."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", action="store_true", help="smallest sizes: does it run and agree?")
    parser.add_argument("--rounds", type=int, default=rounds, help=f"turns of each system ({rounds})")
    parser.add_argument("--threads", type=int, default=1, help="compute threads (1)")
    parser.add_argument("--only", help="run one system once and print its figures")
    for name, settings in arguments:
        parser.add_argument(name, **settings)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.toy:
        options.rounds = 1
    return options


def wait_for(device: torch.device) -> None:
    """Return once a GPU has done all that it was asked: a clock is read after this."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def require(module: str, package: str) -> None:
    """Raise NotInstalled unless a peer can be imported."""
    if importlib.util.find_spec(module) is None:
        raise NotInstalled(f"{package} is not installed")


def _turn(name: str, system: System, options: argparse.Namespace) -> Figures:
    if options.toy:
        try:
            return system(options)
        except NotInstalled as problem:
            return {"skipped": str(problem)}
    command = [sys.executable, *sys.argv, "--only", name]
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def take_turns(
    title: str,
    systems: Mapping[str, System],
    compares: Sequence[Compare],
    options: argparse.Namespace,
    after: Callable[[dict[str, Figures]], None] = lambda turn: None,
) -> None:
    """Run all systems in turn, `options.rounds` times, and print a line for each comparison.

    `after` may add figures that depend on those of the other systems in the same round.
    """
    if options.only:
        try:
            print(json.dumps(systems[options.only](options)))
        except NotInstalled as problem:
            print(json.dumps({"skipped": str(problem)}))
        return
    found: dict[str, list[Figures]] = {name: [] for name in systems}
    skipped: dict[str, str] = {}
    for _ in range(options.rounds):
        turn = {name: _turn(name, system, options) for name, system in systems.items() if name not in skipped}
        skipped |= {name: figures["skipped"] for name, figures in turn.items() if "skipped" in figures}
        turn = {name: figures for name, figures in turn.items() if name not in skipped}
        after(turn)
        for name, figures in turn.items():
            found[name].append(figures)
    for ours, peer, figure, goal in compares:
        if reason := skipped.get(ours) or skipped.get(peer):
            print(json.dumps({"table": title, "peer": peer, "skipped": reason}))
            continue
        ratios = [a[figure] / b[figure] for a, b in zip(found[ours], found[peer], strict=True)]
        medians = {name: _median(found[name]) for name in (ours, peer)}
        tell(title, f"{ours} / {peer}, {figure}", goal, ratios, options, medians)


def _median(turns: list[Figures]) -> Figures:
    return {key: _short(statistics.median(turn[key] for turn in turns)) for key in turns[0]}


def _short(figure: float) -> float:
    return float(f"{figure:.4g}")


def tell(
    title: str,
    what: str,
    goal: float | None,
    ratios: Sequence[float],
    options: argparse.Namespace,
    facts: Figures,
) -> None:
    """Print one line of JSON: a ratio, its spread and number, the machine."""
    line: Figures = {
        "table": title,
        "what": what,
        "goal": goal,
        "median": _short(statistics.median(ratios)),
        "smallest": _short(min(ratios)),
        "largest": _short(max(ratios)),
        "n": len(ratios),
        "toy": options.toy,
        "threads": options.threads,
        "facts": facts,
        "date": date.today().isoformat(),
        "machine": machine(),
    }
    print(json.dumps(line), flush=True)


def machine() -> Figures:
    """Return what a figure depends on; the load is the mean number of running processes in a minute."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if "model name" in line] if info.exists() else []
    return {
        "processor": names[0].split(":")[1].strip() if names else platform.processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def forget_peak() -> int:
    """Set this process's peak of resident memory back to what is resident; return that, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes()


def peak_bytes() -> int:
    """Return the most memory that was resident in this process since `forget_peak`. Linux only."""
    lines = STATUS.read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) << 10
