"""A bundle's tensors as torch has them: the one place where types of the format become torch's."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from shared.bundle import Bundle, Take

TYPES = {
    "I64": torch.int64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "U16": torch.uint16,
    "U8": torch.uint8,
}
"""torch's types by those of shared.manifest.DTYPES."""
NAMES = {dtype: name for name, dtype in TYPES.items()}

TakeTensor = Callable[[Tensor, int], None]
"""(part of a tensor, flat and as stored; the position of its first element)."""


def read_tensor(bundle: Bundle, name: str) -> Tensor:
    """Read one tensor as `Bundle.array` does, in its own type."""
    array = bundle.array(name)
    return torch.from_numpy(array).view(TYPES[bundle.manifest.tensors[name].dtype])


def read_tensors(bundle: Bundle, takers: Mapping[str, TakeTensor]) -> None:
    """Hand out tensors part by part as `Bundle.read_parts` does, with its warning, in their own types."""

    def typed(name: str, take: TakeTensor) -> Take:
        dtype = TYPES[bundle.manifest.tensors[name].dtype]

        def took(part: np.ndarray, position: int) -> None:
            take(torch.from_numpy(part).view(dtype), position)

        return took

    bundle.read_parts({name: typed(name, take) for name, take in takers.items()})
