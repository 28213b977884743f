"""Generic documents to token windows on disk (paper §2.3), one part per corpus file, here or in a store.

Reads C4-format shards (*.json.gz, *.jsonl, lines with `text`), plain text (.txt, .md) and Parquet (a
`text` column). A document longer than the context is cut into non-overlapping windows; nothing is
dropped silently: a line without text is counted and reported. Finished parts are kept across a kill.
"""

import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import numpy as np
import pyarrow.parquet as parquet
import sentencepiece
from tokenizers import Tokenizer

from provider.recipe import CorpusConfig
from provider.storage import digest_files, find_files, is_url, open_file, store_errors_named
from shared.errors import DocumentsError
from shared.files import write_atomic
from shared.pieces import Pieces
from shared.tokenizer import cut_windows, encode_document

SUFFIXES = (".json.gz", ".jsonl.gz", ".jsonl", ".json", ".txt", ".md", ".parquet")
SENTENCEPIECE_THREADS = 4
"""Fixed, because SentencePiece sums floats per thread: another number gives other scores."""
LONGEST_SENTENCE_BYTES = 65_536
"""Longer lines are cut before SentencePiece, which would leave them out."""


@dataclass(frozen=True)
class CorpusFile:
    """One file of the corpus; `name` is its path below the corpus folder."""

    path: str
    """A path of this machine, or a URL."""
    name: str
    is_heldout: bool
    etag: str = ""
    """An object's size and ETag; nothing for a local file."""


def list_corpus(folder: Path | str, config: CorpusConfig) -> list[CorpusFile]:
    """Return the corpus files in the order of their names; raises DocumentsError if there are none."""
    if not is_url(folder) and not Path(folder).is_dir():
        raise DocumentsError(f"{folder}: no such corpus folder", hint="--corpus DIR or URL names it")

    def match(patterns: Sequence[str]) -> dict[str, tuple[str, str]]:
        found = find_files(folder, patterns) if patterns else {}
        return {name: place for name, place in found.items() if name.endswith(SUFFIXES)}

    heldout = match(config.heldout)
    train = {name: place for name, place in match(config.train).items() if name not in heldout}
    for split, found, patterns in (
        ("train", train, config.train),
        ("heldout", heldout, config.heldout),
    ):
        if patterns and not found:
            raise DocumentsError(
                f"{folder}: no file matches corpus.{split} {list(patterns)}",
                hint=f"files must end in one of: {' '.join(SUFFIXES)}",
            )
    return [
        CorpusFile(path, name, name in heldout, etag)
        for name, (path, etag) in sorted((train | heldout).items())
    ]


def identify(files: Sequence[CorpusFile], work: Path) -> list[list[object]]:
    """Return what decides whether the corpus has changed: of each file name, split and content."""
    digests = digest_files([file.path for file in files if not file.etag], work)
    return [[file.name, file.is_heldout, file.etag or digests[file.path]] for file in files]


def read_documents(path: Path | str, rejected: list[int], etag: str = "") -> Iterator[str]:
    """Yield the documents of one file; lines that hold no text are counted in rejected[0].

    A file that cannot be read to its end is an error, never a shorter file: datatrove's reader of JSON
    lines passes over a bad byte and the rest of its file.
    """
    name = str(path)
    try:
        with store_errors_named(name) if is_url(name) else nullcontext(), open_file(path, etag) as file:
            yield from _documents(name, file, rejected)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DocumentsError(
            f"{path}: cannot be read ({type(error).__name__})",
            hint="repair the file, or leave it out with corpus.train",
        ) from None


