"""A map of a bundle's clusters as one HTML page: no script, nothing from anywhere, light and dark.

Size, label, terms, held-out perplexity and nearest clusters of each. The map is the centroids' two foremost
principal components; distances on it are a shadow of those in 384 dimensions, so the page says what share
of the variance it shows.
"""

import base64
import hashlib
import math
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
from jinja2 import Environment, StrictUndefined
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from shared.bundle import Bundle
from shared.contents import CENTROIDS, COUNTS
from shared.facts import heldout_losses, perplexity
from shared.manifest import Manifest
from shared.printable import printable

WIDTH, HEIGHT, MARGIN = 960.0, 620.0, 60.0
"""Of the map, in pixels of its own."""
COVERED_FRACTION = 0.07
"""Of the map's area, all bubbles together."""
LEAST_RADIUS, NUMBERED_RADIUS = 2.5, 11.0
"""A smaller bubble would not be seen, a smaller one could not hold its number."""
LETTER, LINE = 6.4, 14.0
"""Mean width of a label's letter and height of its line, in a font of 12 pixels."""
MOST_LABELS = 32
"""On the map, those of the largest clusters: more would hide the bubbles of a thousand. Ours."""
N_NEAREST = 3
PALETTE = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
"""Viridis at five places (Smith and van der Walt 2015): its lightness rises evenly, for all eyes alike."""

Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


@dataclass(frozen=True)
class Bubble:
    """One cluster on the map: place and radius in pixels, colour, its label and where that has room."""

    cluster: int
    x: float
    y: float
    radius: float
    colour: str
    is_light: bool
    label: str
    label_x: float | None = None
    label_y: float | None = None


@dataclass(frozen=True)
class Row:
    """One cluster in the table; texts of bundles are escaped by the template."""

    cluster: int
    terms: str
    windows: int
    share: float
    perplexity: float | None
    compared: float | None
    nearest: list[tuple[int, float]]


def draw_atlas(bundle: Bundle) -> str:
    """Return the page of a verified bundle of any kind."""
    manifest = bundle.manifest
    centroids_KW, counts_K = bundle.array(CENTROIDS), bundle.array(COUNTS)
    own = [None if loss is None else perplexity(loss) for loss in heldout_losses(manifest)]
    system = manifest.comparison[0] if manifest.comparison else ""
    compared = [
        None if loss is None or not system else perplexity(loss) for loss in heldout_losses(manifest, system)
    ]
    places_KX, explained = project_on_a_plane(centroids_KW)
    shares_K = counts_K / max(1, counts_K.sum())
    labels = [
        f"{cluster} {manifest.label(cluster) if any(terms) else ''}".strip()
        for cluster, terms in enumerate(manifest.cluster_terms or [()] * manifest.n_clusters)
    ]
    known = [value for value in own if value is not None]
    rows = [
        Row(
            cluster,
            _terms(manifest, cluster),
            int(counts_K[cluster]),
            float(shares_K[cluster]),
            own[cluster],
            compared[cluster],
            nearest,
        )
        for cluster, nearest in enumerate(nearest_clusters(centroids_KW))
    ]
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    style = files("provider").joinpath("atlas.css").read_text(encoding="utf-8")
    page = files("provider").joinpath("atlas.html.j2").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return environment.from_string(page).render(
        manifest=manifest,
        corpus=printable(manifest.raw["training"]["corpus"], " "),
        license=printable(manifest.license, " "),
        key_id=bundle.key_id,
        style=style,
        style_digest=digest,
        width=WIDTH,
        height=HEIGHT,
        bubbles=place_labels(_bubbles(places_KX, shares_K, own, labels)),
        most_labels=MOST_LABELS,
        numbered_radius=NUMBERED_RADIUS,
        explained=explained,
        lowest=min(known, default=None),
        highest=max(known, default=None),
        stops=[_hex(colour) for colour in PALETTE],
        system=system,
        rows=rows,
        largest_share=max(float(shares_K.max()), 1e-9),
    )


def _terms(manifest: Manifest, cluster: int) -> str:
    if not manifest.cluster_terms:
        return "not recorded"
    return ", ".join(manifest.cluster_terms[cluster]) or "none that enough documents share"


