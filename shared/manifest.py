"""The signed list of what a bundle holds, and the rules of its every field: docs/bundle-format.md §6.

Nothing here opens a file or checks a signature (shared/bundle.py does), nor knows which tensors there
must be (shared/contents.py does).
"""

import hashlib
import unicodedata
from dataclasses import dataclass
from typing import Any

import numpy as np

from shared.embedder import NAME, SUB_WINDOW_PIECES, WIDTH
from shared.errors import PlanearlyError
from shared.names import MAX_VERSION, NAME_PATTERN, SHA256_PATTERN, check_time
from shared.sizes import SlmConfig
from shared.strict_json import (
    MAX_INTEGER,
    Malformed,
    canonical_json,
    check_integer,
    check_list,
    check_match,
    check_object,
    check_text,
    check_values,
    parse_json,
    quote,
)

FORMAT = "planearly-bundle/v1"
FIELDS = (
    "format",
    "name",
    "version",
    "created",
    "license",
    "kind",
    "model",
    "n_experts",
    "comparison",
    "tokenizer",
    "embedder",
    "clusters",
    "training",
    "tensors",
)
"""Fields of every manifest; kinds pn and replay have one more (EXTRA_FIELDS), and any may have some that
begin with x-."""
EXTRA_FIELDS = {"pn": "projection", "replay": "replay"}
TRAINING_FIELDS = (
    "corpus",
    "sources",
    "seed",
    "steps",
    "tokens",
    "heldout_loss",
    "heldout_loss_per_cluster",
    "learning_rate",
    "rows_per_step",
)
"""Fields that `training` has at least."""
REPLAY_TRAINING_FIELDS = ("corpus", "sources", "seed")
"""Those of kind replay, in which nothing was trained."""
MODEL_KINDS = ("pn", "mix", "slm")
KINDS = (*MODEL_KINDS, "replay")
"""What a bundle holds: models, or windows of the generic corpus to continue pretraining on."""
COMPARISONS = ("slm",)
OPTIMIZERS = ("adam", "muon")
"""What may have moved the weights; shared/optimizers.py has them."""
DTYPES: dict[str, np.dtype[Any]] = {
    "I64": np.dtype(np.int64),
    "F32": np.dtype(np.float32),
    "BF16": np.dtype(np.uint16),
    "F16": np.dtype(np.float16),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
}
"""Types by their safetensors name, in the order in which tensors lie in a file, as numpy has them.

numpy has no bfloat16: those are its bits. shared/tensors.py makes them torch's.
"""

MAX_TENSORS = 16_384
MAX_REPLAY_TOKENS = 2**34
MAX_REPLAY_VOCAB = 2**16
"""A pack's tokens are U16."""
MAX_CLUSTERS = 65_536
MAX_CAPACITY = 65_536
MAX_EXPERT_SIZE = 65_536
MAX_LEARNING_RATE = 1.0
MAX_TEXT_CHARACTERS = 100_000
MAX_TERMS, MAX_TERM_CHARACTERS = 10, 40
"""Of each cluster, in `training.cluster_terms`."""
LABEL_TERMS = 3
"""Terms that make a cluster's label. Ours."""
HIDDEN = frozenset(("Cc", "Cf", "Cs", "Co", "Zl", "Zp"))
"""Unicode's general categories of characters that do not show, or turn what shows around them."""


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies, counted from the end of the header, and its SHA-256."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int
    sha256: str


@dataclass(frozen=True)
class EmbedderEntry:
    """Which sentence embedder made the centroids; `sha256` is that of its model.safetensors."""

    name: str
    sha256: str
    width: int
    sub_window_pieces: int
    embedded: bool


@dataclass(frozen=True)
class Manifest:
    """A manifest whose every field has been checked; `raw` is all of it, `training` included."""

    name: str
    version: int
    created: str
    license: str
    kind: str
    model: SlmConfig
    n_experts: int
    """k of the paper; 1 for kinds slm and replay."""
    capacity: int
    """h of the paper; 0 unless kind is pn."""
    expert_size: int
    """m of the paper; 0 unless kind is pn."""
    linears: tuple[str, ...]
    """Names of the projected `nn.Linear` modules, in module order; empty unless kind is pn."""
    comparison: tuple[str, ...]
    embedder: EmbedderEntry
    n_clusters: int
    corpus_windows: int
    optimizer: str
    """What moved the weights, one of OPTIMIZERS; adam where the record is silent."""
    replay_tokens: int
    """0 unless kind is replay."""
    replay_windows: int
    """0 unless kind is replay."""
    cluster_terms: tuple[tuple[str, ...], ...]
    """Foremost words of each cluster, best first; empty if the provider recorded none."""
    tensors: dict[str, TensorEntry]
    raw: dict[str, Any]

    @property
    def sha256(self) -> str:
        """SHA-256 of the signed text, by which a trust file revokes a bundle."""
        return hashlib.sha256(canonical_json(self.raw)).hexdigest()

    def label(self, cluster: int) -> str:
        """Return a short human name of a cluster: its first terms, or its number where it has none."""
        terms = self.cluster_terms[cluster] if self.cluster_terms else ()
        return ", ".join(terms[:LABEL_TERMS]) or f"cluster {cluster}"


