"""Writing bundles, reading them, and refusing everything else; tests/test_vectors.py has the bad files."""

import copy
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from provider.bundling import write_bundle
from shared.bundle import expected_tensors, open_bundle
from shared.errors import BundleError, SignatureError
from shared.signature import PublicKey
from shared.sizes import SlmConfig
from shared.tensors import read_tensor
from tests.vectors.build import (
    PROVIDER,
    STRANGER,
    Parts,
    accepted,
    example_tensors,
)

TRUSTED = [PROVIDER.public_key]
NORM = "shared.model.norm.weight"


@pytest.fixture
def slm(tmp_path):
    """A small good bundle."""
    manifest = accepted()["slm.st"]
    write_bundle(tmp_path / "slm.st", manifest, example_tensors(manifest), PROVIDER)
    return tmp_path / "slm.st"


def read_everything(path):
    """Do all that a reader of a bundle can do."""
    with open_bundle(path, TRUSTED) as bundle:
        bundle.verify_all()
        return {name: read_tensor(bundle, name) for name in bundle.names}


# Writing


@pytest.mark.parametrize("name", accepted())
def test_what_is_written_is_read_again(tmp_path, name):
    manifest = accepted()[name]
    given, tensors = copy.deepcopy(manifest), example_tensors(manifest)
    write_bundle(tmp_path / name, manifest, tensors, PROVIDER)
    assert manifest == given
    found = read_everything(tmp_path / name)
    assert found.keys() == tensors.keys()
    for tensor in tensors:
        assert found[tensor].dtype == tensors[tensor].dtype
        assert torch.equal(found[tensor], tensors[tensor])
    with open_bundle(tmp_path / name, TRUSTED) as bundle:
        assert {key: bundle.manifest.raw[key] for key in manifest} == manifest
        assert bundle.key_id == PROVIDER.public_key.key_id
        assert bundle.size_bytes == (tmp_path / name).stat().st_size
        assert set(expected_tensors(bundle.manifest)) == set(tensors)


def test_the_manifest_is_typed(tmp_path):
    manifest = accepted()["full.st"]
    write_bundle(tmp_path / "full.st", manifest, example_tensors(manifest), PROVIDER)
    with open_bundle(tmp_path / "full.st", TRUSTED) as bundle:
        found = bundle.manifest
        assert (found.name, found.version, found.kind, found.n_experts) == ("vector-full", 1, "pn", 3)
        assert found.model == SlmConfig.from_dict(manifest["model"])
        assert (found.capacity, found.expert_size) == (3, 2)
        assert found.linears == ("model.layers.0.mlp.c_fc", "model.layers.0.mlp.c_proj")
        assert found.comparison == ("slm",)
        assert found.embedder.embedded
        assert (found.n_clusters, found.corpus_windows) == (3, 6)
        assert bundle.file("embedder-vocab.txt") == b"[PAD]\n"


@pytest.mark.parametrize("name", accepted())
def test_the_safetensors_library_writes_the_same_bytes_and_reads_them(tmp_path, name):
    manifest = accepted()[name]
    tensors = example_tensors(manifest)
    write_bundle(tmp_path / name, manifest, tensors, PROVIDER)
    with safe_open(tmp_path / name, "pt") as file:
        metadata = file.metadata()
        assert set(file.keys()) == set(tensors)
    assert list(metadata) == ["planearly-bundle"]
    assert save(tensors, metadata) == (tmp_path / name).read_bytes()
    assert torch.equal(load_file(tmp_path / name)["clusters.centroids"], tensors["clusters.centroids"])


def test_the_same_input_gives_the_same_bytes(tmp_path):
    manifest = accepted()["pn.st"]
    tensors = example_tensors(manifest)
    shuffled = dict(reversed(manifest.items()))
    made = {name: (lambda name=name: tensors[name].clone()) for name in reversed(tensors)}
    write_bundle(tmp_path / "a", manifest, tensors, PROVIDER)
    write_bundle(tmp_path / "b", shuffled, made, PROVIDER)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_tensors_start_at_a_multiple_of_their_own_size(slm):
    with open_bundle(slm, TRUSTED) as bundle:
        entries = bundle.manifest.tensors
    assert struct.unpack("<Q", slm.read_bytes()[:8])[0] % 8 == 0
    for entry in entries.values():
        assert entry.start % {"I64": 8, "F32": 4, "BF16": 2, "F16": 2, "U8": 1}[entry.dtype] == 0


