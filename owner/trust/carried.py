"""What an open bundle carries beside weights: a tokenizer, which a child tries first, and an embedder."""

from pathlib import Path

import torch
from tokenizers import Tokenizer

from owner.trust.trying import try_tokenizer
from shared.bundle import Bundle
from shared.embedder import WEIGHTS_SHA256, find_embedder_files
from shared.embedding import Embedder, load_embedder
from shared.errors import BundleError
from shared.pieces import build_tokenizer, read_pieces


def open_tokenizer(bundle: Bundle) -> Tokenizer:
    """Return the tokenizer that a bundle carries, its pieces checked, after a child has tried it.

    Raises BundleError.
    """
    content, vocab_size = bundle.file("tokenizer.json"), bundle.manifest.model.vocab_size
    try:
        try_tokenizer(content, vocab_size)
    except BundleError as error:
        raise BundleError(f"{bundle.path}: {error}", error.hint) from None
    return build_tokenizer(read_pieces(content, vocab_size))


def open_embedder(bundle: Bundle, folder: Path | None, device: torch.device) -> Embedder:
    """Return the embedder that made a bundle's centroids, from the bundle, the folder or the package.

    Raises BundleError when the bundle names another; PlanearlyError when its files are not there.
    """
    entry = bundle.manifest.embedder
    if entry.sha256 != WEIGHTS_SHA256:
        raise BundleError(
            f"{bundle.path}: its centroids belong to embedder {entry.sha256[:16]}...,"
            f" expected {WEIGHTS_SHA256[:16]}...",
            hint="use a planearly that knows this embedder",
        )
    if entry.embedded:
        return load_embedder(bundle.file("embedder.safetensors"), bundle.file("embedder-vocab.txt"), device)
    return load_embedder(*find_embedder_files(folder), device)
