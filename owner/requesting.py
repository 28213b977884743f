"""A differentially private histogram of documents, for an owner who chooses to ask for SLM-is (§2.4).

Each document votes once, for the cluster that most of its windows are nearest to, so that adding or
removing one document changes one count by one. OpenDP draws the noise and accounts for it. Nothing is
sent: the file is written where the owner says, after its content was shown.
"""

from contextlib import ExitStack
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from owner.duplicates import read_distinct
from owner.opening import open_embedder, open_tokenizer, open_trusted
from owner.vouching import read_trust
from owner.walking import Skipped
from owner.windows import PrivateWindows
from shared.clusters import assign_clusters, cluster_histogram
from shared.device import choose_device
from shared.embedding import Embedder, embed_texts
from shared.errors import PlanearlyError
from shared.request import HistogramRequest, centroids_digest
from shared.tokenizer import decode_window
from shared.training import Say

WINDOWS_PER_DOCUMENT = 4
"""Windows of a document that are embedded at most, evenly spaced."""
MECHANISM = "discrete Laplace (OpenDP make_laplace over integers), one vote a document, scale {scale:.6g}"


def count_votes(
    private: PrivateWindows, tokenizer: Tokenizer, embedder: Embedder, centroids_KW: np.ndarray
) -> np.ndarray:
    """Return documents per cluster, (K,) int64; a document's ties go to the lowest cluster."""
    chosen: list[int] = []
    bounds = np.searchsorted(private.document, np.arange(private.n_documents + 1))
    for first, end in zip(bounds[:-1], bounds[1:], strict=True):
        places = np.linspace(first, end - 1, min(end - first, WINDOWS_PER_DOCUMENT))
        chosen += np.unique(places.astype(int)).tolist()
    texts = [decode_window(tokenizer, private.windows.tokens(window)) for window in chosen]
    assigned = assign_clusters(embed_texts(embedder, texts), centroids_KW)
    owners = private.document[chosen]
    votes = [
        int(np.argmax(cluster_histogram(assigned[owners == document], len(centroids_KW))))
        for document in np.unique(owners)
    ]
    return cluster_histogram(np.asarray(votes, np.int32), len(centroids_KW))


def noisy_request(votes_K: np.ndarray, centroids_KW: np.ndarray, epsilon: float) -> HistogramRequest:
    """Return the request with noise added to every count; counts below 0 become 0.

    It is epsilon-differentially private for adding or removing one document. Source: OpenDP
    `make_laplace` on integers (the discrete Laplace mechanism of Ghosh et al. 2009) and its
    `binary_search_param`. Raises PlanearlyError for an epsilon that is not above 0, and where OpenDP is
    not installed.
    """
    if not epsilon > 0:
        raise PlanearlyError(f"epsilon is {epsilon}, expected more than 0", hint="1.0 is a common choice")
    try:
        import opendp.prelude as dp
    except ImportError:
        raise PlanearlyError(
            "a histogram with noise needs the package opendp", hint="pip install opendp"
        ) from None
    dp.enable_features("contrib")
    space = dp.vector_domain(dp.atom_domain(T="i64")), dp.l1_distance(T="i64")
    scale = dp.binary_search_param(
        lambda candidate: dp.m.make_laplace(*space, scale=candidate), d_in=1, d_out=epsilon
    )
    measurement = dp.m.make_laplace(*space, scale=scale)
    counts = measurement([int(count) for count in votes_K])
    return HistogramRequest(
        centroids_sha256=centroids_digest(centroids_KW),
        counts=tuple(max(0, int(count)) for count in counts),
        epsilon=float(epsilon),
        mechanism=MECHANISM.format(scale=scale),
    )


def describe_request(request: HistogramRequest, n_documents: int) -> str:
    """Return in plain words all that the file will hold, for a person to read before it is written."""
    counts = ", ".join(f"{cluster}: {count}" for cluster, count in enumerate(request.counts) if count)
    zeros = sum(count == 0 for count in request.counts)
    noise = request.mechanism
    return "\n".join(
        [
            "the file would hold, and nothing else:",
            f"  documents per cluster, after noise: {counts or 'none'}; {zeros} clusters with 0",
            f"  which clustering they belong to: digest {request.centroids_sha256[:16]}...",
            f"  how the noise was drawn: epsilon {request.epsilon:g}, {noise}",
            "who reads it learns roughly how many of your documents are about each cluster's topic.",
            f"whether any one of your {n_documents:,} documents is among them changes the odds of any such"
            f" file at most {np.exp(request.epsilon):.3g}-fold.",
            "each further file made from the same documents adds to what can be learned. Nothing is sent: you"
            " hand it over yourself, or not.",
        ]
    )


def request_histogram(
    bundle_path: Path,
    data: Path,
    epsilon: float,
    out: Path,
    say: Say,
    embedder_folder: Path | None = None,
    stale_reason: str | None = None,
) -> tuple[HistogramRequest, int]:
    """Return the differentially private request for these documents, and their number; writes nothing.

    Raises SignatureError, BundleError, DocumentsError, OSError; PlanearlyError when `out` exists: a request
    is never overwritten.
    """
    if out.exists():
        raise PlanearlyError(f"{out}: already exists", hint="choose another --out, or move it away")
    with ExitStack() as stack:
        bundle, _ = open_trusted(bundle_path, stack, read_trust(stale_reason), say)
        manifest = bundle.manifest
        device = choose_device("auto")
        tokenizer = open_tokenizer(bundle)
        skipped: list[Skipped] = []
        private, duplicates = read_distinct(data, skipped, tokenizer, manifest.model.context_tokens)
        say(
            f"documents    {private.n_documents:,} documents · {duplicates.n} copies dropped ·"
            f" {sum(item.n for item in skipped)} skipped"
        )
        centroids_KW = bundle.tensor("clusters.centroids").numpy()
        embedder = open_embedder(bundle, embedder_folder, device)
        votes_K = count_votes(private, tokenizer, embedder, centroids_KW)
        return noisy_request(votes_K, centroids_KW, epsilon), private.n_documents
