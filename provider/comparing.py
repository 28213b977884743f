"""What changed between two releases: fields, sizes, sources, clusters, perplexity per cluster, tensors.

A cluster of the new bundle is matched to the old one whose centroid is nearest. Perplexities are per token:
they compare only under one tokenizer, and as far as the held-out text is the same, which no record tells.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from shared.bundle import Bundle
from shared.card import escape
from shared.clusters import assign_clusters
from shared.contents import CENTROIDS, COUNTS
from shared.facts import heldout_losses, model_parameters, perplexity, stored_parameters
from shared.printable import printable

TOKENIZER = "files.tokenizer.json"
LISTED_APART = ("tensors", "training.sources", "training.cluster_terms", "training.heldout_loss_per_cluster")
"""Fields of a manifest that have a part of their own in a comparison."""
MOVED_SHOWN = 5
"""Clusters shown in a text: those whose centroid moved farthest, and whose perplexity changed most. Ours."""


def compare_bundles(old: Bundle, new: Bundle) -> dict[str, Any]:
    """Return all that differs between two verified bundles, as JSON."""
    fields = _changed_fields(old, new)
    tensors = _changed_tensors(old, new)
    sources_old, sources_new = (
        [_source(s) for s in b.manifest.raw["training"]["sources"]] for b in (old, new)
    )
    return {
        "old": _identity(old),
        "new": _identity(new),
        "changed": bool(fields or any(tensors[part] for part in ("added", "removed", "changed"))),
        "fields": fields,
        "sizes": {
            name: [int(count(old)), int(count(new))]
            for name, count in (
                ("bytes", lambda b: b.size_bytes),
                ("parameters_of_one_model", lambda b: model_parameters(b.manifest)),
                ("parameters_in_the_bundle", lambda b: stored_parameters(b.manifest)),
            )
        },
        "sources": {
            "added": [source for source in sources_new if source not in sources_old],
            "removed": [source for source in sources_old if source not in sources_new],
        },
        "clusters": _compared_clusters(old, new),
        "same_tokenizer": _digest(old, TOKENIZER) == _digest(new, TOKENIZER),
        "tensors": tensors,
    }


def _identity(bundle: Bundle) -> dict[str, Any]:
    manifest = bundle.manifest
    return {
        "name": manifest.name,
        "version": manifest.version,
        "created": manifest.created,
        "key_id": bundle.key_id,
        "manifest_sha256": manifest.sha256,
    }


def _source(source: dict[str, str]) -> dict[str, str]:
    return {"name": source["name"], "license": source["license"]}


def _digest(bundle: Bundle, name: str) -> str:
    return bundle.manifest.tensors[name].sha256


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield a manifest's fields by their paths, but those listed apart."""
    if isinstance(value, dict) and value:
        for name, part in value.items():
            where = f"{path}.{name}" if path else name
            if where not in LISTED_APART and not where.endswith("heldout_loss_per_cluster"):
                yield from _flat(part, where)
    else:
        yield path, value


def _changed_fields(old: Bundle, new: Bundle) -> dict[str, list[Any]]:
    """Return old and new value of each field that differs; null where there is none."""
    before, after = (dict(_flat(bundle.manifest.raw)) for bundle in (old, new))
    return {
        path: [before.get(path), after.get(path)]
        for path in sorted({*before, *after})
        if before.get(path) != after.get(path)
    }


def _changed_tensors(old: Bundle, new: Bundle) -> dict[str, Any]:
    before, after = old.manifest.tensors, new.manifest.tensors
    both = sorted(set(before) & set(after))
    changed = [name for name in both if before[name].sha256 != after[name].sha256]
    return {
        "added": sorted(set(after) - set(before)),
        "removed": sorted(set(before) - set(after)),
        "changed": changed,
        "unchanged": len(both) - len(changed),
    }


def _compared_clusters(old: Bundle, new: Bundle) -> dict[str, Any]:
    """Return each new cluster beside the nearest old one, and the old ones that are nearest to none."""
    centroids_KW, others_KW = (bundle.array(CENTROIDS) for bundle in (new, old))
    counts_K, other_counts_K = (bundle.array(COUNTS).tolist() for bundle in (new, old))
    losses, other_losses = (heldout_losses(bundle.manifest) for bundle in (new, old))
    nearest_K = assign_clusters(centroids_KW, others_KW).tolist()
    moved_K = np.linalg.norm(centroids_KW - others_KW[nearest_K], axis=1)
    return {
        "n": [old.manifest.n_clusters, new.manifest.n_clusters],
        "same_centroids": _digest(old, CENTROIDS) == _digest(new, CENTROIDS),
        "matched": [
            {
                "cluster": cluster,
                "label": new.manifest.label(cluster),
                "nearest_old": other,
                "old_label": old.manifest.label(other),
                "moved": round(float(moved_K[cluster]), 6),
                "windows": [other_counts_K[other], counts_K[cluster]],
                "perplexity": [_perplexity(other_losses[other]), _perplexity(losses[cluster])],
            }
            for cluster, other in enumerate(nearest_K)
        ],
        "left_behind": sorted(set(range(len(others_KW))) - set(nearest_K)),
    }


