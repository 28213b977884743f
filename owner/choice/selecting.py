"""Windows to histogram to expert: the most frequent cluster (paper §4.3)."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from owner.choice.requesting import count_votes, noisy_counts
from owner.documents.windows import PrivateWindows, Split
from owner.trust.carried import open_embedder
from shared.batches import Windows
from shared.bundle import Bundle
from shared.clusters import assign_clusters, cluster_histogram, most_frequent
from shared.embedding import Embedder, embed_texts
from shared.files import write_json
from shared.tokenizer import decode_window

SELECTION_FILE = "selection.json"
SELECT_WINDOWS = 8192
"""Windows embedded at most, evenly spaced over all. Not in the paper, which embeds every window: the
largest cell of the histogram does not need millions, and on a CPU that takes hours."""


@dataclass(frozen=True)
class Selection:
    """The chosen expert and why; private, so it never goes into the model directory."""

    expert: int
    histogram: list[int]
    """Windows per cluster, of those embedded; with differential privacy documents, after noise."""

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


def choose_expert(
    bundle: Bundle,
    pack: Bundle | None,
    private: PrivateWindows,
    split: Split,
    epsilon: float,
    tokenizer: Tokenizer,
    embedder_folder: Path | None,
    device: torch.device,
    work: Path,
) -> tuple[Selection, list[int]]:
    """Return the selection, and the histogram over the pack's clusters ([] without one); embeds once.

    With an epsilon of differential privacy, the training documents vote, and noise is added to their votes.
    The choice is kept in the work folder.
    """
    saved = work / SELECTION_FILE
    if saved.exists():
        found = json.loads(saved.read_text())
        return Selection(**found["selection"]), found["replay_histogram"]
    embedder = open_embedder(bundle, embedder_folder, device)
    centroids_KW = bundle.array("clusters.centroids")
    if epsilon:
        votes_K = count_votes(split.training_documents, tokenizer, embedder, centroids_KW)
        counts = noisy_counts(votes_K, epsilon)[0]
        selection = Selection(most_frequent(counts), counts.tolist())
        write_json(saved, {"selection": asdict(selection), "replay_histogram": []})
        return selection, []
    embeddings = embed_windows(private.windows, tokenizer, embedder)
    selection = select_expert(embeddings, centroids_KW)
    replay_histogram = select_expert(embeddings, pack.array("clusters.centroids")).histogram if pack else []
    write_json(saved, {"selection": asdict(selection), "replay_histogram": replay_histogram})
    return selection, replay_histogram


def describe_selection(selection: Selection, n_experts: int, of: str = "windows", label: str = "") -> str:
    """Return one line for the terminal; the label is the provider's, of the chosen expert's cluster."""
    if n_experts == 1:
        return "the bundle holds one model"
    named = f" ({label})" if label else ""
    text = f"{selection.expert} of {n_experts}{named} · holds {selection.share:.0%} of {of}"
    if selection.runner_up is not None and selection.runner_up[1] > 0:
        text += f" · next is {selection.runner_up[0]} with {selection.runner_up[1]:.0%}"
    return text
