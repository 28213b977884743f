"""A model card in Markdown, made from a verified bundle and nothing else: every line is a recorded fact.

Both parties make it, each from the bundle it has verified, so no copy can say something else than the
bundle (docs/decisions/0021-facts-and-cards.md). The block on top is what model hubs read. A bundle's texts
are foreign: whatever Markdown or HTML they hold is escaped.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from shared.bundle import Bundle
from shared.contents import COUNTS
from shared.facts import heldout_losses, model_parameters, perplexity, stored_parameters
from shared.manifest import Manifest
from shared.printable import printable

HUB_LICENSES = frozenset(
    (
        *("afl-3.0", "apache-2.0", "artistic-2.0", "bsd-2-clause", "bsd-3-clause", "cc-by-3.0", "cc-by-4.0"),
        *(
            "cc-by-nc-4.0",
            "cc-by-nc-nd-4.0",
            "cc-by-nc-sa-4.0",
            "cc-by-nd-4.0",
            "cc-by-sa-3.0",
            "cc-by-sa-4.0",
        ),
        *("cc0-1.0", "gpl-2.0", "gpl-3.0", "isc", "lgpl-3.0", "mit", "mpl-2.0", "odc-by", "unlicense"),
    )
)
"""Identifiers that Hugging Face's hub knows; any other license is `other` there, its text in the card."""
KINDS = {
    "pn": "a projected network: a small language model for each cluster, projected from shared weight banks",
    "mix": "a hard mixture: a small language model for each cluster, trained independently",
    "slm": "one small language model",
    "replay": "a replay pack: windows of the generic corpus, and no model",
}
MARKDOWN = str.maketrans({character: f"\\{character}" for character in "\\`*_[]<>#|~&$"})


def escape(text: str) -> str:
    """Return foreign text as one line of Markdown that shows it and does nothing else."""
    return printable(text, " ").strip().translate(MARKDOWN)


def make_card(bundle: Bundle) -> str:
    """Return the card of a verified bundle; reads nothing but its manifest and its generic histogram."""
    manifest = bundle.manifest
    counts_K = bundle.array(COUNTS).tolist()
    parts = [*_front_matter(manifest), f"# {manifest.name} version {manifest.version}", ""]
    parts += [f"This is {KINDS[manifest.kind]}. License of the weights: {escape(manifest.license)}", ""]
    parts += ["## Sizes", "", *_table(("what", "how much"), _sizes(bundle)), ""]
    parts += ["## Data", "", f"{escape(manifest.raw['training']['corpus'])}", "", *_sources(manifest), ""]
    if manifest.kind != "replay":
        parts += ["## Training", "", *_table(("what", "value"), _training(manifest)), ""]
    parts += ["## Clusters", "", *_clusters(manifest, counts_K), ""]
    parts += ["## Limits", "", *(f"- {line}" for line in _limits(manifest)), ""]
    parts += ["## Verify it", "", *_verify(bundle)]
    return "\n".join(parts) + "\n"


def _front_matter(manifest: Manifest) -> Iterator[str]:
    """Yield the hub's metadata; JSON strings are YAML."""
    license_id = "-".join(manifest.license.lower().split())
    yield "---"
    yield f"license: {license_id if license_id in HUB_LICENSES else 'other'}"
    yield "library_name: planearly"
    if manifest.kind != "replay":
        yield "pipeline_tag: text-generation"
    yield f"tags: {json.dumps(['planearly', manifest.kind, manifest.model.architecture])}"
    yield "---"
    yield ""


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|" + " --- |" * len(head)
    for row in rows:
        yield f"| {' | '.join(map(str, row))} |"


def _sizes(bundle: Bundle) -> Iterator[tuple[str, str]]:
    manifest, model = bundle.manifest, bundle.manifest.model
    yield "file", f"{bundle.size_bytes:,} bytes"
    if manifest.kind == "replay":
        yield "windows", f"{manifest.replay_windows:,} of {manifest.replay_tokens:,} tokens"
        return
    yield "experts", f"{manifest.n_experts:,}"
    yield "parameters of one model", f"{model_parameters(manifest):,}"
    yield "parameters in the bundle", f"{stored_parameters(manifest):,}"
    for system in manifest.comparison:
        yield f"parameters of the {system} for comparison", f"{stored_parameters(manifest, system):,}"
    yield (
        "model",
        f"{model.architecture}, {model.n_layers} layers, width {model.width}, {model.n_heads} heads,"
        f" feed-forward width {model.ffn_width}",
    )
    yield "vocabulary", f"{model.vocab_size:,} pieces (unigram, byte fallback)"
    yield "context", f"{model.context_tokens:,} tokens"
    if manifest.kind == "pn":
        yield (
            "projection",
            f"capacity {manifest.capacity}, expert size {manifest.expert_size},"
            f" {len(manifest.linears)} projected layers",
        )


