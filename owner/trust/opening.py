"""Opening what a provider sent: vouched for, not older than seen, digests checked; tokenizer, embedder."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from owner.trust.remembering import check_not_rolled_back, remember_version
from owner.trust.trying import try_tokenizer
from owner.trust.vouching import (
    Trust,
    check_vouched,
    describe_voucher,
    explain_unknown,
    related_key_ids,
    usable_keys,
)
from shared.bundle import Bundle, open_bundle
from shared.embedding import WEIGHTS_SHA256, Embedder, find_embedder_files, load_embedder
from shared.errors import BundleError, UnknownKeyError
from shared.pieces import build_tokenizer, read_pieces
from shared.progress import Say, show


def open_vouched(path: Path, stack: ExitStack, trust: Trust, say: Say) -> tuple[Bundle, dict[str, Any]]:
    """Open a bundle that this owner's trust covers; return it and who vouches. Digests are not checked.

    It is closed with the stack. Raises SignatureError, BundleError.
    """
    try:
        bundle = stack.enter_context(open_bundle(path, usable_keys(trust)))
    except UnknownKeyError as error:
        raise explain_unknown(trust, error) from None
    voucher = check_vouched(trust, bundle)
    if line := describe_voucher(voucher):
        say(f"trust file   {line}")
    return bundle, voucher


def open_trusted(path: Path, stack: ExitStack, trust: Trust, say: Say) -> tuple[Bundle, dict[str, Any]]:
    """Do the same for a bundle that is to be used: no older than one seen, every digest checked.

    Raises SignatureError, BundleError.
    """
    bundle, voucher = open_vouched(path, stack, trust, say)
    manifest = bundle.manifest
    check_not_rolled_back(related_key_ids(trust, bundle.key_id), manifest.name, manifest.version)
    if manifest.kind != "mix":  # of a mixture only the chosen expert is read, and checked then
        bundle.verify_all(lambda done, total: show(done, total, "bytes"))
    remember_version(bundle.key_id, manifest.name, manifest.version)
    return bundle, voucher


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
