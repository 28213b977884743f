"""What this machine does and what this corpus holds, measured in some seconds, for a plan of a release.

Files of the corpus are read up to a megabyte of text, a small vocabulary is learned from it, and it is
tokenized, its words are counted, and some of it is embedded. Nothing of it is kept.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.feature_extraction.text import CountVectorizer

from provider.corpus import CorpusFile, read_documents, train_tokenizer
from provider.costs import Machine
from provider.recipe import Recipe
from shared.device import choose_device, has_bf16
from shared.embedder import WIDTH, find_embedder_files
from shared.embedding import embed_texts, load_embedder
from shared.errors import DocumentsError
from shared.pieces import build_tokenizer
from shared.tokenizer import decode_window, encode_document

SAMPLE_BYTES = 1_000_000
READ_S = 5.0
"""Reading takes no longer than this; how much text a file not read to its end holds is a guess."""
COMPRESSED_RATIO = 2.6
"""Bytes of text per byte of a file too long to be read here: C4's 794 GB in 305 (benchmarks/scaling.toml)."""
FEWEST_PIECES = 262
"""Not many more than the bytes that every vocabulary has."""
SAMPLE_PIECES = 2048
"""Vocabulary learned here at most; a larger one takes more text and time."""
TOKENS_LESS_PER_DOUBLING = 0.90
"""Tokens of the same text when the vocabulary doubles: a mixed corpus had 2.86 bytes a token with 2,048
pieces, another 4.39 with 32,768."""
EMBEDDED_WINDOWS = 8
KMEANS_WINDOWS, KMEANS_CLUSTERS = 4000, 32


@dataclass(frozen=True)
class Text:
    """A corpus, estimated from a part of it, and what happens to a byte of it on one core."""

    file_bytes: int
    text_bytes: float
    documents: float
    tokens: float
    windows: float
    is_counted: bool
    """Whether the files that stand for all were read to their ends."""
    read_bytes_s: float
    learn_bytes_s: float
    tokenize_bytes_s: float
    count_words_bytes_s: float
    embed_windows_s: float
    kmeans_window_clusters_s: float


def _timed(run: Callable[[], object], least_runs: int = 1) -> float:
    """Return the shortest of some runs, in seconds."""
    times = []
    for _ in range(least_runs):
        begin = time.perf_counter()
        run()
        times.append(max(1e-9, time.perf_counter() - begin))
    return min(times)


def size_of(file: CorpusFile) -> int:
    """Return a corpus file's size in bytes; an object's stands in its ETag."""
    return int(file.etag.split(":", 1)[0]) if file.etag else Path(file.path).stat().st_size


def measure_text(files: list[CorpusFile], recipe: Recipe, device: str, embedder: Path | None) -> Text:
    """Measure on some training files. Raises DocumentsError, as a release would."""
    train = [file for file in files if not file.is_heldout]
    total, sample, seen, n_documents, read_bytes = sum(map(size_of, files)), list[str](), 0, 0, 0
    begin, is_counted = time.perf_counter(), True
    for index in np.random.default_rng(0).permutation(len(train)):
        file = train[index]
        for document in read_documents(file.path, [0], file.etag):
            if seen < SAMPLE_BYTES:
                sample.append(document)
            seen += len(document.encode())
            n_documents += 1
            is_counted = time.perf_counter() - begin < READ_S
            if not is_counted:
                break
        read_bytes += size_of(file)
        if not is_counted or seen >= SAMPLE_BYTES:
            break
    read_s = time.perf_counter() - begin
    if not sample:
        raise DocumentsError(f"{len(train)} training files: no document with text", hint="use more text")
    ratio = seen / read_bytes if is_counted else COMPRESSED_RATIO
    text_bytes = ratio * total
    sample_bytes = sum(len(document.encode()) for document in sample)
    pieces, learn_s = _learned(sample, recipe.model.vocab_size)
    tokenizer = build_tokenizer(pieces)
    begin = time.perf_counter()
    ids = [encode_document(tokenizer, document) for document in sample]
    tokenize_s = time.perf_counter() - begin
    doublings = math.log2(recipe.model.vocab_size / len(pieces))
    fewer = TOKENS_LESS_PER_DOUBLING**doublings
    context = recipe.model.context_tokens
    scale = text_bytes / sample_bytes
    windows = sum(math.ceil(len(document) * fewer / context) for document in ids)
    count_s = _timed(lambda: CountVectorizer(analyzer=str.split).fit(sample))
    text = decode_window(tokenizer, np.concatenate(ids)[: round(context / fewer)])
    loaded = load_embedder(*find_embedder_files(embedder), choose_device(device))
    embed_texts(loaded, [text])
    embed_s = _timed(lambda: embed_texts(loaded, [text] * EMBEDDED_WINDOWS))
    points = np.random.default_rng(0).normal(size=(KMEANS_WINDOWS, WIDTH)).astype(np.float32)
    kmeans_s = _timed(lambda: KMeans(KMEANS_CLUSTERS, n_init=1, random_state=0).fit(points))
    return Text(
        file_bytes=total,
        text_bytes=text_bytes,
        documents=n_documents / seen * text_bytes,
        tokens=sum(map(len, ids)) * fewer * scale,
        windows=windows * scale,
        is_counted=is_counted,
        read_bytes_s=seen / read_s,
        learn_bytes_s=sample_bytes / learn_s,
        tokenize_bytes_s=sample_bytes / tokenize_s,
        count_words_bytes_s=sample_bytes / count_s,
        embed_windows_s=EMBEDDED_WINDOWS / embed_s,
        kmeans_window_clusters_s=KMEANS_WINDOWS * KMEANS_CLUSTERS / kmeans_s,
    )


def _learned(sample: list[str], vocab_size: int) -> tuple[list[tuple[str, float]], float]:
    """Return pieces learned from some documents, and the seconds it took: fewer where the sample is
    too small for so many, which the whole corpus need not be.
    """
    with TemporaryDirectory() as folder:
        path = Path(folder) / "sample.txt"
        path.write_text("\n".join(sample), encoding="utf-8")
        file, n_pieces = CorpusFile(str(path), path.name, False), min(vocab_size, SAMPLE_PIECES)
        while True:
            begin = time.perf_counter()
            try:
                return train_tokenizer([file], n_pieces, SAMPLE_BYTES), time.perf_counter() - begin
            except DocumentsError:
                n_pieces = n_pieces * 7 // 8
                if n_pieces < FEWEST_PIECES:
                    raise


def measure_machine(device_name: str) -> Machine:
    """Return the peaks of a device in large products, and in a sum over more memory than any cache."""
    device = choose_device(device_name)
    n, size = (1024, 2**26) if device.type == "cpu" else (8192, 2**28)
    wide, big = torch.randn(n, n, device=device), torch.ones(size, device=device)
    low, out = wide.bfloat16(), torch.empty_like(big)

    def seconds(run: Callable[[], torch.Tensor]) -> float:
        def once() -> float:
            return float(run().flatten()[0])  # which waits until a GPU has done it

        once()
        return _timed(once, 3)

    f32_flops = 2 * n**3 / seconds(lambda: wide @ wide)
    bf16_flops = 2 * n**3 / seconds(lambda: low @ low) if has_bf16(device) else f32_flops
    memory_bytes_s = 2 * 4 * size / seconds(lambda: torch.add(big, 1, out=out))
    return Machine(bf16_flops, f32_flops, memory_bytes_s, source="measured here")
