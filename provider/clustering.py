"""Window embeddings and k-means (paper §3.2), and windows sorted by cluster on disk.

scikit-learn fits on a sample; `shared.clusters` assigns, with the very function the owner uses. Sorting is a
map, which orders each corpus part's windows by cluster, and a gathering, which writes one cluster's windows
from all parts; neither holds more than one part or one window in memory.
"""

from pathlib import Path

import numpy as np
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits
from tokenizers import Tokenizer

from shared.clusters import assign_clusters
from shared.embedder import WIDTH
from shared.embedding import Embedder, embed_texts
from shared.files import remove, write_atomic
from shared.tokenizer import decode_window
from shared.training import Say

SPLITS = ("train", "heldout")
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
    parts = [np.zeros((0, WIDTH), np.float32)]
    for start in range(0, len(starts), GROUP_WINDOWS):
        group = folder / f"group-{number:05}-{start:09}.npy"
        groups.append(group)
        try:
            parts.append(np.load(group))
        except FileNotFoundError:
            chosen = range(start, min(start + GROUP_WINDOWS, len(starts)))
            texts = [decode_window(tokenizer, tokens[starts[i] : starts[i] + lengths[i]]) for i in chosen]
            parts.append(embed_texts(embedder, texts))
            with write_atomic(group) as out:
                np.save(out, parts[-1])
        say(f"{name} · {min(start + GROUP_WINDOWS, len(starts)):,} of {len(starts):,} windows")
    with write_atomic(final) as out:
        np.save(out, np.concatenate(parts))
    for group in groups:
        remove(group)


def sample_windows(parts: list[tuple[np.ndarray, np.ndarray]], fit_windows: int, seed: int) -> np.ndarray:
    """Draw up to fit_windows training windows' embeddings, (n, 384) float32, in corpus order.

    `parts` are pairs of embeddings (w, 384), possibly mmapped, and is_heldout (w,) bool.
    """
    bounds = np.cumsum([0, *(np.count_nonzero(~is_heldout) for _, is_heldout in parts)])
    chosen: np.ndarray | None = None
    if bounds[-1] > fit_windows:
        generator = np.random.default_rng(seed)
        chosen = np.sort(generator.choice(bounds[-1], fit_windows, replace=False))
    drawn = []
    for (embeddings, is_heldout), low, high in zip(parts, bounds, bounds[1:], strict=False):
        rows = np.flatnonzero(~is_heldout)
        if chosen is not None:
            rows = rows[chosen[(chosen >= low) & (chosen < high)] - low]
        drawn.append(np.asarray(embeddings[rows]))
    return np.concatenate(drawn) if drawn else np.zeros((0, WIDTH), np.float32)


def fit_centroids(embeddings_NW: np.ndarray, n_clusters: int, n_init: int, seed: int) -> np.ndarray:
    """Fit k-means; return centroids (n_clusters, 384) float32.

    One thread, because scikit-learn's sums depend on the number of threads in the last bits, and a
    centroid that moved would move windows. Source: scikit-learn `KMeans` (Lloyd, k-means++).
    """
    with threadpool_limits(1):
        fitted = KMeans(n_clusters, n_init=n_init, random_state=seed).fit(embeddings_NW)
    return fitted.cluster_centers_.astype(np.float32)


def order_part(corpus: Path, embeddings: Path, folder: Path, number: int, centroids_KW: np.ndarray) -> None:
    """Assign one corpus part's windows to their nearest centroids, and write them in the clusters' order.

    `starts-N.npy` (w,) int64 and `lengths-N.npy` (w,) int32 are the part's windows by split, training first,
    then by cluster, then in corpus order. `bounds-N.npy` (2, k + 1) int64, written last: those of split s and
    cluster c are at bounds[s, c] : bounds[s, c + 1].
    """
    n_clusters = len(centroids_KW)
    embeddings_NW, is_heldout, starts, lengths = load_embedded(corpus, embeddings, number)
    with threadpool_limits(1):  # as fit_centroids: a near tie must not depend on the machine's cores
        bins = assign_clusters(embeddings_NW, centroids_KW) + n_clusters * is_heldout
    order = np.argsort(bins, kind="stable")
    ends = np.concatenate([[0], np.cumsum(np.bincount(bins, minlength=2 * n_clusters))])
    bounds = np.stack([ends[: n_clusters + 1], ends[n_clusters:]])
    for name, content in (("starts", starts[order]), ("lengths", lengths[order]), ("bounds", bounds)):
        with write_atomic(folder / f"{name}-{number:05}.npy") as out:
            np.save(out, content)


def load_embedded(
    corpus: Path, embeddings: Path, number: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return a part's embeddings (w, 384) float32, mmapped, and its windows' is_heldout, starts, lengths."""
    with np.load(corpus / f"windows-{number:05}.npz") as windows:
        return (
            np.load(embeddings / f"embeddings-{number:05}.npy", mmap_mode="r"),
            windows["is_heldout"],
            windows["starts"],
            windows["lengths"],
        )


def write_shard(corpus: Path, clusters: Path, folder: Path, n_parts: int, split: str, cluster: int) -> None:
    """Write one cluster's windows of one split, gathered from all parts in corpus order.

    `<split>-CCCCC.npy` holds their tokens, one window after the other (mmap-able), and
    `<split>-CCCCC-lengths.npy`, written last, their lengths (w,) int32.
    """
    lengths_file = folder / f"{split}-{cluster:05}-lengths.npy"
    if lengths_file.exists():
        return
    parts = []
    for number in range(n_parts):
        low, high = np.load(clusters / f"bounds-{number:05}.npy")[SPLITS.index(split), cluster : cluster + 2]
        starts, lengths = (
            np.array(np.load(clusters / f"{name}-{number:05}.npy", mmap_mode="r")[low:high])
            for name in ("starts", "lengths")
        )
        parts.append((np.load(corpus / f"tokens-{number:05}.npy", mmap_mode="r"), starts, lengths))
    header = {
        "descr": np.lib.format.dtype_to_descr(parts[0][0].dtype),
        "fortran_order": False,
        "shape": (int(sum(lengths.sum() for _, _, lengths in parts)),),
    }
    with write_atomic(folder / f"{split}-{cluster:05}.npy") as out:
        np.lib.format.write_array_header_1_0(out, header)
        for tokens, starts, lengths in parts:
            for start, length in zip(starts, lengths, strict=True):
                out.write(tokens[start : start + length].tobytes())
    with write_atomic(lengths_file) as out:
        np.save(out, np.concatenate([lengths for _, _, lengths in parts]))


def count_shards(folder: Path, split: str, n_clusters: int) -> dict[str, int]:
    """Return how many windows and tokens a split's shards hold."""
    lengths = [np.load(folder / f"{split}-{cluster:05}-lengths.npy") for cluster in range(n_clusters)]
    return {"windows": sum(map(len, lengths)), "tokens": sum(int(part.sum()) for part in lengths)}
