"""Embedding and assigning windows, against sentence-transformers' `encode` of the same texts.

  python benchmarks/embedding_speed.py [--windows 512] [--clusters 16]

Texts are Python's language reference, which every Python carries, cut to fit one sub-window, so that both
do the same work. Both load the same files, batch as many texts, and use bfloat16 products where the
processor has them; sentence-transformers is also told as it comes, in float32. Assigning is in our time.
"""

import time
from argparse import Namespace
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import torch
from side_by_side import DEVICE, Compare, Figures, options_of, require, take_turns

from shared.clusters import assign_clusters
from shared.device import choose_device, has_bf16
from shared.embedder import PACKAGE, SUB_WINDOW_PIECES, WIDTH, find_embedder_files
from shared.embedding import BATCH_PIECES, embed_texts, load_embedder

WORDS = 120
"""Of a text: few enough for one sub-window of nearly all; longer ones are left out."""


def _texts(options: Namespace) -> list[str]:
    words = " ".join(topics[name] for name in sorted(topics)).split()
    embedder = load_embedder(*find_embedder_files(), torch.device("cpu"))
    texts = [" ".join(words[i : i + WORDS]) for i in range(0, len(words), WORDS)]
    encodings = embedder.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    fitting = [text for text, e in zip(texts, encodings, strict=True) if len(e.ids) <= SUB_WINDOW_PIECES]
    return (fitting * (1 + options.windows // len(fitting)))[: options.windows]


def planearly(options: Namespace) -> Figures:
    texts = _texts(options)
    embedder = load_embedder(*find_embedder_files(), choose_device(options.device))
    centroids = np.random.default_rng(0).standard_normal((options.clusters, WIDTH)).astype(np.float32)
    embed_texts(embedder, texts[:8])
    start = time.perf_counter()
    vectors = embed_texts(embedder, texts)
    assign_clusters(vectors, centroids)
    return _figures(time.perf_counter() - start, vectors)


def _figures(seconds: float, vectors: np.ndarray) -> Figures:
    return {"seconds": seconds, "windows_per_s": len(vectors) / seconds, "sum": float(np.abs(vectors).sum())}


def sentence_transformers(options: Namespace, dtype: str) -> Figures:
    require("sentence_transformers", "sentence-transformers")
    from importlib.util import find_spec
    from pathlib import Path

    from sentence_transformers import SentenceTransformer

    texts = _texts(options)
    spec = find_spec(PACKAGE)
    assert spec is not None
    assert spec.origin is not None
    folder = str(Path(spec.origin).parent / "model")
    model: Any = SentenceTransformer(
        folder, device=options.device, local_files_only=True, model_kwargs={"dtype": dtype}
    )
    batch = BATCH_PIECES // (SUB_WINDOW_PIECES + 2)
    settings = {"batch_size": batch, "show_progress_bar": False, "normalize_embeddings": True}
    model.encode(texts[:8], **settings)
    start = time.perf_counter()
    vectors = model.encode(texts, **settings)
    return _figures(time.perf_counter() - start, np.asarray(vectors, np.float32))


def main() -> None:
    options = options_of(
        __doc__,
        ("--windows", {"type": int, "default": 512}),
        ("--clusters", {"type": int, "default": 16}),
        DEVICE,
    )
    if options.toy:
        options.windows = 16
    same = "bfloat16" if has_bf16(choose_device(options.device)) else "float32"
    systems = {
        "planearly": planearly,
        "encode": lambda o: sentence_transformers(o, same),
        "encode float32": lambda o: sentence_transformers(o, "float32"),
    }
    compares = [Compare("planearly", peer, goal=1.1) for peer in ("encode", "encode float32")]
    take_turns("embed and assign windows", systems, compares, options)


if __name__ == "__main__":
    main()