def _perplexity(loss: float | None) -> float | None:
    return None if loss is None else round(perplexity(loss), 3)


def _changes_of_perplexity(found: dict[str, Any]) -> list[tuple[float, dict[str, Any]]]:
    """Return the relative change of each matched cluster that has both figures, the largest first."""
    changes = []
    for match in found["clusters"]["matched"]:
        before, after = match["perplexity"]
        if before is not None and after is not None:
            changes.append((after / before - 1, match))
    return sorted(changes, key=lambda change: -abs(change[0]))


def _counted(changes: list[tuple[float, dict[str, Any]]]) -> str:
    lower, higher = (sum(sign * change > 0 for change, _ in changes) for sign in (-1, 1))
    return f"lower in {lower}, higher in {higher}, the same in {len(changes) - lower - higher}"


def _title(side: dict[str, Any]) -> str:
    return f"{side['name']} version {side['version']}"


def _short(value: Any) -> str:
    text = printable("nothing" if value is None else str(value), " ")
    return text if len(text) <= 60 else f"{text[:57]}..."


def describe_changes(found: dict[str, Any]) -> Iterator[str]:
    """Yield a comparison as aligned lines for a person."""
    for side in ("old", "new"):
        yield f"{side:<11} {_title(found[side])} of {found[side]['created']} · key {found[side]['key_id']}"
    for name, (before, after) in found["sizes"].items():
        if after != before:
            yield f"{'size':<11} {name.replace('_', ' ')} {before:,} -> {after:,} ({after - before:+,})"
    for path, (before, after) in found["fields"].items():
        yield f"{'field':<11} {_short(path)}: {_short(before)} -> {_short(after)}"
    for sign, part in (("added", "added"), ("removed", "removed")):
        for source in found["sources"][part]:
            yield f"{'source':<11} {sign}: {_short(source['name'])} ({_short(source['license'])})"
    yield from _describe_clusters(found)
    tensors = found["tensors"]
    counted = ", ".join(f"{len(tensors[part])} {part}" for part in ("changed", "added", "removed"))
    yield f"{'tensors':<11} {counted}, {tensors['unchanged']} the same (--json names them)"


def _describe_clusters(found: dict[str, Any]) -> Iterator[str]:
    clusters = found["clusters"]
    before, after = clusters["n"]
    if clusters["same_centroids"]:
        yield f"{'clusters':<11} {after}, the same centroids"
    else:
        left = (
            f" · nearest to no new one: {_short(clusters['left_behind'])}" if clusters["left_behind"] else ""
        )
        yield f"{'clusters':<11} {before} -> {after}, matched by nearest centroid{left}"
        for match in sorted(clusters["matched"], key=lambda m: -m["moved"])[:MOVED_SHOWN]:
            yield (
                f"{'':<11} {match['cluster']} ({match['label']}) moved {match['moved']:.3f} from"
                f" {match['nearest_old']} ({match['old_label']})"
            )
    changes = _changes_of_perplexity(found)
    if changes and not found["same_tokenizer"]:
        yield f"{'perplexity':<11} not comparable: the tokenizers differ"
    elif changes:
        yield f"{'perplexity':<11} {_counted(changes)}, as far as the held-out text is the same"
        for change, match in changes[:MOVED_SHOWN]:
            if not change:
                break
            old, new = match["perplexity"]
            yield f"{'':<11} {match['cluster']} ({match['label']}) {old:,.1f} -> {new:,.1f} ({change:+.1%})"


def changelog_entry(found: dict[str, Any]) -> Iterator[str]:
    """Yield an entry for a changelog in Markdown (keepachangelog.com): facts, for a person to edit."""
    new, fields = found["new"], found["fields"]
    yield f"## {new['name']} {new['version']} - {new['created'][:10]}"
    yield ""
    changed = [
        f"{escape(_short(path))}: {escape(_short(before))} to {escape(_short(after))}"
        for path, (before, after) in fields.items()
        if path not in ("name", "version", "created")
    ]
    changed += [
        f"{name.replace('_', ' ')}: {before:,} to {after:,}"
        for name, (before, after) in found["sizes"].items()
        if before != after
    ]
    changes = _changes_of_perplexity(found)
    if changes and found["same_tokenizer"]:
        changed.append(f"held-out perplexity of {len(changes)} clusters: {_counted(changes)}")
    if not found["clusters"]["same_centroids"]:
        changed.append("the clustering: histograms made with the old one do not fit")
    sources = {
        part: [
            f"source {escape(source['name'])} ({escape(source['license'])})"
            for source in found["sources"][part]
        ]
        for part in ("added", "removed")
    }
    for title, lines in (("Added", sources["added"]), ("Changed", changed), ("Removed", sources["removed"])):
        if lines:
            yield f"### {title}"
            yield ""
            yield from (f"- {line}" for line in lines)
            yield ""
    yield f"Manifest SHA-256 `{new['manifest_sha256']}`, key `{new['key_id']}`."
