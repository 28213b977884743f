"""Windows to histogram to expert: the most frequent cluster (paper §4.3)."""

from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from shared.batches import Windows
from shared.clusters import assign_clusters, cluster_histogram, most_frequent
from shared.embedding import Embedder, embed_texts
from shared.tokenizer import decode_window

SELECT_WINDOWS = 8192
"""Windows embedded at most, evenly spaced over all. Not in the paper, which embeds every window: the
largest cell of the histogram does not need millions, and on a CPU that takes hours."""


@dataclass(frozen=True)
class Selection:
    """The chosen expert and why; private, so it never goes into the model directory."""

    expert: int
    histogram: list[int]
    """Windows per cluster, of those embedded."""

    @property
    def n_windows(self) -> int:
        """Windows embedded."""
        return sum(self.histogram)

    @property
    def share(self) -> float:
        """Fraction of the embedded windows in the chosen cluster."""
        return self.histogram[self.expert] / max(1, self.n_windows)

    @property
    def runner_up(self) -> tuple[int, float] | None:
        """The second cluster and its fraction of windows; None where there is only one."""
        others = [index for index in range(len(self.histogram)) if index != self.expert]
        if not others:
            return None
        second = max(others, key=lambda index: (self.histogram[index], -index))
        return second, self.histogram[second] / max(1, self.n_windows)


def embed_windows(windows: Windows, tokenizer: Tokenizer, embedder: Embedder) -> np.ndarray:
    """Return the embeddings of at most SELECT_WINDOWS windows, evenly spaced: (n, W) float32."""
    chosen = np.unique(np.linspace(0, len(windows) - 1, min(len(windows), SELECT_WINDOWS)).astype(int))
    return embed_texts(embedder, [decode_window(tokenizer, windows.tokens(window)) for window in chosen])


def select_expert(embeddings_NW: np.ndarray, centroids_KW: np.ndarray) -> Selection:
    """Count the nearest centroids, take the most frequent; ties: the lowest index."""
    histogram = cluster_histogram(assign_clusters(embeddings_NW, centroids_KW), len(centroids_KW))
    return Selection(most_frequent(histogram), histogram.tolist())
