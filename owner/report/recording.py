"""Parts of report.json that take more than copying: bundles, perplexities with intervals, labels, versions.

owner/specializing.py puts them together; report.html is made of nothing else.
"""

import hashlib
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from owner.choice.candidates import SLM
from owner.documents.intervals import LEVEL, RESAMPLES
from owner.documents.windows import Split
from owner.report.intervals import perplexity_intervals
from owner.training.adapting import WITHOUT_DP, Adapted
from owner.training.scoring import heldout_tokens
from shared.bundle import Bundle
from shared.manifest import Manifest

PACKAGES = ("planearly", "torch", "transformers", "tokenizers", "safetensors", "numpy")


def describe_bundle(bundle: Bundle) -> dict[str, Any]:
    """Return which bundle it was, to the digest of its signed manifest."""
    manifest = bundle.manifest
    return {
        "name": manifest.name,
        "version": manifest.version,
        "key_id": bundle.key_id,
        "file": bundle.path.name,
        "bytes": bundle.size_bytes,
        "created": manifest.created,
        "kind": manifest.kind,
        "license": manifest.license,
        "manifest_sha256": manifest.sha256,
        "tensors": len(manifest.tensors),
        "every_digest_checked": manifest.kind != "mix",
    }


def perplexities(adapted: Adapted) -> dict[str, float]:
    """Return held-out perplexities before and after, of what was kept and of what it is compared with."""
    figures = adapted.figures
    found = {when: figures[adapted.chosen.name][when] for when in ("before", "after")}
    if WITHOUT_DP in figures:
        found["without_dp"] = figures[WITHOUT_DP]["after"]
    if SLM in figures:
        found |= {f"slm_{when}": figures[SLM][when] for when in ("before", "after")}
    return found


def uncertainty(adapted: Adapted, split: Split) -> dict[str, Any]:
    """Return the intervals of perplexities and of ratios between them, and what they were drawn from."""
    chosen = adapted.nats[adapted.chosen.name]
    nats = {"before": chosen.before, "after": chosen.after}
    pairs = {"after_to_before": ("after", "before")}
    if WITHOUT_DP in adapted.nats:
        nats["without_dp"] = adapted.nats[WITHOUT_DP].after
        pairs["after_to_without_dp"] = ("after", "without_dp")
    if SLM in adapted.nats:
        nats |= {"slm_before": adapted.nats[SLM].before, "slm_after": adapted.nats[SLM].after}
        pairs["after_to_slm_after"] = ("after", "slm_after")
    tokens_U = heldout_tokens(split)
    return {
        "unit": split.by,
        "n": len(tokens_U),
        "resamples": RESAMPLES,
        "level": LEVEL,
        **perplexity_intervals(tokens_U, nats, pairs),
    }


def describe_result(adapted: Adapted) -> str:
    """Say in words what the model folder holds."""
    figures = adapted.figures[adapted.chosen.name]
    if figures["after"] < figures["before"]:
        text = f"fine-tuned, as after step {figures['best_step']} of {figures['steps']}"
    else:
        text = "as it was before fine-tuning: no step was better on the held-out text"
    return text + (f"; stopped early: {figures['diverged']}" if figures["diverged"] else "")


def cluster_labels(manifest: Manifest) -> list[str] | None:
    """Return the provider's label for each cluster, "" for one without terms; None where it gave none."""
    if not any(manifest.cluster_terms):
        return None
    return [manifest.label(cluster) if terms else "" for cluster, terms in enumerate(manifest.cluster_terms)]


def software() -> dict[str, str]:
    """Return the versions of what computed the result."""
    found = {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from a checkout that was never installed
            found[name] = "not installed"
    return found


def digests(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of the model: what a signature under the report is about."""
    found = {}
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
