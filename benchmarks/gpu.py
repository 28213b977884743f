"""Everything that wants a GPU, in one command of at most 25 minutes: the tables of one machine, as Markdown.

  python benchmarks/gpu.py --out gpu.jsonl [--budget-minutes 25]
  python benchmarks/gpu.py --out toy.jsonl --toy --device cpu

Each row is measured in a process of its own, forked from one that has imported torch, so that a row that
runs out of memory ends alone. A finished row is a line of --out: the same command goes on from there, and
tries again what was killed, failed or lacked a package. No row starts after the budget; one that takes longer
than ROW_MINUTES is stopped. benchmarks/gpu_rows.py says what is measured.
"""

import argparse
import json
import multiprocessing
import os
import platform
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROW_MINUTES = 6.0
"""Of one row at most: more than any should need, less than a kernel that hangs."""
EXIT_S = 60.0
"""For a row that has told its figures to end by itself."""


@dataclass(frozen=True)
class Row:
    """One line of a table."""

    table: str
    measure: str
    """A function of gpu_rows."""
    settings: Mapping[str, Any]


STEPS, PRETRAINING = "PN-32 step beside SLM step", "Pretraining the plain model, 126M"
ROWS = {
    "step-16k": Row(STEPS, "steps", {"rows_per_step": 16, "is_compiled": False}),
    "step-64k": Row(STEPS, "steps", {"rows_per_step": 64, "is_compiled": False}),
    "step-128k": Row(STEPS, "steps", {"rows_per_step": 128, "is_compiled": False}),
    "finetuning": Row("Fine-tuning on a million tokens, 126M", "finetuning", {}),
    "trainer": Row(PRETRAINING, "pretraining", {"peer": "trainer"}),
    "litgpt": Row(PRETRAINING, "pretraining", {"peer": "litgpt"}),
    "chunks": Row("Logits in memory at a time, plain model", "chunks", {}),
    "embedding": Row("Embedding and assigning windows", "embedding", {}),
    "materializing": Row("One expert of a PN-32 bundle onto the device", "materializing", {}),
    "step-16k-compiled": Row(STEPS, "steps", {"rows_per_step": 16, "is_compiled": True}),
    "step-64k-compiled": Row(STEPS, "steps", {"rows_per_step": 64, "is_compiled": True}),
    "step-128k-compiled": Row(STEPS, "steps", {"rows_per_step": 128, "is_compiled": True}),
}
"""In the order in which they run: what compiles comes last, since it takes minutes."""


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run one row in a child; return its figures, or why there are none."""
    context = multiprocessing.get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(name, options, sender))
    child.start()
    sender.close()
    found: dict[str, Any] = {"failed": f"took more than {ROW_MINUTES:g} minutes"}
    if receiver.poll(60 * ROW_MINUTES):
        try:
            found = receiver.recv()
            child.join(EXIT_S)
        except EOFError:
            child.join()
            found = {"failed": f"its process ended with {child.exitcode}"}
    child.kill()
    child.join()
    return found


def _child(name: str, options: argparse.Namespace, sender: Any) -> None:
    import gpu_rows
    import torch
    from side_by_side import NotInstalled

    from shared.errors import PlanearlyError

    os.dup2(2, 1)  # what a library prints is no part of the tables
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(options.threads)
    try:
        figures = getattr(gpu_rows, ROWS[name].measure)(options, **ROWS[name].settings)
        sender.send({"figures": figures, "machine": _machine(options.device), "date": str(date.today())})
    except NotInstalled as problem:
        sender.send({"left out": str(problem)})
    except PlanearlyError as problem:
        sender.send({"failed": str(problem)})
    except torch.OutOfMemoryError:
        sender.send({"failed": "out of memory"})


def _end_with_parent() -> None:
    """End at once when the command is killed: the next one wants the device for itself."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _machine(device: str) -> str:
    import torch
    import transformers

    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else platform.processor() or device
    return f"{name}, torch {torch.__version__}, transformers {transformers.__version__}"


def finished(out: Path, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return what a file holds of these rows at this size and on this kind of device."""
    lines = out.read_text().split("\n")[:-1] if out.exists() else []  # a killed run's last may be cut
    records = [json.loads(line) for line in lines if line]
    wanted = [options.toy, options.device]
    return {record["row"]: record for record in records if [record["toy"], record["device"]] == wanted}


def tables(found: Mapping[str, Mapping[str, Any]]) -> Iterable[str]:
    """Yield the lines of each table, and below it the rows without figures."""
    for title in dict.fromkeys(row.table for row in ROWS.values()):
        rows = {name: found[name] for name, row in ROWS.items() if row.table == title}
        measured = [row["figures"] for row in rows.values() if "figures" in row]
        yield f"## {title}\n"
        if measured:
            columns = list(dict.fromkeys(column for figures in measured for column in figures))
            yield _line(columns)
            yield _line(["---"] * len(columns))
            for figures in measured:
                yield _line([_text(figures.get(column)) for column in columns])
            yield ""
        for name, row in rows.items():
            for reason in ("left out", "failed", "not run"):
                if reason in row:
                    yield f"- {name} {reason}: {row[reason]}"
        yield ""
    machines = dict.fromkeys(f"{row['machine']}, {row['date']}" for row in found.values() if "machine" in row)
    yield from machines


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _text(figure: Any) -> str:
    if isinstance(figure, float):
        return f"{figure:,.0f}" if abs(figure) >= 1000 else f"{figure:.3g}"
    return "" if figure is None else f"{figure:,}" if isinstance(figure, int) else str(figure)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="finished rows, a line of JSON each")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1 or cpu (cuda)")
    parser.add_argument("--toy", action="store_true", help="smallest sizes: does it run?")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="compute threads (all cores)")
    parser.add_argument("--budget-minutes", type=float, default=25.0, help="no row starts after (25)")
    options = parser.parse_args()
    # The process that rows are forked from finds its modules by the environment alone.
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH")])
    )
    multiprocessing.set_forkserver_preload(["gpu_rows"])
    start = time.monotonic()
    found = finished(options.out, options)
    for name in ROWS:
        if name in found:
            continue
        minutes = (time.monotonic() - start) / 60
        if minutes >= options.budget_minutes:
            found[name] = {"not run": f"the budget of {options.budget_minutes:g} minutes was spent"}
            continue
        print(f"{name} ...", file=sys.stderr, flush=True)
        found[name] = measure(name, options)
        if "figures" in found[name]:
            record = {"row": name, "toy": options.toy, "device": options.device} | found[name]
            with options.out.open("a") as file:
                file.write(json.dumps(record) + "\n")
    print("\n".join(tables(found)))
    sys.exit(any("failed" in row for row in found.values()))


if __name__ == "__main__":
    main()
