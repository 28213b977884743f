"""The file changes while it is read: what comes out is what was signed, or an error; never something else."""

import hashlib
import os
import random
import subprocess
import sys
import time

import pytest
import torch

from shared.bundle import open_bundle
from shared.errors import BundleError
from shared.tensors import read_tensor
from tests.mutants import make_good
from tests.test_bundle import TRUSTED

SWAPPER = """
import os, random, sys
path, good, other, seed = sys.argv[1:]
source = random.Random(int(seed))
good, other = (open(name, "rb").read() for name in (good, other))
while True:
    way = source.randrange(5)
    if way == 0:
        with open(path + ".new", "wb") as file:
            file.write(source.choice([good, other, b"something else"]))
        os.replace(path + ".new", path)
        continue
    with open(path, "r+b") as file:
        at = source.randrange(len(good))
        if way == 1:
            os.pwrite(file.fileno(), source.randbytes(source.randint(1, 64)), at)
        elif way == 2:
            os.truncate(file.fileno(), at)
        elif way == 3:
            os.pwrite(file.fileno(), other[at:], at)
        else:
            os.pwrite(file.fileno(), good, 0)
            os.truncate(file.fileno(), len(good))
"""
"""Another process that renames over the file, writes into it, cuts it, mends it, without a pause."""


@pytest.mark.parametrize("seed", range(3))
def test_what_is_read_while_another_process_writes_is_what_was_signed(tmp_path, seed):
    make_good(tmp_path)
    signed = {}  # version -> name -> digest
    for name in ("good.st", "other.st"):
        with open_bundle(tmp_path / name, TRUSTED) as bundle:
            digests = {name: entry.sha256 for name, entry in bundle.manifest.tensors.items()}
            signed[bundle.manifest.version] = digests
    path = tmp_path / "swapped.st"
    path.write_bytes((tmp_path / "good.st").read_bytes())
    files = [path, tmp_path / "good.st", tmp_path / "other.st"]
    swapper = subprocess.Popen([sys.executable, "-c", SWAPPER, *map(str, files), str(seed)])
    source, n_read, n_refused, n_changed = random.Random(seed), 0, 0, 0
    end = time.monotonic() + 2.5
    try:
        while time.monotonic() < end:
            try:
                with open_bundle(path, TRUSTED) as bundle:
                    digests = signed[bundle.manifest.version]
                    assert {name: entry.sha256 for name, entry in bundle.manifest.tensors.items()} == digests
                    if source.random() < 0.5:
                        bundle.verify_all()
                    for name in source.sample(bundle.names, 5):
                        time.sleep(source.random() / 5000)
                        raw = read_tensor(bundle, name).flatten().view(torch.uint8).numpy()
                        assert hashlib.sha256(raw).hexdigest() == digests[name]
                        n_read += 1
                    status = os.stat(path)
                    n_changed += status.st_ino != os.fstat(bundle._file.fileno()).st_ino
            except BundleError:
                n_refused += 1
    finally:
        swapper.kill()
        swapper.wait()
    assert n_refused > 20
    assert n_read > 20
    assert n_changed > 0


def test_a_bundle_written_over_after_it_was_verified_is_refused_when_used(tmp_path):
    """Every byte of the data, one after another, changes between the check and the use."""
    good = make_good(tmp_path)
    path = tmp_path / "good.st"
    with open_bundle(path, TRUSTED) as bundle, open(path, "r+b") as file:
        bundle.verify_all()
        for name in bundle.names:
            entry = bundle.manifest.tensors[name]
            start, end = (good.header_end + at for at in (entry.start, entry.end))
            for at in range(start, end, 7):
                os.pwrite(file.fileno(), bytes([good.content[at] ^ 1]), at)
                with pytest.raises(BundleError, match=f"digest: tensor {name} is not what was signed"):
                    read_tensor(bundle, name)
                os.pwrite(file.fileno(), good.content[at : at + 1], at)
        bundle.verify_all()
        os.pwrite(file.fileno(), bytes(8 + 64), 0)  # the header was read once, and is not read again
        bundle.verify_all()
