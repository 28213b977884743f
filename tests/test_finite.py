"""NaN and infinities at every position of what steers: centroids, expert vectors, mixing matrices."""

import itertools

import pytest
import torch

from provider.bundling import write_bundle
from shared.bundle import open_bundle
from shared.errors import BundleError
from shared.tensors import read_tensor
from tests.test_bundle import TRUSTED
from tests.vectors.build import PROVIDER, Parts, accepted, example_tensors

BITS = {
    # Infinities, a quiet NaN, a signalling one, one with the sign set and all bits.
    torch.float32: (0x7F800000, 0xFF800000, 0x7FC00000, 0x7F800001, 0xFFFFFFFF),
    torch.bfloat16: (0x7F80, 0xFF80, 0x7FC0, 0x7F81, 0xFFFF),
    torch.float16: (0x7C00, 0xFC00, 0x7E00, 0x7C01, 0xFFFF),
}
MIXING = "projected.model.layers.0.mlp.down_proj.mixing"
CASES = [("clusters.centroids", torch.float32)] + [
    (name, dtype) for name in ("experts.vectors", MIXING) for dtype in BITS
]


@pytest.fixture
def pn():
    """A small manifest of kind pn, and its tensors."""
    manifest = accepted()["pn.st"]
    return manifest, example_tensors(manifest)


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_a_reader_refuses_a_signed_nan_or_infinity_at_every_position(tmp_path, pn, name, dtype):
    manifest, tensors = pn
    tensors[name] = tensors[name].to(dtype)
    write_bundle(tmp_path / "good.st", manifest, tensors, PROVIDER)
    parts = Parts((tmp_path / "good.st").read_bytes())
    start, end = parts.manifest["tensors"][name]["offsets"]
    good, size = parts.data[start:end], dtype.itemsize
    assert len(good) == tensors[name].numel() * size
    path, tried = tmp_path / "bad.st", 0
    all_bits = itertools.cycle(BITS[dtype])
    for position in range(0, len(good), size):
        # A centroid has thousands of positions: each gets one of the bit patterns; a small tensor all.
        for _ in range(1 if len(good) > 1000 else len(BITS[dtype])):
            bits = next(all_bits).to_bytes(size, "little")
            content = good[:position] + bits + good[position + size :]
            path.write_bytes(parts.set_data(name, content).sign().join())
            with open_bundle(path, TRUSTED) as bundle:
                with pytest.raises(BundleError, match=f"values: tensor {name} holds NaN or an infinity"):
                    read_tensor(bundle, name)
                if position % (13 * size) == 0:
                    with pytest.raises(BundleError, match="values: tensor .* holds NaN or an infinity"):
                        bundle.verify_all()
            tried += 1
    assert tried >= tensors[name].numel()


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_a_writer_refuses_nan_and_infinities_at_every_position(tmp_path, pn, name, dtype):
    manifest, tensors = pn
    tensors = {name: tensors[name]}  # the others would be missed only later
    for position in range(tensors[name].numel()):
        for value in (torch.nan, torch.inf, -torch.inf):
            bad = tensors[name].to(dtype).clone()
            bad.view(-1)[position] = value
            with pytest.raises(BundleError, match=f"values: tensor {name} holds NaN or an infinity"):
                write_bundle(tmp_path / "bad.st", manifest, {name: bad}, PROVIDER)
    assert not (tmp_path / "bad.st").exists()
