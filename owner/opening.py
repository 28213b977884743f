"""Opening what a provider sent: trusted, not older than seen, every digest checked; tokenizer, embedder."""

from contextlib import ExitStack
from pathlib import Path

import torch
from tokenizers import Tokenizer

from owner.trust import check_not_rolled_back, remember_version, trusted_keys
from owner.trying import try_tokenizer
from shared.bundle import Bundle, open_bundle
from shared.embedding import WEIGHTS_SHA256, Embedder, find_embedder_files, load_embedder
from shared.errors import BundleError
from shared.pieces import build_tokenizer, read_pieces


def open_trusted(path: Path, stack: ExitStack) -> Bundle:
    """Open a bundle that a pinned key signed and that is no older than one seen; check every digest.

    It is closed with the stack. Raises SignatureError, BundleError.
    """
    bundle = stack.enter_context(open_bundle(path, trusted_keys()))
    manifest = bundle.manifest
    check_not_rolled_back(bundle.key_id, manifest.name, manifest.version)
    if manifest.kind != "mix":  # of a mixture only the chosen expert is read, and checked then
        bundle.verify_all()
    remember_version(bundle.key_id, manifest.name, manifest.version)
    return bundle


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
