"""An owner's histogram request to importance weights (paper §2.4), if it is of this very clustering."""

from pathlib import Path
from typing import Any

import numpy as np

from provider.recipe import Recipe
from shared.errors import RecipeError
from shared.importance import importance_weights
from shared.request import centroids_digest, read_request


def weights_of_request(
    recipe: Recipe, path: Path, centroids_KW: np.ndarray, counts_K: np.ndarray
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return importance weights from an owner's request, and what the bundle says of it: its digest."""
    if recipe.kind != "slm":
        raise RecipeError(
            f"kind is {recipe.kind!r}, expected slm with a histogram request",
            hint="importance sampling trains one model for one owner (§2.4)",
        )
    request, digest = read_request(path)
    if request.centroids_sha256 != centroids_digest(centroids_KW):
        raise RecipeError(
            f"{path}: its counts are of the clustering {request.centroids_sha256[:16]}..., expected"
            f" {centroids_digest(centroids_KW)[:16]}...",
            hint="the request must be made with a bundle or pack of this recipe's clustering",
        )
    return importance_weights(request.histogram(), counts_K), {"request_sha256": digest}
