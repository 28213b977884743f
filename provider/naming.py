"""What each cluster is about: its foremost words by class-based TF-IDF, over a sample of its windows.

A term's weight in a cluster is its share of the cluster's words times log(1 + A / f), A being the mean number
of words per cluster and f how often the term occurs in all of them (Grootendorst 2022, arXiv 2203.05794,
"BERTopic", equation 2). Only what several documents of a cluster say can name it, so that no name or address
out of a single document is published.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer
from tokenizers import Tokenizer

from provider.pretraining import load_windows
from provider.stages import Stage, run_stage, tell
from shared.batches import Windows
from shared.manifest import MAX_TERM_CHARACTERS, MAX_TERMS
from shared.pieces import EOS_ID, build_tokenizer, read_pieces
from shared.progress import Say
from shared.strict_json import canonical_json
from shared.tokenizer import decode_window

SAMPLE_WINDOWS = 20_000
"""Training windows read, over all clusters. Ours: under a minute of one core for windows of 256 tokens."""
LEAST_WINDOWS = 100
"""Training windows read of each cluster, or all of a smaller one, however many clusters there are. Ours."""
LEAST_DOCUMENTS = 5
"""Documents of the cluster that hold a term, at least: what fewer say is not published. Ours."""
MOST_DOCUMENTS_FRACTION = 0.5
"""Of a cluster's documents, averaged over the clusters: what more of them hold is a function word in any
language. Ours."""
MAX_TERMS_BYTES = 1 << 20
"""Of all terms in a manifest, whose header has four times that: beyond it each cluster gets fewer. Ours."""
WORD = rf"\b[^\W\d_]{{3,{MAX_TERM_CHARACTERS}}}\b"
"""Letters of any script; digits and underscores beside them make it no word."""


def naming_inputs(sorted_digest: str, seed: int) -> dict[str, object]:
    """Return what decides the stage."""
    return {"sorted": sorted_digest, "seed": seed}


def name_clusters(
    work: Path, sorting_stage: Stage, pieces: bytes, n_clusters: int, seed: int, say: Say
) -> list[list[str]]:
    """Return each cluster's terms, best first, from the windows that a finished stage sorted."""

    def run(folder: Path) -> dict[str, object]:
        windows = load_windows(sorting_stage.folder, "train", n_clusters)
        terms = cluster_terms(windows, n_clusters, build_tokenizer(read_pieces(pieces)), seed)
        return {"terms": terms, "named": sum(map(bool, terms)), "clusters": n_clusters}

    stage = run_stage(work, "terms", naming_inputs(sorting_stage.digest, seed), run)
    tell(say, "terms", stage, "{named} of {clusters} clusters named by their foremost words")
    return list(stage.report["terms"])


def cluster_terms(windows: Windows, n_clusters: int, tokenizer: Tokenizer, seed: int) -> list[list[str]]:
    """Return up to MAX_TERMS terms of each cluster, (n_clusters,) lists, best first, ties by alphabet.

    Lower-case words without scikit-learn's English stop words, which `LEAST_DOCUMENTS` of the cluster's own
    sampled documents hold and MOST_DOCUMENTS_FRACTION of all clusters' do not: a cluster of few documents may
    have none. Scripts that put no spaces between words, or marks inside them, are cut where Python's `re`
    sees a word's end.
    """
    owners: list[int] = []

    def texts() -> Iterator[str]:
        for cluster in range(n_clusters):
            for text in _documents(windows, cluster, n_clusters, tokenizer, seed):
                owners.append(cluster)
                yield text

    vectorizer = CountVectorizer(token_pattern=WORD, stop_words="english", dtype=np.int32)
    try:
        counts_DT = vectorizer.fit_transform(texts()).tocsr()
    except ValueError:  # scikit-learn's: not one word
        return [[] for _ in range(n_clusters)]
    words = vectorizer.get_feature_names_out()
    bounds = np.searchsorted(owners, np.arange(n_clusters + 1))
    parts = [counts_DT[low:high] for low, high in zip(bounds, bounds[1:], strict=False)]
    frequency_T = np.asarray(counts_DT.sum(0)).ravel()
    idf_T = np.log1p(frequency_T.sum() / n_clusters / frequency_T)
    share_T = sum(own_DT.getnnz(0) / max(1, own_DT.shape[0]) for own_DT in parts) / n_clusters
    is_common_T = share_T > MOST_DOCUMENTS_FRACTION
    ranked = []
    for own_DT in parts:
        weight_T = np.asarray(own_DT.sum(0)).ravel() * idf_T
        weight_T[(own_DT.getnnz(0) < LEAST_DOCUMENTS) | is_common_T] = 0.0
        best = np.argsort(-weight_T, kind="stable")[:MAX_TERMS]
        ranked.append([str(words[term]) for term in best if weight_T[term] > 0])
    return _cut(ranked)


def _documents(
    windows: Windows, cluster: int, n_clusters: int, tokenizer: Tokenizer, seed: int
) -> Iterator[str]:
    """Yield the sampled text of a cluster, no document in two parts of it.

    Windows do not tell their document. But a document's last window ends in the end-of-text token, and a
    cluster's windows are in corpus order: those on two sides of such a window are of different documents.
    """
    own = np.flatnonzero(windows.cluster == cluster)
    n_drawn = min(len(own), max(LEAST_WINDOWS, SAMPLE_WINDOWS // n_clusters))
    drawn = np.sort(np.random.default_rng([seed, cluster]).choice(len(own), n_drawn, replace=False))
    part: list[str] = []
    for place, following in zip(drawn, [*drawn[1:], None], strict=True):
        part.append(decode_window(tokenizer, windows.tokens(own[place])))
        if following is None or any(
            windows.tokens(own[between])[-1] == EOS_ID for between in range(place, following)
        ):
            yield "\n".join(part)
            part = []


def _cut(ranked: list[list[str]]) -> list[list[str]]:
    """Return as many of each cluster's best terms as the manifest has room for."""
    n_terms = MAX_TERMS
    while n_terms and len(canonical_json([terms[:n_terms] for terms in ranked])) > MAX_TERMS_BYTES:
        n_terms -= 1
    return [terms[:n_terms] for terms in ranked]
