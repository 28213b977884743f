"""Which tensors a bundle must hold, and where: derived from its manifest, never read from the file.

docs/bundle-format.md §7. Shapes follow from the sizes (shared/sizes.py); no model is built for them.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from shared.manifest import DTYPES, MAX_TENSORS, Manifest, TensorEntry
from shared.sizes import linear_names, parameter_shapes
from shared.strict_json import Malformed, quote

WEIGHT_DTYPES = ("F32", "BF16", "F16")
FILES = {
    "tokenizer.json": 16 << 20,
    "embedder.safetensors": 256 << 20,
    "embedder-vocab.txt": 4 << 20,
}
"""Files that a bundle may carry as tensors, and the most bytes of each."""
CENTROIDS, COUNTS = "clusters.centroids", "clusters.counts"
REPLAY_TOKENS, REPLAY_LENGTHS, REPLAY_CLUSTERS = "replay.tokens", "replay.lengths", "replay.clusters"


class Expected(NamedTuple):
    """What a tensor must be; `shape` is None for a carried file: one axis of 1 to `limit` bytes."""

    dtypes: tuple[str, ...]
    shape: tuple[int, ...] | None
    limit: int = 0


def expected_tensors(manifest: Manifest) -> dict[str, Expected]:
    """Return exactly the tensors that a bundle of this manifest holds (§7), without allocating any.

    Raises Malformed when the model has no such linear layers, or when there would be over MAX_TENSORS,
    before their names are made.
    """
    shapes = parameter_shapes(manifest.model)
    if manifest.kind == "pn":
        named = frozenset(manifest.linears)
        chosen = [name for name in linear_names(manifest.model) if name in named]
        if not chosen or list(manifest.linears) != chosen:
            raise Malformed(
                f"projection.linears is {quote(manifest.linears)}, expected names of the model's"
                " nn.Linear modules in module order"
            )
    n_models = {"mix": manifest.n_experts, "replay": 0}.get(manifest.kind, 1)
    copies = n_models + len(manifest.comparison)
    if copies * len(shapes) > MAX_TENSORS:
        raise Malformed(f"{copies} models of {len(shapes)} tensors, over {MAX_TENSORS}")
    found: dict[str, Expected] = {}

    def add(prefix: str, without: Sequence[str] = ()) -> None:
        for name, shape in shapes.items():
            if name.removesuffix(".weight") not in without:
                found[prefix + name] = Expected(WEIGHT_DTYPES, shape)

    if manifest.kind == "mix":
        for expert in range(manifest.n_experts):
            add(f"experts.{expert}.")
    elif manifest.kind == "replay":
        found[REPLAY_TOKENS] = Expected(("U16",), (manifest.replay_tokens,))
        for name in (REPLAY_LENGTHS, REPLAY_CLUSTERS):
            found[name] = Expected(("I64",), (manifest.replay_windows,))
    else:
        add("shared.", manifest.linears)
    for system in manifest.comparison:
        add(f"{system}.")
    if manifest.kind == "pn":
        capacity, size = manifest.capacity, manifest.expert_size
        found["experts.vectors"] = Expected(WEIGHT_DTYPES, (manifest.n_experts, size))
        for linear in manifest.linears:
            bank = (capacity, *shapes[f"{linear}.weight"])
            found[f"projected.{linear}.mixing"] = Expected(WEIGHT_DTYPES, (size, capacity))
            found[f"projected.{linear}.bank"] = Expected(WEIGHT_DTYPES, bank)
    found[CENTROIDS] = Expected(("F32",), (manifest.n_clusters, manifest.embedder.width))
    found[COUNTS] = Expected(("I64",), (manifest.n_clusters,))
    for file, limit in FILES.items():
        if file == "tokenizer.json" or manifest.embedder.embedded:
            found[f"files.{file}"] = Expected(("U8",), None, limit)
    return found


def lay_out(sizes: Mapping[str, tuple[str, Sequence[int]]]) -> dict[str, tuple[int, int]]:
    """Return (start, end) in bytes by tensor name, in file order: type as in DTYPES, then name.

    `sizes` holds (dtype, shape). Wider types come first, so every tensor is aligned to its own type;
    it is the order in which the safetensors library writes.
    """
    order = list(DTYPES)
    offsets, start = {}, 0
    for name in sorted(sizes, key=lambda name: (order.index(sizes[name][0]), name)):
        dtype, shape = sizes[name]
        end = start + math.prod(shape) * DTYPES[dtype].itemsize
        offsets[name] = (start, end)
        start = end
    return offsets


def check_tensors(manifest: Manifest) -> None:
    """Compare the manifest's tensors with `expected_tensors`; Malformed names the first difference."""
    expected = expected_tensors(manifest)
    for name in manifest.tensors:
        if name not in expected:
            raise Malformed(f"{quote(name)} is not part of such a bundle")
    for name, rule in expected.items():
        if name not in manifest.tensors:
            raise Malformed(f"{name} is missing")
        entry = manifest.tensors[name]
        if entry.dtype not in rule.dtypes:
            raise Malformed(f"{name} is {entry.dtype}, expected {' or '.join(rule.dtypes)}")
        if rule.shape is None:
            if len(entry.shape) != 1 or not 1 <= entry.shape[0] <= rule.limit:
                raise Malformed(f"{name} has shape {entry.shape}, expected one axis of 1 to {rule.limit}")
        elif entry.shape != rule.shape:
            raise Malformed(f"{name} has shape {entry.shape}, expected {rule.shape}")
    layout = lay_out({name: (entry.dtype, entry.shape) for name, entry in manifest.tensors.items()})
    for name, (start, end) in layout.items():
        entry = manifest.tensors[name]
        if (entry.start, entry.end) != (start, end):
            raise Malformed(f"{name} has offsets {(entry.start, entry.end)}, expected {(start, end)}")


