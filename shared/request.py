"""A histogram request: the one file an owner may choose to hand to a provider (importance sampling, §2.4).

Counts of private documents per cluster, with noise added on the owner's machine, and what a provider
must know to use them: which clustering they are of. Nothing here sends or signs it.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from shared.errors import PlanearlyError
from shared.files import write_json
from shared.manifest import MAX_CLUSTERS
from shared.names import SHA256_PATTERN
from shared.strict_json import (
    MAX_INTEGER,
    Malformed,
    check_integer,
    check_match,
    check_object,
    check_text,
    parse_json,
)

FORMAT = "planearly-histogram/v1"
MAX_REQUEST_BYTES = 4 << 20


@dataclass(frozen=True)
class HistogramRequest:
    """What the file holds, and all of it."""

    centroids_sha256: str
    """Digest of the centroids (float32, row-major) that the counts belong to."""
    counts: tuple[int, ...]
    """Documents per cluster, noise added, none below 0."""
    epsilon: float
    """Of differential privacy, for adding or removing one document."""
    mechanism: str
    """The noise, and the library that drew it."""
    format: str = FORMAT

    def histogram(self) -> np.ndarray:
        """Return the counts: (K,) float64."""
        return np.asarray(self.counts, np.float64)


def centroids_digest(centroids_KW: np.ndarray) -> str:
    """Return the SHA-256 that names a clustering."""
    return hashlib.sha256(np.ascontiguousarray(centroids_KW, np.float32).tobytes()).hexdigest()


def write_request(path: Path, request: HistogramRequest) -> None:
    """Write a request, atomically."""
    write_json(path, asdict(request))


def read_request(path: Path) -> tuple[HistogramRequest, str]:
    """Return a request, every field checked, and the file's SHA-256.

    Raises PlanearlyError that names the file and the field; OSError when it cannot be read.
    """
    with path.open("rb") as file:
        content = file.read(MAX_REQUEST_BYTES + 1)
    try:
        if len(content) > MAX_REQUEST_BYTES:
            raise Malformed(f"is over {MAX_REQUEST_BYTES} bytes")
        entries = check_object(
            parse_json(content), "top level", [item.name for item in fields(HistogramRequest)]
        )
        if entries["format"] != FORMAT:
            raise Malformed(f"format is {json.dumps(entries['format'])}, expected {FORMAT}")
        check_match(entries["centroids_sha256"], "centroids_sha256", SHA256_PATTERN)
        check_text(entries["mechanism"], "mechanism", 1000)
        if type(entries["epsilon"]) is not float or not entries["epsilon"] > 0:
            raise Malformed("epsilon is not a number above 0")
        counts = entries["counts"]
        if not isinstance(counts, list) or not 1 <= len(counts) <= MAX_CLUSTERS:
            raise Malformed(f"counts is not a list of 1 to {MAX_CLUSTERS} integers")
        for count in counts:
            check_integer(count, "counts", 0, MAX_INTEGER)
    except Malformed as problem:
        raise PlanearlyError(f"{path}: {problem}", hint="`owner histogram` writes such files") from None
    request = HistogramRequest(**entries | {"counts": tuple(counts)})
    return request, hashlib.sha256(content).hexdigest()
