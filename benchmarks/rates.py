"""Rates of one CPU core, for benchmarks/scaling.toml: products, memory, text, vectors, small training runs.

  python benchmarks/rates.py CORPUS.json.gz

One thread, medians; prints TOML. Seconds are CPU seconds of the process, so that other work on the machine
takes nothing but cache and memory away; its load is printed. The 32k vocabulary is learned from the corpus
file, which has to have some 10 MB of text.
"""

import argparse
import hashlib
import os
import platform
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from provider.clustering import fit_centroids, order_part, write_shard
from provider.corpus import CorpusFile, read_documents, train_tokenizer
from shared.batches import Sampler, Windows, pack_rows
from shared.device import choose_device, keep_freed_memory
from shared.embedder import find_embedder_files
from shared.embedding import embed_texts, load_embedder
from shared.pieces import build_tokenizer
from shared.projection import ProjectedNetwork, feed_forward_linears
from shared.sizes import PRESETS
from shared.slm import EOS_ID, build_slm
from shared.tokenizer import decode_window, encode_document
from shared.training import train_step, trained_parameters

PRESET, CAPACITY = "laptop", 16
"""The small model of the training runs, and its h = k = m."""
ROWS = (1, 2, 4, 8, 16)
"""Rows per step of the training runs, one microbatch each."""


def median_s(deed: Callable[[], object], repeats: int = 5) -> float:
    """Return the median CPU time of a deed, after one call that is not counted."""
    durations = []
    for _ in range(repeats + 1):
        start = time.process_time()
        deed()
        durations.append(time.process_time() - start)
    return statistics.median(durations[1:])


def peak_bytes(deed: Callable[[], object]) -> int:
    """Return the most memory that Python and NumPy held at a time during a deed."""
    tracemalloc.start()
    deed()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def hardware() -> dict[str, float]:
    """Products at the sizes of the models below, a sum over more memory than any cache, and SHA-256."""
    wide, narrow = torch.randn(2048, 1024), torch.randn(1024, 1024)
    flops = 2 * 2048 * 1024 * 1024
    low, thin = wide.bfloat16(), narrow.bfloat16()
    big, out = torch.ones(2**26), torch.empty(2**26)
    content = bytes(2**26)
    return {
        "bf16_flops": flops / median_s(lambda: low @ thin),
        "f32_flops": flops / median_s(lambda: wide @ narrow),
        "memory_bytes_s": 2 * 4 * 2**26 / median_s(lambda: torch.add(big, 1, out=out)),
        "sha256_bytes_s": 2**26 / median_s(lambda: hashlib.sha256(content).digest()),
    }