def test_a_tensor_that_is_not_contiguous_is_written_as_it_reads(tmp_path):
    manifest = accepted()["slm.st"]
    tensors = example_tensors(manifest)
    name = "shared.model.layers.0.mlp.up_proj.weight"
    tensors[name] = torch.nn.Parameter(torch.arange(88.0).reshape(8, 11).T)
    write_bundle(tmp_path / "a", manifest, tensors, PROVIDER)
    assert torch.equal(read_everything(tmp_path / "a")[name], torch.arange(88.0).reshape(8, 11).T)


def test_large_tensors_are_handled_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("shared.bundle.CHUNK_BYTES", 64)
    manifest = accepted()["pn.st"]
    tensors = example_tensors(manifest)
    write_bundle(tmp_path / "a", manifest, tensors, PROVIDER)
    assert torch.equal(read_everything(tmp_path / "a")["clusters.centroids"], tensors["clusters.centroids"])


def refusal(tmp_path, change=None, tensors=None, key=PROVIDER, name="slm.st", drop=()):
    """Write a changed bundle over an older file; return the error's text. The older file must stay."""
    manifest = accepted()[name]
    if change:
        change(manifest)
    given = example_tensors(accepted()[name]) | (tensors or {})
    path = tmp_path / "new.st"
    path.write_bytes(b"older")
    with pytest.raises(BundleError) as error:
        write_bundle(path, manifest, {n: t for n, t in given.items() if n not in drop}, key)
    assert path.read_bytes() == b"older"
    assert os.listdir(tmp_path) == ["new.st"]
    assert str(error.value).startswith(f"{path}: ")
    return str(error.value).removeprefix(f"{path}: ")


def test_a_writer_refuses_what_a_reader_would(tmp_path):
    assert refusal(tmp_path, drop=[NORM]) == f"tensors: {NORM} is missing"
    assert "values: tensor clusters.centroids holds NaN or an infinity" in refusal(
        tmp_path, tensors={"clusters.centroids": torch.full((1, 384), torch.nan)}
    )
    assert "values: clusters.centroids holds one longer than a mean of unit" in refusal(
        tmp_path, tensors={"clusters.centroids": torch.full((1, 384), 33 / 640)}
    )
    assert "tensors: x is torch.float64, expected I64, F32, BF16, F16, U16, U8" in refusal(
        tmp_path, tensors={"x": torch.zeros(1, dtype=torch.float64)}
    )
    assert "values: clusters.counts are not counts that sum to 1" in refusal(
        tmp_path, tensors={"clusters.counts": torch.tensor([2])}
    )
    assert "manifest: format, tensors is filled in, not given" in refusal(
        tmp_path, lambda m: m.update(format="", tensors={})
    )
    assert "manifest: cannot be written as JSON" in refusal(tmp_path, lambda m: m.update(license={1}))
    assert "manifest: cannot be written as JSON" in refusal(
        tmp_path, lambda m: m["training"].update(heldout_loss=float("nan"))
    )
    assert "has shape (1,), expected (8,)" in refusal(tmp_path, tensors={NORM: torch.zeros(1)})
    assert "has shape (0,), expected (8,)" in refusal(tmp_path, tensors={NORM: torch.zeros(0)})
    assert "tensors.'x'.shape is not a list of 1 or 2 or 3" in refusal(
        tmp_path, tensors={"x": torch.zeros(())}
    )


def test_each_centroid_is_measured_by_itself(tmp_path, monkeypatch):
    monkeypatch.setattr("shared.bundle.CHUNK_BYTES", 1000)  # no whole number of centroids
    manifest = accepted()["pn.st"]
    tensors = example_tensors(manifest)
    units_KW = torch.eye(384)[:3]
    write_bundle(tmp_path / "a", manifest, tensors | {"clusters.centroids": units_KW}, PROVIDER)
    assert torch.equal(read_everything(tmp_path / "a")["clusters.centroids"], units_KW)
    for row in range(3):
        long_KW = units_KW.clone()
        long_KW[row, 383] = 0.11
        with pytest.raises(BundleError, match="values: clusters.centroids holds one longer"):
            write_bundle(tmp_path / "b", manifest, tensors | {"clusters.centroids": long_KW}, PROVIDER)