def _documents(name: str, file: IO[bytes], rejected: list[int]) -> Iterator[str]:
    if name.endswith(".parquet"):
        table = parquet.ParquetFile(file)
        if "text" not in table.schema_arrow.names:
            raise DocumentsError(f"{name}: Parquet without a `text` column")
        for batch in table.iter_batches(columns=["text"], batch_size=1024):
            for text in batch.column(0).to_pylist():
                if text:
                    yield text
                else:
                    rejected[0] += 1
    elif name.endswith((".txt", ".md")):
        text = file.read().decode("utf-8").removeprefix("\ufeff")
        if text.strip():
            yield text
        else:
            rejected[0] += 1
    else:
        with cast(IO[bytes], gzip.open(file)) if name.endswith(".gz") else file as lines:
            for line in lines:
                try:
                    entry = json.loads(line)
                    text = entry["text"]
                    text.encode()
                except (ValueError, KeyError, TypeError, AttributeError):
                    text = ""
                if text:
                    yield text
                else:
                    rejected[0] += 1


def _sentences(files: list[CorpusFile], sample_bytes: int) -> Iterator[str]:
    train = [file for file in files if not file.is_heldout]
    budget = sample_bytes // len(train)
    for file in train:
        left = budget
        for text in read_documents(file.path, [0], file.etag):
            for line in text.split("\n"):
                for start in range(0, len(line), LONGEST_SENTENCE_BYTES // 4):
                    yield line[start : start + LONGEST_SENTENCE_BYTES // 4]
            left -= len(text.encode())
            if left <= 0:
                break


def train_sentencepiece(files: list[CorpusFile], vocab_size: int, sample_bytes: int) -> bytes:
    """Return a SentencePiece unigram model; deterministic for the same files.

    Source: sentencepiece `SentencePieceTrainer`; options match the template in shared/tokenizer.py.
    Raises DocumentsError when the text is too little for the vocabulary.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_sentences(files, sample_bytes),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            split_digits=True,
            character_coverage=0.9995,
            max_sentence_length=LONGEST_SENTENCE_BYTES,
            num_threads=SENTENCEPIECE_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise DocumentsError(
            f"cannot learn {vocab_size} pieces from {len(files)} corpus files"
            f" (SentencePiece: {str(error)[-80:]})",
            hint="use more text, or a smaller model.vocab_size",
        ) from None
    return model.getvalue()


def train_tokenizer(files: list[CorpusFile], vocab_size: int, sample_bytes: int) -> Pieces:
    """Learn the pieces of `shared.tokenizer`'s template, with `train_sentencepiece`."""
    trained = sentencepiece.SentencePieceProcessor(
        model_proto=train_sentencepiece(files, vocab_size, sample_bytes)
    )
    return [(trained.id_to_piece(i), trained.get_score(i)) for i in range(vocab_size)]


def write_part(
    folder: Path, number: int, file: CorpusFile, tokenizer: Tokenizer, context: int, every: int
) -> dict[str, int]:
    """Tokenize one corpus file into `tokens-N.npy` and `windows-N.npz`; return its counts.

    tokens: (n,) uint16 or uint32. windows: starts (w,) int64, lengths (w,) int32, is_heldout (w,) bool.
    """
    kind = np.uint16 if tokenizer.get_vocab_size() <= 65_536 else np.uint32
    rejected = [0]
    tokens, starts, lengths, is_heldout = [], [], [], []
    position = n_documents = 0
    for index, text in enumerate(read_documents(file.path, rejected, file.etag)):
        ids = encode_document(tokenizer, text).astype(kind)
        heldout = file.is_heldout or (every > 0 and (number + index) % every == 0)
        for start, length in cut_windows(len(ids), context):
            starts.append(position + start)
            lengths.append(length)
            is_heldout.append(heldout)
        tokens.append(ids)
        position += len(ids)
        n_documents += 1
    stream = np.concatenate(tokens) if tokens else np.zeros(0, kind)
    with write_atomic(folder / f"tokens-{number:05}.npy") as out:
        np.save(out, stream)
    with write_atomic(folder / f"windows-{number:05}.npz") as out:
        np.savez(
            out,
            starts=np.asarray(starts, np.int64),
            lengths=np.asarray(lengths, np.int32),
            is_heldout=np.asarray(is_heldout, bool),
        )
    return {"documents": n_documents, "rejected": rejected[0], "tokens": position}
