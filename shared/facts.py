"""What follows from a verified manifest by counting: parameters, perplexities per cluster.

Fields of `training` beyond those that docs/bundle-format.md names are a provider's free record; what is read
of them here is checked here, and is absent if it is of another form.
"""

import math
from typing import Any

from shared.manifest import Manifest
from shared.sizes import parameter_shapes

MOST_NATS = 30.0
"""A held-out loss above it is shown as this: exp() of it has 13 digits. Ours."""


def perplexity(nats: float) -> float:
    """Return exp of a loss in nats per token."""
    return math.exp(min(nats, MOST_NATS))


def model_parameters(manifest: Manifest) -> int:
    """Return the parameters of the model that an owner gets, each tied one once."""
    return sum(math.prod(shape) for shape in parameter_shapes(manifest.model).values())


def stored_parameters(manifest: Manifest, system: str = "") -> int:
    """Return how many weights the bundle carries: of its own system, or of a comparison as `slm`."""
    prefixes = (f"{system}.",) if system else ("shared.", "experts.", "projected.")
    return sum(
        math.prod(entry.shape) for name, entry in manifest.tensors.items() if name.startswith(prefixes)
    )


def heldout_losses(manifest: Manifest, system: str = "") -> list[float | None]:
    """Return the recorded held-out loss of each cluster, of the bundle's system or of a comparison.

    None where the provider recorded none.
    """
    training = manifest.raw["training"]
    record: Any = training
    if system:
        comparisons = training.get("comparison")
        record = comparisons.get(system) if isinstance(comparisons, dict) else None
    losses = record.get("heldout_loss_per_cluster") if isinstance(record, dict) else None
    if not isinstance(losses, list) or len(losses) != manifest.n_clusters:
        return [None] * manifest.n_clusters
    return [loss if type(loss) is float and loss >= 0 else None for loss in losses]