def test_a_header_over_the_limit_is_not_written(tmp_path):
    text = ["x" * 99_000] * 32
    message = refusal(tmp_path, lambda m: m["training"].update(notes=text))
    assert message.startswith("header size: ")
    assert message.endswith("expected at most 4194304")


def test_a_tensor_that_changes_between_hashing_and_writing_is_refused(tmp_path):
    count = iter(range(2))
    message = refusal(tmp_path, tensors={NORM: lambda: torch.full((8,), float(next(count)))})
    assert message == f"digest: tensor {NORM} changed while it was written"


def test_a_signer_whose_public_key_is_another_is_refused(tmp_path):
    class Mistaken:
        public_key = STRANGER.public_key
        sign = staticmethod(PROVIDER.sign)

    assert "did not sign this manifest" in refusal(tmp_path, key=Mistaken())


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    def no_space(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    manifest = accepted()["slm.st"]
    with pytest.raises(OSError, match="No space left"):
        write_bundle(tmp_path / "a", manifest, example_tensors(manifest), PROVIDER)
    assert os.listdir(tmp_path) == []


# Reading


def test_a_key_that_is_not_pinned_is_named_with_a_hint(slm):
    with pytest.raises(SignatureError) as error:
        open_bundle(slm, [STRANGER.public_key])
    assert str(error.value) == f"{slm}: signed by unknown key {PROVIDER.public_key.key_id}"
    assert error.value.hint == "if you trust its provider: owner trust add provider.pub"
    with pytest.raises(SignatureError):
        open_bundle(slm, [])
    open_bundle(slm, [STRANGER.public_key, *TRUSTED]).close()


def test_a_link_a_folder_a_pipe_and_a_missing_file_are_refused(slm, tmp_path):
    (tmp_path / "link.st").symlink_to(slm)
    with pytest.raises(BundleError, match="link.st: file: cannot be opened") as error:
        open_bundle(tmp_path / "link.st", TRUSTED)
    assert error.value.hint == "name the file itself, not a symbolic link"
    with pytest.raises(BundleError, match="file: is not a regular file"):
        open_bundle(tmp_path, TRUSTED)
    os.mkfifo(tmp_path / "pipe.st")
    with pytest.raises(BundleError, match="file: is not a regular file"):
        open_bundle(tmp_path / "pipe.st", TRUSTED)
    with pytest.raises(BundleError, match="file: cannot be opened: No such file or directory") as error:
        open_bundle(tmp_path / "missing.st", TRUSTED)
    assert error.value.hint == ""


def test_a_name_with_a_nul_is_refused_and_shown_without_it(tmp_path):
    with pytest.raises(BundleError, match=r"^'x\\x00y': file: no file has a NUL in its name"):
        open_bundle(Path("x\0y"), TRUSTED)


@pytest.mark.parametrize(
    ("call", "at", "step"),
    [("pread", 0, "header size"), ("pread", 8, "header size"), ("preadv", None, "length")],
)
def test_a_disk_that_cannot_be_read_is_named(slm, monkeypatch, call, at, step):
    real = getattr(os, call)

    def broken(file, what, offset):
        if at in (offset, None):
            raise OSError(5, "Input/output error")
        return real(file, what, offset)

    with open_bundle(slm, TRUSTED) as bundle:
        monkeypatch.setattr(os, call, broken)
        with pytest.raises(BundleError) as error:
            bundle.verify_all() if at is None else open_bundle(slm, TRUSTED)
    assert str(error.value) == f"{slm}: {step}: cannot be read: Input/output error"


def test_a_bundle_changed_after_opening_is_refused_when_read(slm):
    with open_bundle(slm, TRUSTED) as bundle:
        entry = bundle.manifest.tensors[NORM]
        with open(slm, "r+b") as file:
            file.seek(bundle.size_bytes - bundle.manifest.tensors["files.tokenizer.json"].end + entry.start)
            file.write(b"\x01")
        with pytest.raises(BundleError, match=f"digest: tensor {NORM} is not what was signed"):
            read_tensor(bundle, NORM)
        with pytest.raises(BundleError, match="digest"):
            bundle.verify_all()
        read_tensor(bundle, "clusters.centroids")


def test_a_bundle_cut_after_opening_is_refused_when_read(slm):
    with open_bundle(slm, TRUSTED) as bundle:
        os.truncate(slm, bundle.size_bytes - 1)
        with pytest.raises(BundleError, match="length: the file was cut short while it was read"):
            bundle.file("tokenizer.json")


def test_a_header_cut_while_it_is_read_is_refused(slm, monkeypatch):
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda file, length, at: pread(file, min(length, 100), at))
    with pytest.raises(BundleError, match="header size: the file was cut short while it was read"):
        open_bundle(slm, TRUSTED)


