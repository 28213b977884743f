"""Window embeddings and k-means (paper §3.2), and windows sorted by cluster on disk.

k-means is fitted on a sample; `shared.clusters` assigns, with the very function the owner uses. Embeddings
are kept, or computed twice: of the sample, then of each part while it is assigned. Sorting is a map, which
orders each corpus part's windows by cluster, and a gathering, which writes one cluster's windows from all
parts; neither holds more than one part or one window in memory.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits
from tokenizers import Tokenizer

from shared.clusters import assign_clusters
from shared.embedder import WIDTH
from shared.embedding import Embedder, embed_texts
from shared.errors import PlanearlyError
from shared.extras import install_hint
from shared.files import remove, write_atomic
from shared.progress import Say
from shared.tokenizer import decode_window

SPLITS = ("train", "heldout")
FAISS_ITERATIONS = 25
"""Its own default."""
GROUP_WINDOWS = 2048
"""Windows embedded per file on disk: what a kill can cost."""


class PartEmbedder:
    """Embeds windows of corpus parts, resuming per group."""

    def __init__(self, corpus: Path, tokenizer: Tokenizer, embedder: Embedder, say: Say) -> None:
        self.corpus, self.tokenizer, self.embedder, self.say = corpus, tokenizer, embedder, say

    def embed(
        self,
        folder: Path,
        number: int,
        chosen: np.ndarray | None = None,
        keep: Callable[[np.ndarray], np.ndarray] = lambda vectors_NW: vectors_NW,
    ) -> np.ndarray:
        """Return what `keep` makes of the embeddings (n, 384) float32 of a part's windows, all or some.

        Each group's result is a file in `folder`, until `forget`; those that are there are not made again.
        """
        tokens = np.load(self.corpus / f"tokens-{number:05}.npy", mmap_mode="r")
        _, starts, lengths = load_part(self.corpus, number)
        if chosen is None:
            chosen = np.arange(len(starts))
        parts = [keep(np.zeros((0, WIDTH), np.float32))]
        for first in range(0, len(chosen), GROUP_WINDOWS):
            group = folder / f"group-{number:05}-{first:09}.npy"
            try:
                parts.append(np.load(group))
            except FileNotFoundError:
                texts = [
                    decode_window(self.tokenizer, tokens[starts[i] : starts[i] + lengths[i]])
                    for i in chosen[first : first + GROUP_WINDOWS]
                ]
                parts.append(keep(embed_texts(self.embedder, texts)))
                with write_atomic(group) as out:
                    np.save(out, parts[-1])
            done = min(first + GROUP_WINDOWS, len(chosen))
            self.say(f"embeddings   part {number + 1} · {done:,} of {len(chosen):,} windows")
        return np.concatenate(parts)

    def write(self, folder: Path, number: int, chosen: np.ndarray | None = None) -> None:
        """Embed a part's windows, all or some, into `embeddings-N.npy`."""
        final = embeddings_file(folder, number)
        if not final.exists():
            embeddings_NW = self.embed(folder, number, chosen)
            with write_atomic(final) as out:
                np.save(out, embeddings_NW)
            forget_groups(folder, number)


def forget_groups(folder: Path, number: int) -> None:
    """Remove the groups of a part that is finished."""
    for group in folder.glob(f"group-{number:05}-*.npy"):
        remove(group)


def embeddings_file(folder: Path, number: int) -> Path:
    """Return where a part's embeddings lie."""
    return folder / f"embeddings-{number:05}.npy"


