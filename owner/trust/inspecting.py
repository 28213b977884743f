"""What is in a bundle, after every digest has been checked."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from owner.trust.opening import open_vouched
from owner.trust.vouching import describe_voucher, read_trust
from shared.bundle import Bundle
from shared.card import make_card
from shared.contents import COUNTS
from shared.detached import read_p256_public_key, verify_detached
from shared.progress import Say, show, stage

LARGEST_SHOWN = 5
"""Clusters whose labels are shown. Ours."""


def inspect_bundle(
    path: Path,
    say: Say,
    stale_reason: str | None = None,
    detached: Path | None = None,
    detached_key: Path | None = None,
) -> dict[str, Any]:
    """Verify a bundle with all that this owner trusts; return its manifest, model card, key id and size.

    With a detached signature and its key, that is verified too. Raises SignatureError, BundleError.
    """
    with ExitStack() as stack:
        bundle, voucher = open_vouched(path, stack, read_trust(stale_reason), say)
        with stage("verify"):
            bundle.verify_all(lambda done, total: show(done, total, "bytes"))
        if detached is not None and detached_key is not None:
            verify_detached(path, detached, read_p256_public_key(detached_key))
        return {
            "file": path.name,
            "bytes": bundle.size_bytes,
            "key_id": bundle.key_id,
            "verified": True,
            "detached_verified": detached is not None,
            "manifest_sha256": bundle.manifest.sha256,
            "trust": voucher,
            "largest_clusters": _largest_clusters(bundle),
            "card": make_card(bundle),
            "manifest": bundle.manifest.raw,
        }


def _largest_clusters(bundle: Bundle) -> list[dict[str, Any]]:
    """Return number, windows of the generic corpus and label of the largest clusters, if they have labels."""
    if not bundle.manifest.cluster_terms:
        return []
    counts_K = bundle.array(COUNTS)
    largest = np.argsort(-counts_K, kind="stable")[:LARGEST_SHOWN].tolist()
    return [{"cluster": c, "windows": int(counts_K[c]), "label": bundle.manifest.label(c)} for c in largest]


def describe_bundle(found: dict[str, Any]) -> str:
    """Return `inspect_bundle`'s answer as aligned lines for a person."""
    manifest = found["manifest"]
    model, training = manifest["model"], manifest["training"]
    rows = [
        ("bundle", f"{manifest['name']} version {manifest['version']} of {manifest['created']}"),
        ("file", f"{found['file']} · {found['bytes']:,} bytes · every digest verified"),
        ("signed by", f"key {found['key_id']}, which you trust"),
        ("vouched by", describe_voucher(found["trust"]) or "yourself: you pinned the key"),
        ("manifest", f"sha256 {found['manifest_sha256']}"),
        ("kind", f"{manifest['kind']} · {manifest['n_experts']} experts"),
        (
            "model",
            f"{model['architecture']} · {model['n_layers']} layers · width {model['width']} ·"
            f" ffn {model['ffn_width']} · vocabulary {model['vocab_size']:,} ·"
            f" context {model['context_tokens']:,} tokens",
        ),
    ]
    if found["detached_verified"]:
        rows.insert(4, ("detached", "OpenSSF signature file verified with the key you named"))
    if "projection" in manifest:
        projection = manifest["projection"]
        rows.append(
            (
                "projection",
                f"capacity {projection['capacity']} · expert size {projection['expert_size']} ·"
                f" {len(projection['linears'])} projected layers",
            )
        )
    if manifest["comparison"]:
        rows.append(("also holds", ", ".join(manifest["comparison"])))
    embedder = manifest["embedder"]
    place = "inside" if embedder["embedded"] else "to be found on this machine"
    rows += [
        ("embedder", f"{embedder['name']} · sha256 {embedder['sha256'][:16]}... · {place}"),
        ("clusters", f"{manifest['clusters']['n']}{' · the largest:' if found['largest_clusters'] else ''}"),
    ]
    for cluster in found["largest_clusters"]:
        share = cluster["windows"] / max(1, manifest["clusters"]["corpus_windows"])
        rows.append(("", f"{cluster['cluster']:>5} · {share:6.1%} of windows · {cluster['label']}"))
    rows += [
        (
            "training",
            f"{training['steps']:,} steps · {training['tokens']:,} tokens ·"
            f" generic held-out {training['heldout_loss']:.3f} nats/token",
        ),
        ("corpus", f"{training['corpus']} {len(training['sources'])} sources (--json lists them)"),
        ("license", manifest["license"]),
    ]
    return "\n".join(f"{name:<11} {text}" for name, text in rows)
