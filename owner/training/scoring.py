"""Held-out losses document by document, from which the report draws its intervals."""

import numpy as np
import torch
from torch import nn

from owner.documents.windows import Split
from shared.batches import IGNORED, collate, pack_rows
from shared.losses import logits_of
from shared.progress import beat


@torch.no_grad()
def heldout_nats(model: nn.Module, split: Split, context_tokens: int, rows_per_microbatch: int) -> np.ndarray:
    """Return the nats of each unit of the held-out split, (u,) float64, in the order of `heldout_tokens`.

    The rows are packed as `shared.losses.evaluate`'s are, and sum to its loss. Cost: one held-out pass.
    """
    windows, of_window = split.heldout, np.zeros(len(split.heldout))
    rows = pack_rows(windows, context_tokens)
    model.eval()
    for start in range(0, len(rows), rows_per_microbatch):
        chosen = range(start, min(len(rows), start + rows_per_microbatch))
        batch = collate(windows, rows, chosen)
        logits, labels = logits_of(model, {}, batch), batch.labels
        nats = nn.functional.cross_entropy(
            logits, labels.to(logits.device).flatten(), ignore_index=IGNORED, reduction="none"
        )
        nats_BS = nats.view(labels.shape).cpu().double().numpy()
        for place, row in enumerate(chosen):
            members = rows.windows[rows.bounds[row] : rows.bounds[row + 1]]
            firsts = np.cumsum(windows.length[members]) - windows.length[members]
            n_tokens = int(windows.length[members].sum())
            of_window[members] = np.add.reduceat(nats_BS[place, :n_tokens], firsts)
        beat()
    model.train()
    return _by_unit(of_window, split)


def heldout_tokens(split: Split) -> np.ndarray:
    """Return the tokens of each held-out document, or of each window where the split is by windows: (u,)."""
    return _by_unit(split.heldout.length.astype(np.float64), split)


def _by_unit(of_window: np.ndarray, split: Split) -> np.ndarray:
    if split.by == "windows":
        return of_window
    _, unit = np.unique(split.heldout_document, return_inverse=True)
    return np.bincount(unit, weights=of_window)
