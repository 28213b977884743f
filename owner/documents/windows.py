"""Private documents to token windows, and the split that holds some documents out.

No token is dropped: every document is its tokens and one end-of-text token, cut into non-overlapping
windows (paper §2.3). Held out are whole documents, so that no sentence of a training document is scored.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from owner.documents.reading import Document
from shared.batches import Windows
from shared.errors import DocumentsError
from shared.progress import show
from shared.tokenizer import cut_windows, encode_document


@dataclass(frozen=True)
class PrivateWindows:
    """All windows of the private documents; `document` (w,) int32 is each window's document."""

    windows: Windows
    document: np.ndarray
    n_documents: int

    def digest(self) -> str:
        """Return a SHA-256 over the tokens and where the windows lie."""
        found = hashlib.sha256(self.document.tobytes())
        found.update(self.windows.length.tobytes())
        for stream in self.windows.streams:
            found.update(np.ascontiguousarray(stream).data)
        return found.hexdigest()

    def keep(self, kept: np.ndarray) -> "PrivateWindows":
        """Return the documents of a mask (n_documents,), numbered anew, in a stream of their own."""
        chosen = kept[self.document]
        windows = self.windows.take(chosen)
        tokens = [windows.tokens(window) for window in range(len(windows))]
        ends = np.cumsum(windows.length, dtype=np.int64)
        return PrivateWindows(
            Windows(
                streams=[np.concatenate(tokens) if tokens else np.zeros(0, np.uint32)],
                stream=windows.stream,
                start=ends - windows.length,
                length=windows.length,
                cluster=windows.cluster,
            ),
            (np.cumsum(kept) - 1)[self.document[chosen]].astype(np.int32),
            int(kept.sum()),
        )


@dataclass(frozen=True)
class Split:
    """Training and held-out windows; `by` is "documents", or "windows" where there is one document."""

    train: Windows
    heldout: Windows
    by: str
    train_document: np.ndarray
    """The document of each training window, (w,) int32, ascending."""
    heldout_document: np.ndarray

    @property
    def training_documents(self) -> PrivateWindows:
        """The training windows by document, the documents numbered anew."""
        numbers, document = np.unique(self.train_document, return_inverse=True)
        return PrivateWindows(self.train, document.astype(np.int32), len(numbers))


def window_documents(
    documents: Iterable[Document], tokenizer: Tokenizer, context_tokens: int
) -> PrivateWindows:
    """Tokenize documents into one stream in memory (4 bytes per token) and cut it into windows."""
    tokens: list[np.ndarray] = []
    starts, lengths, owners = [], [], []
    position = n_documents = 0
    for document in documents:
        ids = encode_document(tokenizer, document.text)
        for start, length in cut_windows(len(ids), context_tokens):
            starts.append(position + start)
            lengths.append(length)
            owners.append(n_documents)
        tokens.append(ids)
        position += len(ids)
        n_documents += 1
        show(n_documents, None, "documents", f"{position:,} tokens")
    zeros = np.zeros(len(starts), np.int32)
    windows = Windows(
        streams=[np.concatenate(tokens) if tokens else np.zeros(0, np.uint32)],
        stream=zeros,
        start=np.asarray(starts, np.int64),
        length=np.asarray(lengths, np.int32),
        cluster=zeros,
    )
    return PrivateWindows(windows, np.asarray(owners, np.int32), n_documents)


def split_documents(private: PrivateWindows, heldout_fraction: float, seed: int) -> Split:
    """Hold out whole documents with about heldout_fraction of the tokens, drawn by the seed.

    A document that would make the held-out part more than half again too large is left for training.
    Where there is but one document, its last windows are held out. Raises DocumentsError when either
    side would be empty. Not in the paper, which has ready-made splits (§3.1).
    """
    windows = private.windows
    target_tokens = heldout_fraction * windows.n_tokens
    if private.n_documents < 2:
        n_heldout = max(1, round(heldout_fraction * len(windows)))
        is_heldout = np.arange(len(windows)) >= len(windows) - n_heldout
        by = "windows"
    else:
        sizes = np.bincount(private.document, weights=windows.length, minlength=private.n_documents)
        chosen: list[int] = []
        tokens = 0.0
        for document in np.random.default_rng(seed).permutation(private.n_documents):
            if tokens + sizes[document] <= 1.5 * target_tokens:
                chosen.append(int(document))
                tokens += sizes[document]
            if tokens >= target_tokens:
                break
        is_heldout = np.isin(private.document, chosen or [int(np.argmin(sizes))])
        by = "documents"
    if is_heldout.all() or not is_heldout.any():
        raise DocumentsError(
            f"{private.n_documents} document with {windows.n_tokens} tokens in {len(windows)} window:"
            " too little to train on one part and hold out another",
            hint="add a second document; useful results start at about a million tokens",
        )
    return Split(
        windows.take(~is_heldout),
        windows.take(is_heldout),
        by,
        private.document[~is_heldout],
        private.document[is_heldout],
    )