def parse_manifest(payload: bytes) -> Manifest:
    """Check every field of §6 and return the typed manifest; Malformed names the first bad field.

    `tensors` and `projection.linears` are checked for their form only: whether the model has such linear
    layers, and the bundle these tensors and no other, is for `shared.contents.check_tensors`.
    """
    raw = parse_json(payload)
    if not isinstance(raw, dict):
        raise Malformed("is not a JSON object")
    check_values(raw, "a value")
    if canonical_json(raw) != payload:
        raise Malformed("is not in canonical form (sorted keys, no white space, shortest numbers)")
    if raw.get("format") != FORMAT:
        raise Malformed(f"format is {quote(raw.get('format'))}, this reader knows {quote(FORMAT)}")
    kind = raw.get("kind")
    if kind not in KINDS:
        raise Malformed(f"kind is {quote(kind)}, expected one of: {', '.join(KINDS)}")
    known = {name: value for name, value in raw.items() if not name.startswith("x-")}
    extra = [EXTRA_FIELDS[kind]] if kind in EXTRA_FIELDS else []
    check_object(known, "top level", [*FIELDS, *extra])
    embedder = _embedder(raw["embedder"])
    clusters = check_object(raw["clusters"], "clusters", ["n", "corpus_windows"])
    n_clusters = check_integer(clusters["n"], "clusters.n", 1, MAX_CLUSTERS)
    n_experts = check_integer(raw["n_experts"], "n_experts", 1, MAX_CLUSTERS)
    is_single = kind in ("slm", "replay")
    if n_experts != (1 if is_single else n_clusters):
        raise Malformed(
            f"n_experts is {n_experts}, expected"
            f" {f'1 for kind {kind}' if is_single else f'{n_clusters}, as clusters.n'}"
        )
    _tokenizer(raw["tokenizer"])
    _training(raw["training"], n_clusters, kind)
    model = _model(raw["model"])
    replay = {"tokens": 0, "windows": 0}
    if kind == "replay":
        replay = check_object(raw["replay"], "replay", list(replay))
        check_integer(replay["tokens"], "replay.tokens", 1, MAX_REPLAY_TOKENS)
        check_integer(replay["windows"], "replay.windows", 1, replay["tokens"])
        check_integer(model.vocab_size, "model.vocab_size of a replay pack", 1, MAX_REPLAY_VOCAB)
    projection: dict[str, Any] = {"capacity": 0, "expert_size": 0, "linears": []}
    if kind == "pn":
        projection = check_object(raw["projection"], "projection", list(projection))
        check_integer(projection["capacity"], "projection.capacity", 1, MAX_CAPACITY)
        check_integer(projection["expert_size"], "projection.expert_size", 1, MAX_EXPERT_SIZE)
        linears = projection["linears"]
        if not isinstance(linears, list) or not 1 <= len(linears) <= MAX_TENSORS:
            raise Malformed(f"projection.linears is not a list of 1 to {MAX_TENSORS}")
        for name in linears:
            check_text(name, "projection.linears", MAX_TEXT_CHARACTERS)
    return Manifest(
        name=check_match(raw["name"], "name", NAME_PATTERN),
        version=check_integer(raw["version"], "version", 1, MAX_VERSION),
        created=check_time(raw["created"], "created"),
        license=check_text(raw["license"], "license", MAX_TEXT_CHARACTERS),
        kind=kind,
        model=model,
        n_experts=n_experts,
        capacity=projection["capacity"],
        expert_size=projection["expert_size"],
        linears=tuple(projection["linears"]),
        comparison=_comparison(raw["comparison"], kind),
        embedder=embedder,
        n_clusters=n_clusters,
        corpus_windows=check_integer(clusters["corpus_windows"], "clusters.corpus_windows", 0, MAX_INTEGER),
        optimizer=raw["training"].get("optimizer", OPTIMIZERS[0]),
        replay_tokens=replay["tokens"],
        replay_windows=replay["windows"],
        cluster_terms=_terms(raw["training"], n_clusters),
        tensors=_tensors(raw["tensors"]),
        raw=raw,
    )


def _model(value: Any) -> SlmConfig:
    if not isinstance(value, dict) or not isinstance(value.get("architecture"), str):
        raise Malformed("model is not an object with an architecture")
    try:
        return SlmConfig.from_dict(value)
    except PlanearlyError as error:
        raise Malformed(str(error)) from None


def _tokenizer(value: Any) -> None:
    if value != {"type": "unigram", "file": "tokenizer.json"}:
        raise Malformed('tokenizer is not {"file":"tokenizer.json","type":"unigram"}')


