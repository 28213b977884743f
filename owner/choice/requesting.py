"""A differentially private histogram of documents, for an owner who chooses to ask for SLM-is (§2.4).

Each document votes once, for the cluster that most of its windows are nearest to, so that adding or
removing one document changes one count by one. OpenDP draws the noise and accounts for it. Nothing is
sent: the file is written where the owner says, after its content was shown.
"""

import os
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from owner.choice.coarsening import expected_error, merge_clusters, share_out
from owner.documents.duplicates import read_distinct
from owner.documents.walking import Skipped
from owner.documents.windows import PrivateWindows
from owner.trust.carried import open_embedder, open_tokenizer
from owner.trust.opening import open_trusted
from owner.trust.vouching import read_trust
from shared.clusters import assign_clusters, cluster_histogram
from shared.device import choose_device
from shared.embedding import Embedder, embed_texts
from shared.errors import PlanearlyError
from shared.progress import Say, stage
from shared.request import HistogramRequest, centroids_digest
from shared.tokenizer import decode_window

WINDOWS_PER_DOCUMENT = 4
"""Windows of a document that are embedded at most, evenly spaced."""
COARSER = 4
"""Each number of clusters that is offered is this part of the one before. Ours."""
MERGED = "; on {n} merged clusters, shared out among their members by the generic corpus"
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


def noisy_counts(votes_K: np.ndarray, epsilon: float) -> tuple[np.ndarray, float]:
    """Return the counts with noise added to every one, below 0 made 0, and the noise's scale.

    They are epsilon-differentially private for adding or removing one document. Source: OpenDP
    `make_laplace` on integers (the discrete Laplace mechanism of Ghosh et al. 2009) and its
    `binary_search_param`. Raises PlanearlyError for an epsilon that is not above 0, and where OpenDP is
    not installed.
    """
    if not epsilon > 0:
        raise PlanearlyError(f"epsilon is {epsilon}, expected more than 0", hint="1.0 is a common choice")
    os.environ["JOBLIB_MULTIPROCESSING"] = "0"  # opendp brings it along: it would try what the walls deny
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
    return np.maximum(np.asarray(counts, np.int64), 0), float(scale)


def noisy_request(
    votes_K: np.ndarray,
    centroids_KW: np.ndarray,
    epsilon: float,
    generic_K: np.ndarray | None = None,
    n_clusters: int | None = None,
) -> HistogramRequest:
    """Return the request, with noise on every cluster's count, or on those of fewer, merged clusters.

    Merged ones are shared out by the generic corpus' counts, which must be given then. Raises as
    `noisy_counts`, and for more merged clusters than there are.
    """
    if n_clusters is None:
        counts_K, scale = noisy_counts(votes_K, epsilon)
        mechanism = MECHANISM.format(scale=scale)
    else:
        assert generic_K is not None
        if n_clusters > len(centroids_KW):
            raise PlanearlyError(
                f"{n_clusters} clusters are asked for, expected at most {len(centroids_KW)}",
                hint="--clusters merges clusters, and cannot split them",
            )
        groups_K = merge_clusters(centroids_KW, generic_K, n_clusters)
        merged_N, scale = noisy_counts(np.bincount(groups_K, votes_K), epsilon)
        counts_K = share_out(merged_N, groups_K, generic_K)
        mechanism = MECHANISM.format(scale=scale) + MERGED.format(n=n_clusters)
    return HistogramRequest(
        centroids_sha256=centroids_digest(centroids_KW),
        counts=tuple(counts_K.tolist()),
        epsilon=float(epsilon),
        mechanism=mechanism,
    )


def describe_errors(
    votes_K: np.ndarray,
    centroids_KW: np.ndarray,
    generic_K: np.ndarray,
    epsilon: float,
    n_clusters: int | None,
) -> str:
    """Return what error to expect of a file with these many clusters, and of coarser ones, side by side."""
    n_all = len(centroids_KW)
    asked = n_clusters or n_all
    choices = {
        asked,
        n_all,
        *(n_all // COARSER**power for power in range(1, 6) if n_all >= 2 * COARSER**power),
    }
    lines = []
    for n in sorted(choices, reverse=True):
        groups_K = merge_clusters(centroids_KW, generic_K, n)
        own, every = expected_error(votes_K, groups_K, generic_K, epsilon)
        this = " (this file)" if n == asked else ""
        lines.append(f"  --clusters {n}{this}: {own:.2f} between these, {every:.2f} between all {n_all}")
    return "\n".join(
        [
            "expected error of the histogram, 0 exact to 1 useless, by number of clusters. The figures know",
            "your documents and are for your eyes; a choice by them is not in epsilon:",
            *lines,
        ]
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
    n_clusters: int | None = None,
    stale_reason: str | None = None,
) -> tuple[HistogramRequest, int]:
    """Return the differentially private request for these documents, and their number; writes nothing.

    Raises SignatureError, BundleError, DocumentsError, OSError; PlanearlyError when `out` exists: a request
    is never overwritten.
    """
    if out.exists():
        raise PlanearlyError(f"{out}: already exists", hint="choose another --out, or move it away")
    with ExitStack() as stack:
        with stage("verify"):
            bundle, _ = open_trusted(bundle_path, stack, read_trust(stale_reason), say)
        manifest = bundle.manifest
        device = choose_device("auto")
        tokenizer = open_tokenizer(bundle)
        skipped: list[Skipped] = []
        with stage("read"):
            private, duplicates = read_distinct(data, skipped, tokenizer, manifest.model.context_tokens)
        say(
            f"documents    {private.n_documents:,} documents · {duplicates.n} copies dropped ·"
            f" {sum(item.n for item in skipped)} skipped"
        )
        centroids_KW = bundle.array("clusters.centroids")
        with stage("embed"):
            embedder = open_embedder(bundle, embedder_folder, device)
            votes_K = count_votes(private, tokenizer, embedder, centroids_KW)
        generic_K = bundle.array("clusters.counts")
        request = noisy_request(votes_K, centroids_KW, epsilon, generic_K, n_clusters)
        for line in describe_errors(votes_K, centroids_KW, generic_K, epsilon, n_clusters).split("\n"):
            say(line)
        return request, private.n_documents
