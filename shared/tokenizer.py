"""Text to token ids to windows.

A document is its tokens and one end-of-text token, cut into non-overlapping windows (paper §2.3); nothing
is dropped. The tokenizer's template is in shared/pieces.py; training one is the provider's
(provider/corpus.py).
"""

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

from shared.files import write_json
from shared.pieces import BOS_ID, EOS_ID, SPECIAL_PIECES, UNK_ID

ENCODE_CHARACTERS = 100_000
"""A longer text is encoded in parts of about this many characters, cut after a line end or a space."""

ENCODE_PARTS = 16
"""Parts encoded at a time: the tokenizers library needs some 100 bytes per token while it works."""


def as_pretrained(tokenizer: Tokenizer, context_tokens: int) -> PreTrainedTokenizerFast:
    """Return the tokenizer as the transformers class that `AutoTokenizer` loads.

    The special pieces become special tokens here, and only here: private text that happens to contain
    "</s>" must not turn into an end-of-text token while it is read.
    """
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.add_special_tokens(
        [AddedToken(piece, normalized=False, special=True) for piece in SPECIAL_PIECES.values()]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=copy,
        unk_token=SPECIAL_PIECES[UNK_ID],
        bos_token=SPECIAL_PIECES[BOS_ID],
        eos_token=SPECIAL_PIECES[EOS_ID],
        model_max_length=context_tokens,
        clean_up_tokenization_spaces=False,
    )


def _parts(text: str) -> Iterator[str]:
    """Cut a long text where no piece can cross: after a line end, else before a space."""
    start = 0
    while len(text) - start > ENCODE_CHARACTERS:
        end = text.rfind("\n", start + 1, start + ENCODE_CHARACTERS) + 1
        if end <= start:
            end = text.rfind(" ", start + 1, start + ENCODE_CHARACTERS)
        if end <= start:
            # Not in the paper: a wall of text without a space is cut at the limit.
            end = start + ENCODE_CHARACTERS
        yield text[start:end]
        start = end
    yield text[start:]


def batched(items: Iterable[str], size: int) -> Iterator[list[str]]:
    """Yield lists of up to `size` items (itertools.batched is of Python 3.12)."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def encode_document(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """Return a document's token ids and one end-of-text id: (n,) uint32, n >= 1."""
    ids = [
        np.asarray(encoding.ids, dtype=np.uint32)
        for batch in batched(_parts(text), ENCODE_PARTS)
        for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False)
    ]
    return np.concatenate([*ids, np.asarray([EOS_ID], dtype=np.uint32)])


def cut_windows(n_tokens: int, context_tokens: int) -> Iterator[tuple[int, int]]:
    """Yield (start, length) of the non-overlapping windows of one document (paper §2.3)."""
    for start in range(0, n_tokens, context_tokens):
        yield start, min(context_tokens, n_tokens - start)


def decode_window(tokenizer: Tokenizer, ids: np.ndarray) -> str:
    """Return a window's text, for the embedder; a character cut in two becomes U+FFFD."""
    return tokenizer.decode(ids[ids != EOS_ID].tolist(), skip_special_tokens=False)


def save_tokenizer(tokenizer: Tokenizer, context_tokens: int, folder: Path) -> None:
    """Write the files that `AutoTokenizer.from_pretrained(folder)` needs, in transformers 4 as in 5.

    5 writes a name of its own for the class; both know the old one, and optimum still needs 4.
    """
    pretrained: Any = as_pretrained(tokenizer, context_tokens)
    pretrained.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, settings | {"tokenizer_class": "PreTrainedTokenizerFast"})
