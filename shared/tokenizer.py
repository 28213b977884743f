"""Text to token ids to windows: the one tokenizer template that both parties build.

A bundle carries only a list of [piece, score]; the template around it (SentencePiece unigram with byte
fallback, identity normalization, no dummy prefix) is fixed here, so no foreign tokenizer file is ever
parsed. A document is its tokens and one end-of-text token, cut into non-overlapping windows (paper
§2.3); nothing is dropped. Training a tokenizer is the provider's (provider/corpus.py).
"""

import json
import math
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import Unigram
from transformers import PreTrainedTokenizerFast

from shared.errors import PlanearlyError
from shared.slm import BOS_ID, EOS_ID, LIMITS, UNK_ID

SPACE = "▁"
"""U+2581, which stands for a space inside pieces (SentencePiece's convention)."""

SPECIAL_PIECES = {UNK_ID: "<unk>", BOS_ID: "<s>", EOS_ID: "</s>"}
BYTE_PIECES = [f"<0x{byte:02X}>" for byte in range(256)]
"""Ids 3 to 258: what a character without a piece of its own is spelled with."""

MAX_PIECE_CHARACTERS = 64
ENCODE_CHARACTERS = 100_000
"""A longer text is encoded in parts of about this many characters, cut after a line end or a space."""

ENCODE_PARTS = 16
"""Parts encoded at a time: the tokenizers library needs some 100 bytes per token while it works."""

Pieces = list[tuple[str, float]]


def read_pieces(content: bytes, vocab_size: int | None = None) -> Pieces:
    """Parse and check a piece list: JSON [[piece, log probability], ...], in id order.

    Raises PlanearlyError when the first 259 are not the special and byte pieces, a piece repeats, is
    empty or longer than MAX_PIECE_CHARACTERS, or a score is not a finite number.
    """

    def refuse(why: str) -> PlanearlyError:
        return PlanearlyError(f"tokenizer pieces: {why}", hint="get the file from its provider again")

    try:
        entries = json.loads(content.decode("utf-8"))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise refuse(f"not a JSON list ({type(error).__name__})") from None
    if not isinstance(entries, list) or not 259 <= len(entries) <= LIMITS["vocab_size"]:
        raise refuse("expected a list of 259 or more entries")
    if vocab_size is not None and len(entries) != vocab_size:
        raise refuse(f"{len(entries)} entries, expected {vocab_size}, the model's vocabulary")
    seen: set[str] = set()
    pieces: Pieces = []
    reserved = [SPECIAL_PIECES[index] for index in range(3)] + BYTE_PIECES
    for index, entry in enumerate(entries):
        if not isinstance(entry, list) or len(entry) != 2:
            raise refuse(f"entry {index} is not a [piece, score] pair")
        piece, score = entry
        if not isinstance(piece, str) or not 1 <= len(piece) <= MAX_PIECE_CHARACTERS:
            raise refuse(f"piece {index} is not text of 1 to {MAX_PIECE_CHARACTERS} characters")
        if type(score) not in (int, float) or not math.isfinite(score):
            raise refuse(f"score {index} is not a finite number")
        if index < len(reserved) and piece != reserved[index]:
            raise refuse(f"piece {index} is not the reserved {reserved[index]!r}")
        if piece in seen or SPACE in piece[1:] or "\n" in piece:
            raise refuse(f"piece {index} repeats, holds a line end, or a space after its first character")
        seen.add(piece)
        pieces.append((piece, float(score)))
    return pieces


def write_pieces(pieces: Pieces) -> bytes:
    """Return the bytes that `read_pieces` reads."""
    return json.dumps([list(pair) for pair in pieces], ensure_ascii=False).encode()


def build_tokenizer(pieces: Pieces) -> Tokenizer:
    """Return the `tokenizers` object that encodes exactly as SentencePiece does with these pieces.

    But for one thing: "<" is always a token of its own (or with the space before it), so that private
    text which holds "</s>" or "<0x0A>" cannot be read as that special or byte piece. A learned piece
    with "<" among other characters is therefore never used.
    Source: Kudo 2018 (unigram language model); tested against the sentencepiece library.
    """
    tokenizer = Tokenizer(Unigram(pieces, unk_id=UNK_ID, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="never", split=True),
            pre_tokenizers.Split(Regex(f"{SPACE}?<"), behavior="isolated"),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return tokenizer


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
    """Write the files that `AutoTokenizer.from_pretrained(folder)` needs."""
    pretrained: Any = as_pretrained(tokenizer, context_tokens)
    pretrained.save_pretrained(folder)
