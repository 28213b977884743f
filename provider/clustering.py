"""Window embeddings and k-means (paper §3.2), and windows sorted by cluster on disk.

scikit-learn fits; `shared.clusters` assigns, with the very function the owner uses.
"""

from pathlib import Path

import numpy as np
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits
from tokenizers import Tokenizer

from shared.embedding import WIDTH, Embedder, embed_texts
from shared.files import remove, write_atomic
from shared.tokenizer import decode_window
from shared.training import Say

GROUP_WINDOWS = 2048
"""Windows embedded per file on disk: what a kill can cost."""


def embed_part(
    corpus: Path,
    folder: Path,
    number: int,
    tokenizer: Tokenizer,
    embedder: Embedder,
    name: str,
    say: Say,
) -> None:
    """Embed one corpus part's windows into `embeddings-N.npy`, (w, 384) float32; resumes per group."""
    final = folder / f"embeddings-{number:05}.npy"
    if final.exists():
        return
    tokens = np.load(corpus / f"tokens-{number:05}.npy", mmap_mode="r")
    with np.load(corpus / f"windows-{number:05}.npz") as windows:
        starts, lengths = windows["starts"], windows["lengths"]
    groups = []
    for start in range(0, len(starts), GROUP_WINDOWS):
        group = folder / f"group-{number:05}-{start:09}.npy"
        if not group.exists():
            chosen = range(start, min(start + GROUP_WINDOWS, len(starts)))
            texts = [decode_window(tokenizer, tokens[starts[i] : starts[i] + lengths[i]]) for i in chosen]
            with write_atomic(group) as out:
                np.save(out, embed_texts(embedder, texts))
        groups.append(group)
        say(f"{name} · {min(start + GROUP_WINDOWS, len(starts)):,} of {len(starts):,} windows")
    with write_atomic(final) as out:
        parts = [np.load(group) for group in groups]
        np.save(out, np.concatenate(parts) if parts else np.zeros((0, WIDTH), np.float32))
    for group in groups:
        remove(group)


def sample_windows(parts: list[tuple[np.ndarray, np.ndarray]], fit_windows: int, seed: int) -> np.ndarray:
    """Draw up to fit_windows training windows' embeddings, (n, 384) float32, in corpus order.

    `parts` are pairs of embeddings (w, 384), possibly mmapped, and is_heldout (w,) bool.
    """
    rows = [np.flatnonzero(~is_heldout) for _, is_heldout in parts]
    total = sum(len(part) for part in rows)
    chosen = np.arange(total)
    if total > fit_windows:
        chosen = np.sort(np.random.default_rng(seed).choice(total, fit_windows, replace=False))
    bounds = np.cumsum([0, *(len(part) for part in rows)])
    drawn = []
    for (embeddings, _), part, low, high in zip(parts, rows, bounds, bounds[1:], strict=False):
        inside = chosen[(chosen >= low) & (chosen < high)] - low
        drawn.append(np.asarray(embeddings[part[inside]]))
    return np.concatenate(drawn) if drawn else np.zeros((0, WIDTH), np.float32)


def fit_centroids(embeddings_NW: np.ndarray, n_clusters: int, n_init: int, seed: int) -> np.ndarray:
    """Fit k-means; return centroids (n_clusters, 384) float32.

    One thread, because scikit-learn's sums depend on the number of threads in the last bits, and a
    centroid that moved would move windows. Source: scikit-learn `KMeans` (Lloyd, k-means++).
    """
    with threadpool_limits(1):
        fitted = KMeans(n_clusters, n_init=n_init, random_state=seed).fit(embeddings_NW)
    return fitted.cluster_centers_.astype(np.float32)


def write_sorted(
    corpus: Path, folder: Path, split: str, assigned: list[np.ndarray], n_clusters: int
) -> dict[str, int]:
    """Write one split's windows sorted by cluster; return its counts.

    `<split>-CCCCC.npy` holds a cluster's tokens, one window after the other in corpus order (mmap-able);
    `<split>-index.npz` holds starts (w,) int64 within the cluster's file, lengths (w,) int32 and
    clusters (w,) int32, in cluster order.
    """
    parts = []
    for number, clusters in enumerate(assigned):
        tokens = np.load(corpus / f"tokens-{number:05}.npy", mmap_mode="r")
        with np.load(corpus / f"windows-{number:05}.npz") as windows:
            keep = windows["is_heldout"] == (split == "heldout")
            parts.append((tokens, windows["starts"][keep], windows["lengths"][keep], clusters[keep]))
    starts, lengths, owners = [], [], []
    for cluster in range(n_clusters):
        pieces = []
        position = 0
        for tokens, part_starts, part_lengths, clusters in parts:
            for i in np.flatnonzero(clusters == cluster):
                pieces.append(np.asarray(tokens[part_starts[i] : part_starts[i] + part_lengths[i]]))
                starts.append(position)
                lengths.append(int(part_lengths[i]))
                owners.append(cluster)
                position += int(part_lengths[i])
        stream = np.concatenate(pieces) if pieces else np.zeros(0, parts[0][0].dtype)
        with write_atomic(folder / f"{split}-{cluster:05}.npy") as out:
            np.save(out, stream)
    with write_atomic(folder / f"{split}-index.npz") as out:
        np.savez(
            out,
            starts=np.asarray(starts, np.int64),
            lengths=np.asarray(lengths, np.int32),
            clusters=np.asarray(owners, np.int32),
        )
    return {"windows": len(lengths), "tokens": int(sum(lengths))}