def test_reads_that_come_in_pieces_are_put_together(slm, monkeypatch):
    before, preadv, left = read_everything(slm), os.preadv, iter(range(slm.stat().st_size))

    def some_bytes(file, parts, at):
        next(left)  # ends a reader that does not get on
        return preadv(file, [parts[0][:7]], at)

    monkeypatch.setattr(os, "preadv", some_bytes)
    found = read_everything(slm)
    assert all(torch.equal(found[name], before[name]) for name in before)


GET_AGAIN = "the file was damaged or changed; get it again"


@pytest.mark.parametrize(
    ("change", "message", "hint"),
    [
        (lambda c: c[:5], "header size: 0 bytes in a file of 5", "this is no bundle, or it was cut short"),
        (lambda c: c[:-1], "length: ", "the file was cut short or lengthened; get it again"),
        (lambda c: c[:-1] + b"x", "digest: ", GET_AGAIN),
        (
            lambda c: c.replace(b'sig\\":\\"', b'sig\\":\\"AAAA', 1).replace(b"==\\", b"\\", 1),
            "envelope: ",
            "",
        ),
        (lambda c: Parts(c[:-1] + b"x").sign(b"{}").join(), "manifest: ", ""),
    ],
)
def test_a_refusal_says_what_can_be_done(slm, change, message, hint):
    slm.write_bytes(change(slm.read_bytes()))
    with pytest.raises(BundleError) as error:
        read_everything(slm)
    assert str(error.value).startswith(f"{slm}: {message}")
    assert error.value.hint == hint


@pytest.mark.parametrize("length", [0, 7, 9, 16, (4 << 20) + 8, 2**63, 2**64 - 8])
def test_a_header_s_length_is_taken_as_it_stands(slm, length):
    slm.write_bytes(struct.pack("<Q", length) + b"{}      ")
    with pytest.raises(BundleError) as error:
        open_bundle(slm, TRUSTED)
    assert str(error.value) == (
        f"{slm}: header size: {length} bytes in a file of 16, expected a multiple of 8, at most 4194304"
    )


def test_the_shortest_and_the_longest_header_are_read(slm):
    for length in (8, 4 << 20):
        slm.write_bytes(struct.pack("<Q", length) + b"{}".ljust(length))
        with pytest.raises(BundleError, match=": header: __metadata__ does not have"):
            open_bundle(slm, TRUSTED)


def test_a_wrong_signature_says_to_get_the_file_again(slm):
    parts = Parts(slm.read_bytes())
    signature = Parts(slm.read_bytes()).envelope["signatures"]
    parts.sign(b"{}")
    parts.envelope["signatures"] = signature
    slm.write_bytes(parts.join())
    with pytest.raises(SignatureError) as error:
        open_bundle(slm, TRUSTED)
    assert (
        str(error.value) == f"{slm}: signature: key {PROVIDER.public_key.key_id} did not sign this manifest"
    )
    assert error.value.hint == GET_AGAIN


def test_an_open_bundle_is_not_inherited_by_programs_that_are_started(slm):
    with open_bundle(slm, TRUSTED) as bundle:
        assert not os.get_inheritable(bundle._file.fileno())
    with pytest.raises(ValueError, match="closed file"):
        read_tensor(bundle, NORM)


def test_a_refused_bundle_leaves_no_descriptor_open(slm, tmp_path):
    before = os.listdir("/proc/self/fd")
    for path, keys in ((slm, []), (tmp_path, TRUSTED), (tmp_path / "missing", TRUSTED)):
        with pytest.raises(BundleError):
            open_bundle(path, keys)
    assert os.listdir("/proc/self/fd") == before


def test_a_bundle_may_be_replaced_while_it_is_open(slm):
    before = read_everything(slm)
    with open_bundle(slm, TRUSTED) as bundle:
        slm.with_name("new").write_bytes(b"something else")
        slm.with_name("new").rename(slm)
        assert torch.equal(read_tensor(bundle, NORM), before[NORM])