def _embedder(value: Any) -> EmbedderEntry:
    check_object(value, "embedder", ["name", "sha256", "width", "sub_window_pieces", "embedded"])
    for field, only in (("name", NAME), ("width", WIDTH), ("sub_window_pieces", SUB_WINDOW_PIECES)):
        if value[field] != only or type(value[field]) is not type(only):
            raise Malformed(f"embedder.{field} is {quote(value[field])}, expected {quote(only)}")
    check_match(value["sha256"], "embedder.sha256", SHA256_PATTERN)
    if type(value["embedded"]) is not bool:
        raise Malformed(f"embedder.embedded is {quote(value['embedded'])}, expected true or false")
    return EmbedderEntry(**value)


def _training(value: Any, n_clusters: int, kind: str) -> None:
    if not isinstance(value, dict):
        raise Malformed("training is not an object")
    fields = REPLAY_TRAINING_FIELDS if kind == "replay" else TRAINING_FIELDS
    check_object({name: value[name] for name in fields if name in value}, "training", fields)
    check_text(value["corpus"], "training.corpus", MAX_TEXT_CHARACTERS)
    check_integer(value["seed"], "training.seed", 0, MAX_INTEGER)
    if not isinstance(value["sources"], list):
        raise Malformed("training.sources is not a list")
    for source in value["sources"]:
        check_object(source, "training.sources", ["name", "license"])
        for field in ("name", "license"):
            check_text(source[field], f"training.sources.{field}", MAX_TEXT_CHARACTERS)
    if kind != "replay":
        _training_of_a_model(value, n_clusters)


def _training_of_a_model(value: dict[str, Any], n_clusters: int) -> None:
    for field in ("steps", "tokens"):
        check_integer(value[field], f"training.{field}", 0, MAX_INTEGER)
    check_integer(value["rows_per_step"], "training.rows_per_step", 1, MAX_INTEGER)
    rate = value["learning_rate"]
    if type(rate) is not float or not 0 < rate <= MAX_LEARNING_RATE:
        raise Malformed(
            f"training.learning_rate is {quote(rate)}, expected a float above 0, at most {MAX_LEARNING_RATE}"
        )
    if value.get("optimizer", OPTIMIZERS[0]) not in OPTIMIZERS:
        raise Malformed(
            f"training.optimizer is {quote(value['optimizer'])}, expected one of: {', '.join(OPTIMIZERS)}"
        )
    _loss(value["heldout_loss"], "training.heldout_loss")
    losses = value["heldout_loss_per_cluster"]
    if not isinstance(losses, list) or len(losses) != n_clusters:
        raise Malformed(f"training.heldout_loss_per_cluster is not a list of {n_clusters}")
    for loss in losses:
        if loss is not None:
            _loss(loss, "training.heldout_loss_per_cluster")


def _terms(training: dict[str, Any], n_clusters: int) -> tuple[tuple[str, ...], ...]:
    """Return the terms of each cluster; nothing where the optional field is absent."""
    if "cluster_terms" not in training:
        return ()
    value, where = training["cluster_terms"], "training.cluster_terms"
    for terms in check_list(value, where, n_clusters, n_clusters):
        for term in check_list(terms, where, 0, MAX_TERMS):
            check_text(term, where, MAX_TERM_CHARACTERS)
            if any(unicodedata.category(character) in HIDDEN for character in term):
                raise Malformed(f"{where} has {quote(term)}, expected characters that show")
    return tuple(map(tuple, value))


def _loss(value: Any, where: str) -> None:
    if type(value) is not float or value < 0:
        raise Malformed(f"{where} is {quote(value)}, expected a float of nats per token")


def _comparison(value: Any, kind: str) -> tuple[str, ...]:
    allowed = [list(COMPARISONS)] if kind in ("pn", "mix") else []
    if value not in [[], *allowed]:
        raise Malformed(f"comparison is {quote(value)}, not allowed for kind {kind}")
    return tuple(value)


def _tensors(value: Any) -> dict[str, TensorEntry]:
    if not isinstance(value, dict) or not 1 <= len(value) <= MAX_TENSORS:
        raise Malformed(f"tensors is not an object of 1 to {MAX_TENSORS} entries")
    entries = {}
    for name, entry in value.items():
        where = f"tensors.{quote(name)}"
        check_object(entry, where, ["dtype", "shape", "offsets", "sha256"])
        if not isinstance(entry["dtype"], str) or entry["dtype"] not in DTYPES:
            raise Malformed(f"{where}.dtype is {quote(entry['dtype'])}, expected {', '.join(DTYPES)}")
        for field, length in (("shape", (1, 2, 3)), ("offsets", (2,))):
            if not isinstance(entry[field], list) or len(entry[field]) not in length:
                raise Malformed(f"{where}.{field} is not a list of {' or '.join(map(str, length))}")
            for number in entry[field]:
                check_integer(number, f"{where}.{field}", 0, MAX_INTEGER)
        check_match(entry["sha256"], f"{where}.sha256", SHA256_PATTERN)
        start, end = entry["offsets"]
        shape = tuple(entry["shape"])
        entries[name] = TensorEntry(entry["dtype"], shape, start, end, entry["sha256"])
    return entries