def text(path: Path) -> dict[str, float]:
    """What happens to a byte of text: read, tokenized, turned back, cut into word pieces, embedded."""
    documents: list[str] = []
    read_s = median_s(lambda: documents.extend(read_documents(path, [0])), 1)
    documents = documents[: len(documents) // 2]
    total = sum(len(text.encode()) for text in documents)
    pieces = train_tokenizer([CorpusFile(path, path.name, False)], 32_768, 12_000_000)
    tokenizer = build_tokenizer(pieces)
    sample = documents[:1000]
    sample_bytes = sum(len(text.encode()) for text in sample)
    ids = [encode_document(tokenizer, text) for text in sample]
    embedder = load_embedder(*find_embedder_files(), choose_device("cpu"))
    word_pieces = embedder.tokenizer.encode_batch_fast(sample, add_special_tokens=False)
    n_pieces = sum(len(encoding.ids) for encoding in word_pieces)
    few = [embedder.tokenizer.decode(word_pieces[0].ids[:1] * 254)] * 32
    encode_pieces = embedder.tokenizer.encode_batch_fast
    return {
        "read_bytes_s": total / (read_s / 2),
        "tokenize_bytes_s": sample_bytes
        / median_s(lambda: [encode_document(tokenizer, text) for text in sample], 3),
        "decode_bytes_s": sample_bytes / median_s(lambda: [decode_window(tokenizer, i) for i in ids], 3),
        "word_piece_bytes_s": sample_bytes / median_s(lambda: encode_pieces(sample), 3),
        "bytes_per_token": sample_bytes / sum(len(i) - 1 for i in ids),
        "bytes_per_word_piece": sample_bytes / n_pieces,
        "embedded_sub_windows_s": 32 / median_s(lambda: embed_texts(embedder, few), 3),
    }


def windows(n: int = 40_000) -> dict[str, float]:
    """What a window costs in k-means, in sorting by cluster and in packing."""
    k = 32
    generator = np.random.default_rng(0)
    lengths = np.minimum(1024, 1 + generator.exponential(480, n)).astype(np.int32)
    starts = np.concatenate([[0], np.cumsum(lengths[:-1], dtype=np.int64)])
    clusters = generator.integers(0, k, n).astype(np.int32)
    stream = np.zeros(int(lengths.sum()), np.uint16)
    vectors = generator.standard_normal((n, 384), np.float32)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "tokens-00000.npy", stream)
        np.savez(folder / "windows-00000.npz", starts=starts, lengths=lengths, is_heldout=np.zeros(n, bool))
        order_part(folder, folder, 0, clusters, k)

        def sort() -> None:
            with tempfile.TemporaryDirectory(dir=folder) as into:
                for cluster in range(k):
                    write_shard(folder, folder, Path(into), 1, "train", cluster)

        sort_s = median_s(sort, 1)
        sort_bytes = peak_bytes(sort)
    n_packed = 100 * n  # which packing alone can do without their tokens
    many = np.minimum(1024, 1 + generator.exponential(480, n_packed)).astype(np.int32)
    none = np.zeros(n_packed, np.int32)
    packed = Windows([], none, none, many, np.sort(generator.integers(0, k, n_packed).astype(np.int32)))
    return {
        "kmeans_window_clusters_s": n * k / median_s(lambda: fit_centroids(vectors, k, 1, 0), 1),
        "sort_windows_s": n / sort_s,
        "sort_bytes_per_window": sort_bytes / n,
        "pack_windows_s": n_packed / median_s(lambda: pack_rows(packed, 1024), 1),
        "pack_bytes_per_window": peak_bytes(lambda: pack_rows(packed, 1024)) / n_packed,
    }


def training(rows: int, pairs: int = 9) -> dict[str, float]:
    """Tokens per second of the plain model, and the projected network's time over it, step by step."""
    sizes = PRESETS[PRESET]
    n = 4 * rows
    stream = np.random.default_rng(0).integers(EOS_ID + 1, sizes.vocab_size, n * sizes.context_tokens)
    full = np.full(n, sizes.context_tokens, np.int32)
    rows_start = np.arange(n, dtype=np.int64) * sizes.context_tokens
    data = Windows([stream], np.zeros(n, np.int32), rows_start, full, np.zeros(n, np.int32))
    batches = Sampler(data, sizes.context_tokens, rows, rows, 0).step(0)
    steps = []
    for is_projected in (False, True):
        model = build_slm(sizes)
        names = feed_forward_linears(model)
        network = ProjectedNetwork(model, names, *3 * [CAPACITY]) if is_projected else None
        parameters = list(trained_parameters(model, network).values())
        steps.append((model, network, parameters, torch.optim.Adam(parameters, lr=1e-4, fused=True)))
    seconds: list[list[float]] = [[], []]
    for _ in range(pairs + 2):
        for kind, (model, network, parameters, optimizer) in enumerate(steps):
            start = time.process_time()
            optimizer.zero_grad(set_to_none=True)
            train_step(model, network, batches)
            torch.nn.utils.clip_grad_norm_(parameters, 5.0)
            optimizer.step()
            seconds[kind].append(time.process_time() - start)
    slm, pn = seconds[0][2:], seconds[1][2:]
    ratios = [b / a for a, b in zip(slm, pn, strict=True)]
    return {
        "tokens_per_step": rows * sizes.context_tokens,
        "slm_tokens_s": round(rows * sizes.context_tokens / statistics.median(slm)),
        "pn_over_slm": round(statistics.median(ratios), 3),
        "quartiles": [round(q, 3) for q in statistics.quantiles(ratios, n=4)[::2]],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("corpus", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["RAYON_NUM_THREADS"] = "1"
    keep_freed_memory()
    print(
        f"# {platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, load {os.getloadavg()}"
    )
    rates = hardware() | text(options.corpus) | windows()
    print("[core]", *(f"{name} = {value:.3g}" for name, value in rates.items()), sep="\n", flush=True)
    for rows in ROWS:
        print("[[training]]", *(f"{name} = {value}" for name, value in training(rows).items()), sep="\n")
    print(f"# load {os.getloadavg()}")


if __name__ == "__main__":
    main()