def test_names_that_are_not_there_are_refused(slm):
    with open_bundle(slm, TRUSTED) as bundle:
        with pytest.raises(BundleError, match="has no tensor 'experts.vectors'"):
            read_tensor(bundle, "experts.vectors")
        with pytest.raises(BundleError, match="has no tensor 'files.../../etc/passwd'"):
            bundle.file("../../etc/passwd")


def test_progress_counts_to_the_last_byte(slm):
    seen = []
    with open_bundle(slm, TRUSTED) as bundle:
        bundle.verify_all(lambda done, total: seen.append((done, total)))
        assert len(seen) == len(bundle.names)
    done, total = seen[-1]
    assert done == total == sum(tensor.nbytes for tensor in load_file(slm).values())
    assert seen == sorted(seen)


def test_a_tensor_is_memory_of_its_own(slm):
    with open_bundle(slm, TRUSTED) as bundle:
        read_tensor(bundle, NORM).zero_()
        assert read_tensor(bundle, NORM).any()


@pytest.mark.parametrize("bits", [b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\x00\x00\x80\xff"])
@pytest.mark.parametrize("position", [0, 1, 191, 382, 383])
def test_no_position_may_hold_nan_or_an_infinity(slm, bits, position):
    parts = Parts(slm.read_bytes())
    start, _ = parts.manifest["tensors"]["clusters.centroids"]["offsets"]
    content = parts.data[start : start + 4 * position] + bits
    slm.write_bytes(parts.set_data("clusters.centroids", content).sign().join())
    with open_bundle(slm, TRUSTED) as bundle:
        for read in (lambda: read_tensor(bundle, "clusters.centroids"), bundle.verify_all):
            with pytest.raises(BundleError, match="values: tensor clusters.centroids holds NaN or an inf"):
                read()


def test_keys_of_the_same_key_id_are_all_tried(slm):
    class Namesake(PublicKey):
        key_id = PROVIDER.public_key.key_id

    with pytest.raises(SignatureError, match="signature: key .* did not sign this manifest"):
        open_bundle(slm, [Namesake(STRANGER.public_key.raw)])
    open_bundle(slm, [Namesake(STRANGER.public_key.raw), *TRUSTED]).close()


def test_the_first_damaged_tensor_in_file_order_is_named_on_any_number_of_cores(slm, monkeypatch):
    with open_bundle(slm, TRUSTED) as bundle:
        names, start = bundle.names, bundle._data_start
        first, last = (bundle.manifest.tensors[names[i]] for i in (1, -1))
    content = bytearray(slm.read_bytes())
    for entry in (first, last):
        content[start + entry.start] ^= 1
    slm.write_bytes(content)
    for n_cores in (1, 2, 7):
        monkeypatch.setattr("shared.bundle._n_cores", lambda n=n_cores: n)
        seen = []
        with open_bundle(slm, TRUSTED) as bundle, pytest.raises(BundleError) as refused:
            bundle.verify_all(lambda done, total, seen=seen: seen.append(done))
        assert f"digest: tensor {names[1]} is not" in str(refused.value)
        assert len(seen) == 1


@pytest.mark.parametrize("n_cores", [1, 2])
def test_tensors_read_by_parts_are_the_same_and_refused_the_same(slm, monkeypatch, n_cores):
    monkeypatch.setattr("shared.bundle._n_cores", lambda: n_cores)
    monkeypatch.setattr("shared.bundle.CHUNK_BYTES", 24)  # parts of whole elements, of every type
    with open_bundle(slm, TRUSTED) as bundle:
        names = bundle.names[::-1]
        whole = {name: bundle.array(name) for name in names}
        made = {name: np.zeros_like(array).reshape(-1) for name, array in whole.items()}

        def taker(name):
            def take(part, position):
                made[name][position : position + len(part)] += part

            return take

        takers, done = {name: taker(name) for name in names}, []
        bundle.read_parts(takers, done.append)
        assert done == list(names)
        assert all(np.array_equal(made[name], whole[name].reshape(-1)) for name in names)
        content = bytearray(slm.read_bytes())
        content[bundle._data_start + bundle.manifest.tensors[names[2]].start] ^= 1
        slm.write_bytes(content)
        done.clear()
        with pytest.raises(BundleError, match=f"digest: tensor {names[2]} is not"):
            bundle.read_parts(takers, done.append)
        assert done == list(names[:2])