NON_FINITE: dict[str, tuple[Any, Any, int]] = {
    "F32": (np.int32, np.uint32, 0x7F80_0000),
    "BF16": (np.int16, np.uint16, 0x7F80),
    "F16": (np.int16, np.uint16, 0x7C00),
}
"""By type: its bits as a signed and an unsigned integer, and the least bits that are no finite value."""


def is_finite(part: memoryview, dtype: str) -> bool:
    """Return whether bytes of this type hold neither NaN nor an infinity; integers never do.

    Positive values are ordered as their bits are, with infinity and then NaN on top, and negative ones
    are those with the sign bit set. So two maxima of integers say it exactly, at a fraction of what
    `isfinite` costs, which was more than the digest did.
    """
    if dtype not in NON_FINITE:
        return True
    signed, unsigned, least = NON_FINITE[dtype]
    highest = int(np.frombuffer(part, signed).max(initial=0))
    lowest = int(np.frombuffer(part, unsigned).max(initial=0))
    sign = 1 << (8 * DTYPES[dtype].itemsize - 1)
    return highest < least and lowest < sign + least


RULED = (CENTROIDS, COUNTS, REPLAY_TOKENS, REPLAY_LENGTHS, REPLAY_CLUSTERS)
"""Tensors whose values have rules of their own (§8, values)."""

MAX_SQUARED_NORM = 1.01
"""Of a centroid: a mean of unit vectors is no longer than one. Ours: the hundredth, for float32 sums."""


class Values:
    """What is to be known of one tensor's values, gathered part by part so that none has to be whole."""

    def __init__(self, name: str, entry: TensorEntry, manifest: Manifest) -> None:
        self._name, self._dtype, self._manifest = name, entry.dtype, manifest
        self._finite, self._low, self._high, self._total = True, math.inf, -math.inf, 0
        self._seen, self._width = 0, entry.shape[-1]
        self._squares = np.zeros(entry.shape[0] if name == CENTROIDS else 0)

    def add(self, part: memoryview) -> None:
        """Look at the next elements; `check` judges them."""
        self._finite = self._finite and is_finite(part, self._dtype)
        if self._name == CENTROIDS:
            with np.errstate(invalid="ignore"):  # NaN is refused by its bits
                squares = np.square(np.frombuffer(part, np.float32), dtype=np.float64)
            rows = np.arange(self._seen, self._seen + len(squares)) // self._width
            self._squares += np.bincount(rows, squares, len(self._squares))
            self._seen += len(squares)
        elif self._name in RULED:
            values: Any = np.frombuffer(part, np.uint16 if self._dtype == "U16" else np.int64)
            self._low, self._high = min(self._low, int(values.min())), max(self._high, int(values.max()))
            if self._dtype == "I64":
                # In two halves: a sum of int64 could come round to the right one.
                self._total += (int((values >> 32).sum()) << 32) + int((values & 0xFFFFFFFF).sum())

    def check(self) -> None:
        """Refuse NaN, infinities, centroids that are too long, counts and windows that are none."""
        manifest, context = self._manifest, self._manifest.model.context_tokens
        if not self._finite:
            raise Malformed(f"tensor {self._name} holds NaN or an infinity")
        if self._name == CENTROIDS and float(self._squares.max()) > MAX_SQUARED_NORM:
            raise Malformed(f"{CENTROIDS} holds one longer than a mean of unit vectors can be")
        if self._name == COUNTS and not (self._low >= 0 and self._total == manifest.corpus_windows):
            raise Malformed(f"{COUNTS} are not counts that sum to {manifest.corpus_windows}")
        if self._name == REPLAY_TOKENS and self._high >= manifest.model.vocab_size:
            raise Malformed(f"{REPLAY_TOKENS} holds a token beyond {manifest.model.vocab_size} pieces")
        if self._name == REPLAY_LENGTHS and not (
            self._low >= 1 and self._high <= context and self._total == manifest.replay_tokens
        ):
            raise Malformed(
                f"{REPLAY_LENGTHS} are not lengths of 1 to {context} that sum to {manifest.replay_tokens}"
            )
        if self._name == REPLAY_CLUSTERS and not 0 <= self._low <= self._high < manifest.n_clusters:
            raise Malformed(f"{REPLAY_CLUSTERS} names a cluster that is not one of {manifest.n_clusters}")
