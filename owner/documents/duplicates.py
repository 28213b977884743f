"""Private documents that say the same as an earlier one are dropped before anything else sees them.

A copy in the held-out part would make early stopping and the audit lie; to differential privacy two copies
of a text are two units, so that its promise for each is weaker; and what is repeated is what a model learns
by heart (Lee et al. 2022). Exact: the same text but for Unicode form, case and white space. Near: Jaccard
similarity of 5-token shingles, found by MinHash with banding (Broder 1997), the parameters those of the
FineWeb and RefinedWeb kind of pipeline. It does not matter in which format or archive a text was found.
"""

import hashlib
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rensa import RMinHash, RMinHashLSH
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
"""Shingles handed over at a time, to bound memory."""


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

    Deterministic. What MinHash finds is compared exactly, so that nothing is dropped by an estimate.
    """
    index = RMinHashLSH(SIMILARITY, BANDS * ROWS, BANDS)
    signatures: dict[int, RMinHash] = {}
    kept = np.ones(len(documents), bool)
    for number, ids in enumerate(documents):
        own = shingles(ids)
        if len(own) == 0:
            continue
        signature = RMinHash(BANDS * ROWS, 0)
        for start in range(0, len(own), BLOCK):
            signature.update(own[start : start + BLOCK].astype("<u8").view("V8").tolist())
        near = [
            other
            for other in index.query(signature)
            if signature.jaccard(signatures[other]) >= SIMILARITY - MARGIN
        ]
        if any(jaccard(own, shingles(documents[other])) >= SIMILARITY for other in near):
            kept[number] = False
        else:
            index.insert(number, signature)
            signatures[number] = signature
    return kept


def shingles(ids: np.ndarray) -> np.ndarray:
    """Return the set of a document's runs of SHINGLE_TOKENS tokens, as sorted 64-bit digests."""
    if len(ids) < SHINGLE_TOKENS:
        return np.zeros(0, np.uint64)
    runs = np.lib.stride_tricks.sliding_window_view(ids.astype(np.uint64), SHINGLE_TOKENS)
    return np.unique(_mix(runs))


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """Return the shared part of two sets of shingles."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / (len(one) + len(other) - shared)


def _mix(runs: np.ndarray) -> np.ndarray:
    """Hash each row of integers into one of 64 bits (the finalizer of splitmix64, Steele et al. 2014)."""
    mixed = np.zeros(len(runs), np.uint64)
    for part in runs.T:
        mixed = (mixed + part + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    return mixed
