"""The steps of every training in a work folder as TensorBoard events, while they go on (extra `tensorboard`).

It follows the files of provider/tracking.py, so it also shows what other processes and machines train in that
folder, and what was trained before. TensorBoard itself is a program that the user starts.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from provider.tracking import METRICS_FILE, read_step

FOLLOW_EVERY_S = 5.0
TAGS = {
    "train_loss": "loss/train",
    "heldout_loss": "loss/heldout",
    "learning_rate": "optimizer/learning rate",
    "gradient_norm": "optimizer/gradient norm",
    "tokens_per_s": "speed/tokens per s",
}


class Followed:
    """One file of steps, and the events written from it so far."""

    def __init__(self, path: Path, folder: Path) -> None:
        self.path, self.folder = path, folder
        self._begin()

    def _begin(self) -> None:
        # Events of an earlier process in the same folder are hidden from this step on.
        self.writer, self.offset, self.last = SummaryWriter(str(self.folder), purge_step=0), 0, b""

    def catch_up(self) -> None:
        """Write what the file has more; all of it again if it was cut since, as a resumed training does."""
        with self.path.open("rb") as file:
            file.seek(self.offset - len(self.last))
            if file.read(len(self.last)) != self.last:
                self.close()
                self._begin()
                file.seek(0)
            for line in file:
                entry = read_step(line)
                if entry is None:
                    break
                for name, tag in TAGS.items():
                    value = entry.get(name)
                    if isinstance(value, float):
                        self.writer.add_scalar(tag, value, entry["step"])
                self.offset, self.last = self.offset + len(line), line
        self.writer.flush()

    def close(self) -> None:
        """Finish the events file."""
        self.writer.close()


def follow_steps(work: Path, folder: Path, followed: dict[Path, Followed]) -> None:
    """Bring the events of every training below `work` up to date; `followed` keeps the open ones."""
    for path in sorted(work.glob(f"*/**/{METRICS_FILE}")):
        if path not in followed:
            followed[path] = Followed(path, folder / path.parent.relative_to(work))
        followed[path].catch_up()


@contextmanager
def events_written(work: Path, folder: Path) -> Iterator[None]:
    """Follow the trainings below `work` into events below `folder` until the end of the block."""
    followed: dict[Path, Followed] = {}
    is_over = threading.Event()

    def follow() -> None:
        while not is_over.wait(FOLLOW_EVERY_S):
            follow_steps(work, folder, followed)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()
        follow_steps(work, folder, followed)
        for one in followed.values():
            one.close()