def project_on_a_plane(centroids_KW: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the centroids' two principal components, (K, 2), and the share of the variance they show."""
    places_KX = np.zeros((len(centroids_KW), 2))
    if not np.ptp(centroids_KW, axis=0).any():  # one cluster, or all alike
        return places_KX, 1.0
    fitted = PCA(min(2, len(centroids_KW)), svd_solver="full").fit(centroids_KW)
    found = fitted.transform(centroids_KW)
    places_KX[:, : found.shape[1]] = found
    return places_KX, float(fitted.explained_variance_ratio_.sum())


def nearest_clusters(centroids_KW: np.ndarray) -> list[list[tuple[int, float]]]:
    """Return each cluster's N_NEAREST others by the cosine between centroids, nearest first."""
    n_found = min(N_NEAREST + 1, len(centroids_KW))
    searched = NearestNeighbors(n_neighbors=n_found, metric="cosine").fit(centroids_KW)
    distances, found = searched.kneighbors(centroids_KW)
    return [
        [(int(c), 1 - float(d)) for c, d in zip(others, away, strict=True) if c != cluster][:N_NEAREST]
        for cluster, (others, away) in enumerate(zip(found, distances, strict=True))
    ]


def _bubbles(
    places_KX: np.ndarray, shares_K: np.ndarray, perplexities: list[float | None], labels: list[str]
) -> list[Bubble]:
    """Return the bubbles, largest first, both axes to one scale."""
    extent = np.maximum(np.ptp(places_KX, axis=0), 1e-9)
    scale = min((WIDTH - 2 * MARGIN) / extent[0], (HEIGHT - 2 * MARGIN) / extent[1])
    middle = (places_KX.min(0) + places_KX.max(0)) / 2
    logs = [math.log(value) for value in perplexities if value is not None]
    low, high = min(logs, default=0.0), max(logs, default=0.0)
    bubbles = []
    for cluster in np.argsort(-shares_K, kind="stable").tolist():
        x, y = (places_KX[cluster] - middle) * scale
        radius = math.sqrt(float(shares_K[cluster]) * COVERED_FRACTION * WIDTH * HEIGHT / math.pi)
        value = perplexities[cluster]
        at = None if value is None else (math.log(value) - low) / max(high - low, 1e-9)
        bubbles.append(
            Bubble(
                cluster,
                WIDTH / 2 + float(x),
                HEIGHT / 2 - float(y),
                max(LEAST_RADIUS, radius),
                "#888888" if at is None else _colour(at),
                at is None or at > 0.6,
                labels[cluster],
            )
        )
    return bubbles


def _colour(at: float) -> str:
    """Return the palette's colour at a place from 0 to 1."""
    index = min(int(at * (len(PALETTE) - 1)), len(PALETTE) - 2)
    part = at * (len(PALETTE) - 1) - index
    pairs = zip(PALETTE[index], PALETTE[index + 1], strict=True)
    return _hex(tuple(round(one + (other - one) * part) for one, other in pairs))


def _hex(colour: tuple[int, ...]) -> str:
    return "#" + "".join(f"{part:02x}" for part in colour)


def place_labels(bubbles: list[Bubble]) -> list[Bubble]:
    """Give the MOST_LABELS first bubbles' labels a place beside them where nothing else is; else none.

    No label covers another label, or another bubble large enough for a number, or leaves the map.
    """
    taken = [_box_of(bubble) for bubble in bubbles if bubble.radius >= NUMBERED_RADIUS]
    placed = []
    for rank, bubble in enumerate(bubbles):
        own = _box_of(bubble)
        is_told = bubble.label == str(bubble.cluster) and bubble.radius >= NUMBERED_RADIUS
        for box in [] if is_told or rank >= MOST_LABELS else _boxes_beside(bubble):
            inside = min(box[:2]) >= 0 and box[2] <= WIDTH and box[3] <= HEIGHT
            if inside and not any(_overlap(box, other) for other in taken if other != own):
                taken.append(box)
                bubble = Bubble(
                    **vars(bubble) | {"label_x": (box[0] + box[2]) / 2, "label_y": box[3] - LINE / 4}
                )
                break
        placed.append(bubble)
    return placed


def _box_of(bubble: Bubble) -> Box:
    return (
        bubble.x - bubble.radius,
        bubble.y - bubble.radius,
        bubble.x + bubble.radius,
        bubble.y + bubble.radius,
    )


def _boxes_beside(bubble: Bubble) -> Iterator[Box]:
    """Yield places for the label: below, above, right and left of the bubble, then shifted along it."""
    wide = sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in bubble.label) * LETTER
    x, y, away = bubble.x, bubble.y, bubble.radius + 3
    for shift in (0.0, 0.25, -0.25, 0.45, -0.45):
        left = x - wide / 2 + shift * wide
        yield (left, y + away, left + wide, y + away + LINE)
        yield (left, y - away - LINE, left + wide, y - away)
    for rise in (0.0, 0.7, -0.7):
        top = y - LINE / 2 + rise * away
        yield (x + away, top, x + away + wide, top + LINE)
        yield (x - away - wide, top, x - away, top + LINE)


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