def load_part(corpus: Path, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a part's windows: is_heldout (w,) bool, starts (w,) int64, lengths (w,) int32."""
    with np.load(corpus / f"windows-{number:05}.npz") as windows:
        return windows["is_heldout"], windows["starts"], windows["lengths"]


def sample_windows(is_heldout: list[np.ndarray], fit_windows: int, seed: int) -> list[np.ndarray]:
    """Draw up to fit_windows training windows: of each part the chosen ones, in corpus order.

    `is_heldout` are the parts' (w,) bool.
    """
    bounds = np.cumsum([0, *(np.count_nonzero(~part) for part in is_heldout)])
    chosen: np.ndarray | None = None
    if bounds[-1] > fit_windows:
        generator = np.random.default_rng(seed)
        chosen = np.sort(generator.choice(bounds[-1], fit_windows, replace=False))
    drawn = []
    for part, low, high in zip(is_heldout, bounds, bounds[1:], strict=False):
        rows = np.flatnonzero(~part)
        drawn.append(rows if chosen is None else rows[chosen[(chosen >= low) & (chosen < high)] - low])
    return drawn


def fit_centroids(
    embeddings_NW: np.ndarray, n_clusters: int, n_init: int, seed: int, engine: str = "scikit-learn"
) -> np.ndarray:
    """Fit k-means; return centroids (n_clusters, 384) float32.

    One thread, because sums depend on the number of threads in the last bits, and a centroid that moved
    would move windows. Sources: scikit-learn `KMeans` (Lloyd until it settles, from k-means++); faiss
    `Kmeans` (FAISS_ITERATIONS of Lloyd, from random vectors). Raises PlanearlyError without faiss.
    """
    if engine == "faiss":
        return _fit_with_faiss(embeddings_NW, n_clusters, n_init, seed)
    with threadpool_limits(1):
        fitted = KMeans(n_clusters, n_init=n_init, random_state=seed).fit(embeddings_NW)
    return fitted.cluster_centers_.astype(np.float32)


def check_engine(engine: str) -> None:
    """Find out before hours of work that faiss is not installed. Raises PlanearlyError."""
    if engine == "faiss":
        _faiss()


def _faiss() -> Any:
    try:
        import faiss
    except ImportError:
        raise PlanearlyError(
            "clustering.engine faiss is not installed",
            hint=f'{install_hint("faiss")}, or clustering.engine = "scikit-learn"',
        ) from None
    return faiss


def _fit_with_faiss(embeddings_NW: np.ndarray, n_clusters: int, n_init: int, seed: int) -> np.ndarray:
    faiss = _faiss()
    kmeans = faiss.Kmeans(
        WIDTH,
        n_clusters,
        niter=FAISS_ITERATIONS,
        nredo=n_init,
        seed=seed % 2**31,
        min_points_per_centroid=1,
        max_points_per_centroid=len(embeddings_NW),
    )
    embeddings_NW = np.ascontiguousarray(embeddings_NW)
    with threadpool_limits(1):
        kmeans.train(embeddings_NW)
        return _fill_empty(embeddings_NW, kmeans.centroids)


def _fill_empty(embeddings_NW: np.ndarray, centroids_KW: np.ndarray) -> np.ndarray:
    """Return the centroids, those without a vector moved onto vectors that are far from theirs.

    Each move lowers the inertia, so it ends: when none is empty, or every vector has a centroid on it.
    """
    while True:
        assigned_N = assign_clusters(embeddings_NW, centroids_KW)
        empty = np.flatnonzero(np.bincount(assigned_N, minlength=len(centroids_KW)) == 0)
        if not len(empty):
            return centroids_KW
        distance_N = np.square(embeddings_NW - centroids_KW[assigned_N]).sum(1)
        farthest = int(np.argmax(distance_N))
        if not distance_N[farthest]:
            return centroids_KW
        centroids_KW[empty[0]] = embeddings_NW[farthest]


def assign_groups(embeddings_NW: np.ndarray, centroids_KW: np.ndarray) -> np.ndarray:
    """Return the nearest centroids, (w,) int32, group by group as they were embedded.

    One thread, as in fit_centroids: a near tie must not depend on the machine's cores.
    """
    groups = (
        embeddings_NW[start : start + GROUP_WINDOWS] for start in range(0, len(embeddings_NW), GROUP_WINDOWS)
    )
    with threadpool_limits(1):
        found = [assign_clusters(group_NW, centroids_KW) for group_NW in groups]
    return np.concatenate([np.zeros(0, np.int32), *found])


def order_part(corpus: Path, folder: Path, number: int, assigned_N: np.ndarray, n_clusters: int) -> None:
    """Write one corpus part's windows in the order of the clusters they are assigned to.

    `starts-N.npy` (w,) int64 and `lengths-N.npy` (w,) int32 are the part's windows by split, training first,
    then by cluster, then in corpus order. `bounds-N.npy` (2, k + 1) int64, written last: those of split s and
    cluster c are at bounds[s, c] : bounds[s, c + 1].
    """
    is_heldout, starts, lengths = load_part(corpus, number)
    bins = assigned_N + n_clusters * is_heldout
    order = np.argsort(bins, kind="stable")
    ends = np.concatenate([[0], np.cumsum(np.bincount(bins, minlength=2 * n_clusters))])
    bounds = np.stack([ends[: n_clusters + 1], ends[n_clusters:]])
    for name, content in (("starts", starts[order]), ("lengths", lengths[order]), ("bounds", bounds)):
        with write_atomic(folder / f"{name}-{number:05}.npy") as out:
            np.save(out, content)


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
