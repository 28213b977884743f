"""What is in a bundle, after every digest has been checked."""

from pathlib import Path
from typing import Any

from owner.trust import trusted_keys
from shared.bundle import open_bundle


def inspect_bundle(path: Path) -> dict[str, Any]:
    """Verify a bundle with the pinned keys; return its signed manifest, key id and size in bytes.

    Raises SignatureError, BundleError.
    """
    with open_bundle(path, trusted_keys()) as bundle:
        bundle.verify_all()
        return {
            "file": path.name,
            "bytes": bundle.size_bytes,
            "key_id": bundle.key_id,
            "verified": True,
            "manifest": bundle.manifest.raw,
        }


def describe_bundle(found: dict[str, Any]) -> str:
    """Return `inspect_bundle`'s answer as aligned lines for a person."""
    manifest = found["manifest"]
    model, training = manifest["model"], manifest["training"]
    rows = [
        ("bundle", f"{manifest['name']} version {manifest['version']} of {manifest['created']}"),
        ("file", f"{found['file']} · {found['bytes']:,} bytes · every digest verified"),
        ("signed by", f"key {found['key_id']}, which you trust"),
        ("kind", f"{manifest['kind']} · {manifest['n_experts']} experts"),
        (
            "model",
            f"{model['architecture']} · {model['n_layers']} layers · width {model['width']} ·"
            f" ffn {model['ffn_width']} · vocabulary {model['vocab_size']:,} ·"
            f" context {model['context_tokens']:,} tokens",
        ),
    ]
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
        ("clusters", f"{manifest['clusters']['n']}"),
        (
            "training",
            f"{training['steps']:,} steps · {training['tokens']:,} tokens ·"
            f" generic held-out {training['heldout_loss']:.3f} nats/token",
        ),
        ("corpus", f"{training['corpus']} {len(training['sources'])} sources (--json lists them)"),
        ("license", manifest["license"]),
    ]
    return "\n".join(f"{name:<11} {text}" for name, text in rows)
