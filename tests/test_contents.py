"""The scan for NaN and infinities against torch's own, over all bit patterns."""

import numpy as np
import pytest
import torch

from shared.contents import is_finite
from shared.manifest import DTYPES
from shared.tensors import TYPES


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_every_pattern_of_16_bits_is_judged_as_torch_does(dtype):
    patterns = np.arange(1 << 16, dtype=np.uint16)
    expected = torch.from_numpy(patterns.view(np.int16)).view(TYPES[dtype]).isfinite().tolist()
    part = memoryview(np.zeros(3, np.uint16))
    for pattern in patterns:
        part[1] = int(pattern)
        assert is_finite(part.cast("B"), dtype) == expected[pattern], hex(pattern)


def test_patterns_of_32_bits_are_judged_as_torch_does():
    edges = [0x0, 0x7F7F_FFFF, 0x7F80_0000, 0x7F80_0001, 0x7FFF_FFFF]
    edges += [0x8000_0000, 0xFF7F_FFFF, 0xFF80_0000, 0xFF80_0001, 0xFFFF_FFFF]
    drawn = np.random.default_rng(0).integers(0, 1 << 32, 4000, dtype=np.uint32)
    patterns = np.concatenate([np.asarray(edges, np.uint32), drawn, drawn | 0x7F80_0000])
    expected = torch.from_numpy(patterns.view(np.float32)).isfinite().tolist()
    found = [is_finite(memoryview(patterns[i : i + 1]).cast("B"), "F32") for i in range(len(patterns))]
    assert found == expected
    assert set(found) == {True, False}


def test_integers_and_nothing_at_all_are_finite():
    assert is_finite(memoryview(b"\xff" * 16), "I64")
    assert is_finite(memoryview(b""), "BF16")


def test_every_type_of_the_format_is_as_wide_in_numpy_as_in_torch():
    assert list(TYPES) == list(DTYPES)
    assert [dtype.itemsize for dtype in TYPES.values()] == [dtype.itemsize for dtype in DTYPES.values()]
