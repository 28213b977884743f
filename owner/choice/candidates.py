"""Where fine-tuning may start from: experts, points between them, the plain model (paper §4.3, Table 5).

The paper's three rules pick one of the experts. `histogram` and `learned` are points between experts,
for text that no single cluster is about. `auto` measures all of these before fine-tuning, fine-tunes the
best and the plain model, and keeps the better of the two (ours).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers.modeling_utils import PreTrainedModel

from owner.choice.selecting import Selection
from shared.bundle import Bundle
from shared.errors import PlanearlyError
from shared.materializing import comparison_slm, materialize, mix_experts

NEED_POINTS = ("histogram", "learned")
"""Methods (owner/choice/methods.py) that start between experts, which only kind pn has."""
SLM = "slm"


@dataclass(frozen=True)
class Start:
    """One model that fine-tuning may start from."""

    name: str
    """`expert-3`, `histogram`, `learned` or `slm`; also the name of its folder while it is worked on."""
    expert: int | None = None
    vector: tuple[float, ...] | None = None
    """A point between experts, (M,)."""
    heldout_loss: float | None = None
    """Before any training, in nats/token on the held-out private text; None: not measured."""

    @classmethod
    def from_dict(cls, entries: dict[str, Any]) -> "Start":
        """Return what `dataclasses.asdict` gave, after JSON made lists of tuples."""
        vector = entries["vector"]
        return cls(**entries | {"vector": None if vector is None else tuple(vector)})

    def materialize(self, bundle: Bundle) -> PreTrainedModel:
        """Return the dense model. Raises BundleError as `shared.materializing.materialize`."""
        if self.vector is not None:
            return materialize(bundle, torch.tensor(self.vector))
        if self.expert is not None:
            return materialize(bundle, self.expert)
        model = comparison_slm(bundle)
        assert model is not None, "only bundles with a comparison start from it"
        return model


def expert_start(index: int) -> Start:
    """Return an expert as a start."""
    return Start(f"expert-{index}", expert=index)


def histogram_start(bundle: Bundle, selection: Selection) -> Start:
    """Return E(q) = sum_c q_c E_c for the owner's histogram q: the weighted mean of the experts' weights."""
    share_K = torch.tensor(selection.histogram, dtype=torch.float32)
    vector_M = mix_experts(bundle, share_K / share_K.sum())
    return Start("histogram", vector=tuple(vector_M.tolist()))


def check_method(method: str, bundle: Bundle) -> None:
    """Refuse a method that the bundle's kind does not have. Raises PlanearlyError."""
    kind = bundle.manifest.kind
    if kind == "replay":
        raise PlanearlyError(
            f"{bundle.path}: is a replay pack and holds no model", hint="--replay takes it, --bundle a model"
        )
    if method in NEED_POINTS and kind != "pn":
        raise PlanearlyError(
            f"{bundle.path}: kind {kind} has no points between experts, which --select {method} needs",
            hint="use a bundle of kind pn, or --select most-frequent",
        )


Measure = Callable[[Start], Start]
"""Return the start with its held-out loss before training."""
Learn = Callable[[Start], Start]
"""Return the start learned from another one."""


def choose_starts(
    method: str, bundle: Bundle, selection: Selection, measure: Measure, learn: Learn
) -> tuple[list[Start], list[Start]]:
    """Return the starts to fine-tune, of which the best result is kept, and all that were considered.

    Cost before fine-tuning: one held-out pass for each start measured (K of them for best-pretrained).
    """
    n_experts = bundle.manifest.n_experts
    most_frequent = expert_start(selection.expert if n_experts > 1 else 0)
    if n_experts == 1 or method == "most-frequent":
        return [most_frequent], [most_frequent]
    if method == "histogram":
        start = histogram_start(bundle, selection)
        return [start], [start]
    if method == "best-pretrained":
        starts = [measure(expert_start(index)) for index in range(n_experts)]
        return [_best(starts)], starts
    if method == "best-fine-tuned":
        starts = [expert_start(index) for index in range(n_experts)]
        return starts, starts
    starts = [measure(most_frequent)]
    if bundle.manifest.kind == "pn":
        starts.append(measure(histogram_start(bundle, selection)))
        starts.append(learn(_best(starts)))
    if method == "learned":
        return starts[-1:], starts
    chosen = [_best(starts)]
    if SLM in bundle.manifest.comparison:
        starts.append(measure(Start(SLM)))
        chosen.append(starts[-1])
    return chosen, starts


def _best(starts: list[Start]) -> Start:
    losses = [start.heldout_loss for start in starts]
    assert None not in losses, "measured before they are compared"
    return min(starts, key=lambda start: start.heldout_loss or 0.0)
