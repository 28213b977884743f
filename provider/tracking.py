"""How a training went, as a file: a JSON line per optimizer step, each step once, killed on the way or not.

`metrics.jsonl` lies beside the checkpoints. TensorBoard is a view of such files (provider/events.py);
nothing is sent anywhere. A line is in the kernel's hands once written, so a killed process
loses none; a power cut may lose the last ones, and leaves a gap if a checkpoint is newer.
"""

import json
from pathlib import Path

from shared.training import StepEntry

METRICS_FILE = "metrics.jsonl"


class StepFile:
    """Appends steps to a file; the first one cuts off what an earlier process wrote from there on."""

    def __init__(self, path: Path) -> None:
        self.path, self._is_cut = path, False

    def __call__(self, entry: StepEntry) -> None:
        """Write one step. Raises OSError."""
        if not self._is_cut:
            cut_steps(self.path, entry["step"])
            self._is_cut = True
        with self.path.open("ab") as out:
            out.write(json.dumps(entry).encode() + b"\n")


def cut_steps(path: Path, step: int) -> None:
    """Shorten a file to the whole lines of steps before this one; no file is fine."""
    if not path.exists():
        return
    kept = 0
    with path.open("rb+") as file:
        for line in file:
            if (found := read_step(line)) is None or found["step"] >= step:
                break
            kept += len(line)
        file.truncate(kept)


def read_step(line: bytes) -> StepEntry | None:
    """Return the step of a whole line; None of one that was cut or damaged."""
    try:
        return json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