def _sources(manifest: Manifest) -> Iterator[str]:
    sources = manifest.raw["training"]["sources"]
    if not sources:
        yield "The provider lists no sources."
        return
    yield from _table(("source", "license"), ((escape(s["name"]), escape(s["license"])) for s in sources))


def _training(manifest: Manifest) -> Iterator[tuple[str, object]]:
    training = manifest.raw["training"]
    yield "optimizer steps", f"{training['steps']:,}"
    yield "tokens seen", f"{training['tokens']:,}"
    yield "rows per step", f"{training['rows_per_step']:,} of {manifest.model.context_tokens:,} tokens"
    yield "optimizer", manifest.optimizer
    yield "peak learning rate", training["learning_rate"]
    schedule = training.get("schedule")
    for name, value in sorted(schedule.items()) if isinstance(schedule, dict) else ():
        if isinstance(value, int | float | str):
            yield escape(name.replace("_", " ")), escape(str(value))
    yield "seed", training["seed"]
    yield "generic held-out loss", _nats(training["heldout_loss"])
    comparisons = training.get("comparison")
    for system in manifest.comparison:
        record = comparisons.get(system) if isinstance(comparisons, dict) else None
        loss = record.get("heldout_loss") if isinstance(record, dict) else None
        if type(loss) is float and loss >= 0:
            yield f"the same of the {system}", _nats(loss)


def _nats(loss: float) -> str:
    return f"{loss:.4f} nats per token, perplexity {_perplexity(loss)}"


def _clusters(manifest: Manifest, counts_K: list[int]) -> Iterator[str]:
    yield (
        f"k-means on {manifest.embedder.name} embeddings of {manifest.corpus_windows:,} windows. Labels are"
        " each cluster's foremost words, found by counting; perplexities are held-out and per token."
    )
    yield ""
    systems = ["", *manifest.comparison] if manifest.kind != "replay" else []
    columns = [heldout_losses(manifest, system) for system in systems]
    heads = ["perplexity", *(f"of the {system}" for system in manifest.comparison)][: len(columns)]
    yield from _table(
        ("cluster", "label", "windows", *heads),
        (
            (
                cluster,
                escape(manifest.label(cluster)),
                f"{counts_K[cluster]:,}",
                *(_perplexity(losses[cluster]) for losses in columns),
            )
            for cluster in range(manifest.n_clusters)
        ),
    )


def _perplexity(loss: float | None) -> str:
    return "" if loss is None else f"{perplexity(loss):,.1f}"


def _limits(manifest: Manifest) -> Iterator[str]:
    """Yield what follows from the record, or from its silence."""
    training: dict[str, Any] = manifest.raw["training"]
    yield "The record names no language and no filter for personal or harmful text: assume none was applied."
    yield "Nothing was trained to follow instructions or to refuse; the model continues text."
    if not training["sources"]:
        yield "Without listed sources nobody can check the licenses of the text."
    if manifest.kind == "replay":
        return
    yield f"Its context is {manifest.model.context_tokens:,} tokens: longer text was cut into such windows."
    ratio = training["tokens"] / max(1, stored_parameters(manifest))
    yield f"It saw {ratio:,.2f} tokens for each parameter in the bundle."
    losses = heldout_losses(manifest)
    if missing := sum(loss is None for loss in losses):
        yield f"{missing} of {manifest.n_clusters} clusters have no held-out window, hence no perplexity."
    for system in manifest.comparison:
        pairs = [
            (own, other)
            for own, other in zip(losses, heldout_losses(manifest, system), strict=True)
            if own is not None and other is not None
        ]
        worse = sum(own > other for own, other in pairs)
        yield f"In {worse} of {len(pairs)} clusters its perplexity is higher than that of the {system}."
    if not manifest.comparison and manifest.kind != "slm":
        yield "It carries no plain model of the same pretraining: what its experts gain cannot be measured."
    if not manifest.embedder.embedded:
        yield f"The embedder {manifest.embedder.name} is not inside; owners need its files besides."


def _verify(bundle: Bundle) -> Iterator[str]:
    yield (
        f"Signed with key `{bundle.key_id}`. The manifest, which holds the SHA-256 of every tensor, has the"
        f" SHA-256 `{bundle.manifest.sha256}`. Get the public key over another channel than the"
        " bundle, and compare its id."
    )
    yield ""
    yield "```"
    yield "owner trust add provider.pub"
    yield f"owner inspect {bundle.manifest.name}.st"
    yield "```"
    yield ""
    yield "The signature says who published this, not that the record above is true."
