"""Private documents that say the same as an earlier one are dropped before anything else sees them.

A copy in the held-out part would make early stopping and the audit lie; to differential privacy two copies
of a text are two units, so that its promise for each is weaker; and what is repeated is what a model learns
by heart (Lee et al. 2022). Exact: the same text but for Unicode form, case and white space. Near: Jaccard
similarity of 5-token shingles, found by MinHash with banding (Broder 1997), the parameters those of the
FineWeb and RefinedWeb kind of pipeline. Written here in numpy: the libraries for it bring scipy into
the process that holds private text (docs/decisions/0014-what-a-model-gives-away.md).
"""

import hashlib
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from owner.documents.reading import Document, read_documents
from owner.documents.walking import Skipped
from owner.documents.windows import PrivateWindows, window_documents

SHINGLE_TOKENS = 5
"""Lee et al. 2022 and its followers."""
SIMILARITY = 0.8
"""Jaccard similarity from which two documents are one; Lee et al. 2022."""
BANDS, ROWS = 16, 8
"""A pair of similarity s is compared with probability 1 - (1 - s^ROWS)^BANDS: 0.95 at 0.8, 0.9999 at 0.9."""
MARGIN = 0.1
"""Estimates from BANDS * ROWS minima this far below SIMILARITY, nearly 3 standard errors, are not checked."""
BLOCK = 4096
"""Shingles hashed at a time, to bound memory."""


@dataclass(frozen=True)
class Duplicates:
    """Documents that were dropped, the first of each kind being kept."""

    exact: int = 0
    near: int = 0

    @property
    def n(self) -> int:
        """All that were dropped."""
        return self.exact + self.near


def read_distinct(
    data: Path, skipped: list[Skipped], tokenizer: Tokenizer, context_tokens: int
) -> tuple[PrivateWindows, Duplicates]:
    """Read, tokenize and cut the private documents, each text once, in the order of reading.

    Raises DocumentsError as `owner.documents.reading.read_documents`.
    """
    repeats: list[str] = []
    documents = _once(read_documents(data, skipped), repeats)
    private = window_documents(documents, tokenizer, context_tokens)
    kept = near_distinct(document_tokens(private))
    return private.keep(kept), Duplicates(len(repeats), int(np.count_nonzero(~kept)))


def _once(documents: Iterable[Document], repeats: list[str]) -> Iterator[Document]:
    seen: set[bytes] = set()
    for document in documents:
        digest = normal_digest(document.text)
        if digest in seen:
            repeats.append(document.path)
        else:
            seen.add(digest)
            yield document


def normal_digest(text: str) -> bytes:
    """Return the digest of a text without regard to Unicode form, case and white space."""
    normal = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    return hashlib.sha256(normal.encode("utf-8", "surrogatepass")).digest()


def document_tokens(private: PrivateWindows) -> list[np.ndarray]:
    """Return each document's token ids: its windows follow one another in the one stream."""
    starts = np.searchsorted(private.document, np.arange(private.n_documents + 1))
    windows, stream = private.windows, private.windows.streams[0]
    ends = windows.start + windows.length
    return [
        stream[windows.start[first] : ends[last - 1]]
        for first, last in zip(starts[:-1], starts[1:], strict=True)
    ]


def near_distinct(documents: list[np.ndarray]) -> np.ndarray:
    """Return a mask of the documents to keep, each unlike all that are kept before it.

    Deterministic. Cost: 128 multiplications a token and 600 bytes a document.
    """
    signatures = np.stack([_minima(shingles(ids)) for ids in documents])
    in_bands = _mix(signatures.reshape(len(documents), BANDS, ROWS).astype(np.uint64), axis=2)
    is_shared = np.zeros(in_bands.shape, bool)
    for band in range(BANDS):
        _, inverse, counts = np.unique(in_bands[:, band], return_inverse=True, return_counts=True)
        is_shared[:, band] = counts[inverse] > 1
    kept = np.ones(len(documents), bool)
    kept_in: dict[tuple[int, int], list[int]] = defaultdict(list)
    for document in np.flatnonzero(is_shared.any(1)).tolist():
        own = shingles(documents[document])
        if len(own) == 0:
            continue
        bands = [
            (band, int(in_bands[document, band])) for band in np.flatnonzero(is_shared[document]).tolist()
        ]
        others = np.asarray(sorted({other for key in bands for other in kept_in[key]}), np.int64)
        estimates = (signatures[others] == signatures[document]).mean(1)
        near = others[estimates >= SIMILARITY - MARGIN].tolist()
        if any(jaccard(own, shingles(documents[other])) >= SIMILARITY for other in near):
            kept[document] = False
        else:
            for key in bands:
                kept_in[key].append(document)
    return kept


def shingles(ids: np.ndarray) -> np.ndarray:
    """Return the set of a document's runs of SHINGLE_TOKENS tokens, as sorted 64-bit digests."""
    if len(ids) < SHINGLE_TOKENS:
        return np.zeros(0, np.uint64)
    runs = np.lib.stride_tricks.sliding_window_view(ids.astype(np.uint64), SHINGLE_TOKENS)
    return np.unique(_mix(runs, axis=1))


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """Return the shared part of two sets of shingles."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / (len(one) + len(other) - shared)


def _mix(parts: np.ndarray, axis: int) -> np.ndarray:
    """Hash integers along an axis into one of 64 bits (the finalizer of splitmix64, Steele et al. 2014)."""
    mixed = np.zeros(np.delete(parts.shape, axis), np.uint64)
    for part in np.moveaxis(parts, axis, 0):
        mixed = (mixed + part + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    return mixed


def _minima(hashed: np.ndarray) -> np.ndarray:
    """Return the least of BANDS * ROWS hashes of the shingles: (128,) uint32; of none, the largest number."""
    generator = np.random.default_rng(0)
    odd, shift = generator.integers(0, 1 << 63, (2, BANDS * ROWS), dtype=np.uint64)
    least = np.full(BANDS * ROWS, 0xFFFFFFFF, np.uint32)
    for start in range(0, len(hashed), BLOCK):
        products = hashed[start : start + BLOCK, None] * (2 * odd + np.uint64(1)) + shift
        least = np.minimum(least, (products >> np.uint64(32)).min(0).astype(np.uint32))
    return least
