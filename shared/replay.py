"""A replay pack: a signed sample of the generic corpus, the same for every owner (ours; README says why).

It is a bundle of kind `replay` (docs/bundle-format.md): no weights, but windows as tokens, each with its
cluster, beside the centroids and the histogram of the whole corpus. An owner resamples it by the
histogram of private documents, on the owner's machine.
"""

import numpy as np
import torch

from shared.batches import Windows
from shared.bundle import Bundle
from shared.contents import REPLAY_CLUSTERS, REPLAY_LENGTHS, REPLAY_TOKENS
from shared.errors import BundleError


def sample_replay(windows: Windows, windows_per_cluster: int, seed: int) -> Windows:
    """Draw windows_per_cluster windows of each cluster, or all of a smaller one, in corpus order."""
    generator = np.random.default_rng(seed)
    chosen = []
    for cluster in np.unique(windows.cluster):
        of_cluster = np.flatnonzero(windows.cluster == cluster)
        n_drawn = min(windows_per_cluster, len(of_cluster))
        chosen.append(np.sort(generator.choice(of_cluster, n_drawn, replace=False)))
    return windows.take(np.concatenate(chosen))


def replay_tensors(windows: Windows) -> dict[str, torch.Tensor]:
    """Return the tensors of a pack that holds these windows."""
    tokens = np.concatenate([windows.tokens(window) for window in range(len(windows))])
    return {
        REPLAY_TOKENS: torch.from_numpy(tokens.astype(np.uint16)),
        REPLAY_LENGTHS: torch.from_numpy(windows.length.astype(np.int64)),
        REPLAY_CLUSTERS: torch.from_numpy(windows.cluster.astype(np.int64)),
    }


def check_is_pack(bundle: Bundle) -> None:
    """Refuse a bundle that holds models and no windows. Raises BundleError."""
    if bundle.manifest.kind != "replay":
        raise BundleError(
            f"{bundle.path}: kind is {bundle.manifest.kind}, expected replay",
            hint="--bundle takes models, --replay takes a replay pack",
        )


def replay_windows(pack: Bundle) -> Windows:
    """Read a pack's windows, verified. Raises BundleError when it is no pack, or is damaged."""
    check_is_pack(pack)
    lengths = pack.array(REPLAY_LENGTHS)
    return Windows(
        streams=[pack.array(REPLAY_TOKENS)],
        stream=np.zeros(len(lengths), np.int32),
        start=np.cumsum(lengths) - lengths,
        length=lengths.astype(np.int32),
        cluster=pack.array(REPLAY_CLUSTERS).astype(np.int32),
    )
