"""A list of [piece, score], and the one tokenizer template that both parties build around it.

A bundle carries nothing but such a list; the template (SentencePiece unigram with byte fallback, identity
normalization, no dummy prefix) is fixed here, so no foreign tokenizer file is ever parsed. Needs only the
tokenizers library, so that a process made to try a foreign list starts quickly (owner/trust/trying.py).
"""

import json
import re

from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import Unigram

from shared.errors import PlanearlyError

UNK_ID, BOS_ID, EOS_ID = 0, 1, 2
"""Token ids that every planearly tokenizer reserves, in this order."""

SPACE = "▁"
"""U+2581, which stands for a space inside pieces (SentencePiece's convention)."""

SPECIAL_PIECES = {UNK_ID: "<unk>", BOS_ID: "<s>", EOS_ID: "</s>"}
BYTE_PIECES = [f"<0x{byte:02X}>" for byte in range(256)]
"""Ids 3 to 258: what a character without a piece of its own is spelled with."""

MAX_PIECE_CHARACTERS = 64
MAX_PIECES = 1_048_576
MIN_SCORE = -1e6
"""A log probability is from here to 0. Ours: one per million is -14, and sums of these stay exact."""
NOT_IN_A_PIECE = re.compile("(?s).+\u2581|\n|[\ud800-\udfff]")
"""A space after the first character, a line end, half a surrogate pair."""

Pieces = list[tuple[str, float]]


def read_pieces(content: bytes, vocab_size: int | None = None) -> Pieces:
    """Parse and check a piece list: JSON [[piece, log probability], ...], in id order.

    Raises PlanearlyError when the first 259 are not the special and byte pieces, a piece repeats, is
    empty or longer than MAX_PIECE_CHARACTERS, or a score is not from MIN_SCORE to 0.
    """

    def refuse(why: str) -> PlanearlyError:
        return PlanearlyError(f"tokenizer pieces: {why}", hint="get the file from its provider again")

    try:
        entries = json.loads(content.decode("utf-8"))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise refuse(f"not a JSON list ({type(error).__name__})") from None
    if not isinstance(entries, list) or not 259 <= len(entries) <= MAX_PIECES:
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
        if type(score) not in (int, float) or not MIN_SCORE <= score <= 0:
            raise refuse(f"score {index} is not a log probability, a number from {MIN_SCORE:.0f} to 0")
        if index < len(reserved) and piece != reserved[index]:
            raise refuse(f"piece {index} is not the reserved {reserved[index]!r}")
        if piece in seen:
            raise refuse(f"piece {index} repeats an earlier one")
        if NOT_IN_A_PIECE.search(piece):
            raise refuse(
                f"piece {index} holds a line end, half a surrogate pair, or a space after its first character"
            )
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
