"""Windows to packed rows to the microbatches of one optimizer step.

Windows are packed whole into rows of context_tokens tokens, each row from one cluster, so that little
is padding and no window is cropped. The sampler is a pure function of (seed, step): resuming needs no
state but the step. Attention never crosses from one window of a row to the next: positions start again
at 0 in each, from which transformers builds a block-diagonal mask.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from shared.slm import BOS_ID

IGNORED = -100
"""Label of a padding token: torch's cross entropy leaves it out."""
OPEN_ROWS = 32
"""Rows that packing keeps open at a time; more would save little padding and cost time."""


@dataclass(frozen=True)
class Windows:
    """Token windows, possibly mmapped: `streams[stream[i]][start[i] : start[i] + length[i]]`.

    `streams` are (n,) integer arrays; `stream`, `length`, `cluster` (w,) int32; `start` (w,) int64.
    """

    streams: Sequence[np.ndarray]
    stream: np.ndarray
    start: np.ndarray
    length: np.ndarray
    cluster: np.ndarray

    def __len__(self) -> int:
        return len(self.length)

    @property
    def n_tokens(self) -> int:
        """Tokens in all windows, end-of-text tokens included."""
        return int(self.length.sum())

    def tokens(self, window: int) -> np.ndarray:
        """Return one window's token ids: (n,)."""
        start = self.start[window]
        return self.streams[self.stream[window]][start : start + self.length[window]]

    def take(self, chosen: np.ndarray) -> "Windows":
        """Return the chosen windows (a mask or indices) over the same streams."""
        return Windows(
            self.streams,
            self.stream[chosen],
            self.start[chosen],
            self.length[chosen],
            self.cluster[chosen],
        )


@dataclass(frozen=True)
class Rows:
    """Packed rows: row r holds `windows[bounds[r] : bounds[r + 1]]`, all of `cluster[r]`."""

    windows: np.ndarray
    bounds: np.ndarray
    cluster: np.ndarray

    def __len__(self) -> int:
        return len(self.cluster)


@dataclass(frozen=True)
class Microbatch:
    """Rows of one cluster, ready for the model; all (B, S) int64, S the longest row's tokens."""

    cluster: int
    input_ids: torch.Tensor
    position_ids: torch.Tensor
    labels: torch.Tensor
    n_tokens: int
    """Tokens predicted: every token of every window, once."""


def pack_rows(windows: Windows, context_tokens: int) -> Rows:
    """Pack windows into rows of at most context_tokens tokens: first fit over a few open rows.

    Deterministic; longest windows first, in corpus order among equals. Cost: O(windows * OPEN_ROWS).
    """
    rows: list[list[int]] = []
    owners: list[int] = []
    order = np.lexsort((np.arange(len(windows)), -windows.length, windows.cluster))
    open_rows: list[tuple[int, int]] = []
    current = -1
    for window in order.tolist():
        cluster, length = int(windows.cluster[window]), int(windows.length[window])
        if cluster != current:
            open_rows, current = [], cluster
        for place, (row, room) in enumerate(open_rows):
            if length <= room:
                rows[row].append(window)
                open_rows[place] = (row, room - length)
                break
        else:
            rows.append([window])
            owners.append(cluster)
            if length < context_tokens:
                open_rows.append((len(rows) - 1, context_tokens - length))
                open_rows = open_rows[-OPEN_ROWS:]
    lengths = np.asarray([len(row) for row in rows], np.int64)
    return Rows(
        windows=np.asarray([window for row in rows for window in row], np.int64),
        bounds=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        cluster=np.asarray(owners, np.int32),
    )


def collate(windows: Windows, rows: Rows, chosen: Sequence[int]) -> Microbatch:
    """Build the tensors of some rows of one cluster.

    A window w_1..w_n becomes inputs <s>, w_1..w_(n-1) and labels w_1..w_n, so that each of its tokens is
    predicted once. Padding repeats the rule of a window of its own, with labels ignored.
    """
    members = [rows.windows[rows.bounds[row] : rows.bounds[row + 1]] for row in chosen]
    longest = max(int(windows.length[row].sum()) for row in members)
    inputs = np.full((len(members), longest), BOS_ID, np.int64)
    positions = np.zeros((len(members), longest), np.int64)
    labels = np.full((len(members), longest), IGNORED, np.int64)
    n_tokens = 0
    for index, row in enumerate(members):
        place = 0
        for window in row:
            ids = windows.tokens(window)
            end = place + len(ids)
            inputs[index, place + 1 : end] = ids[:-1]
            positions[index, place:end] = np.arange(len(ids))
            labels[index, place:end] = ids
            place = end
        n_tokens += place
        positions[index, place:] = np.arange(longest - place)
    return Microbatch(
        cluster=int(rows.cluster[chosen[0]]),
        input_ids=torch.from_numpy(inputs),
        position_ids=torch.from_numpy(positions),
        labels=torch.from_numpy(labels),
        n_tokens=n_tokens,
    )


class Sampler:
    """The microbatches of each optimizer step, a pure function of (seed, step).

    An epoch shuffles the rows of each cluster, groups them into single-cluster blocks of
    rows_per_microbatch and shuffles the blocks; steps take consecutive blocks of the endless sequence of
    epochs. Clusters are thus drawn in proportion to their size, and every window once per epoch.
    """

    def __init__(
        self,
        windows: Windows,
        context_tokens: int,
        rows_per_step: int,
        rows_per_microbatch: int,
        seed: int,
    ) -> None:
        """Pack the windows; costs O(windows)."""
        self.windows = windows
        self.rows = pack_rows(windows, context_tokens)
        self.rows_per_microbatch = rows_per_microbatch
        self.blocks_per_step = rows_per_step // rows_per_microbatch
        self.seed = seed
        self._epoch = lru_cache(maxsize=2)(self._shuffle_epoch)

    def _shuffle_epoch(self, epoch: int) -> list[np.ndarray]:
        generator = np.random.default_rng([self.seed, epoch])
        blocks: list[np.ndarray] = []
        for cluster in np.unique(self.rows.cluster):
            rows = generator.permutation(np.flatnonzero(self.rows.cluster == cluster))
            blocks += [
                rows[start : start + self.rows_per_microbatch]
                for start in range(0, len(rows), self.rows_per_microbatch)
            ]
        return [blocks[i] for i in generator.permutation(len(blocks))]

    def step(self, step: int) -> list[Microbatch]:
        """Return the microbatches of optimizer step `step`, counted from 0."""
        n_blocks = len(self._epoch(0))
        chosen = range(step * self.blocks_per_step, (step + 1) * self.blocks_per_step)
        return [
            collate(self.windows, self.rows, self._epoch(i // n_blocks)[i % n_blocks].tolist())
            for i in chosen
        ]


def all_microbatches(windows: Windows, context_tokens: int, rows_per_microbatch: int) -> Iterator[Microbatch]:
    """Yield every window once, packed, in cluster order: for held-out losses."""
    rows = pack_rows(windows, context_tokens)
    for cluster in np.unique(rows.cluster):
        chosen = np.flatnonzero(rows.cluster == cluster)
        for start in range(0, len(chosen), rows_per_microbatch):
            yield collate(windows, rows, chosen[start : start + rows_per_microbatch].tolist())
