"""Damaged bundles by the thousand, seeded: none is accepted, and every refusal is an error of ours."""

import os
import random
from itertools import islice
from pathlib import Path

import pytest

from shared.bundle import open_bundle
from shared.errors import BundleError
from tests.mutants import MUTATORS, every_bit, make_good, mutants
from tests.test_bundle import TRUSTED, read_everything

MEMORY = Path("/dev/shm")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A small good bundle, and another one to splice it with."""
    return make_good(tmp_path_factory.mktemp("good"))


@pytest.fixture
def path(tmp_path):
    """Where mutants are written: in memory, where there is such a folder."""
    if not MEMORY.is_dir():
        yield tmp_path / "mutant.st"
        return
    path = MEMORY / f"planearly-mutant-{os.getpid()}.st"
    yield path
    path.unlink()


def refuse(path, name, content):
    """Write the bytes and demand that they are refused with an error of ours, in short plain words."""
    path.write_bytes(content)
    try:
        with open_bundle(path, TRUSTED) as bundle:
            bundle.verify_all()
    except BundleError as error:
        message = str(error).removeprefix(f"{path}: ")
        assert message.isascii()
        assert message.isprintable()
        assert len(message) <= 500
        return
    pytest.fail(f"{name}: accepted")


def test_no_mutant_is_accepted(good, path):
    n_mutants, identical = 20_000, 0
    for name, mutant in islice(mutants(good, random.Random(20261121)), n_mutants):
        if mutant in (good.content, good.other):
            identical += 1
        else:
            refuse(path, name, mutant)
    assert identical < n_mutants / 50
    for content in (good.content, good.other):
        path.write_bytes(content)
        assert read_everything(path)


@pytest.mark.parametrize("name", MUTATORS)
def test_a_mutator_is_the_same_for_the_same_seed_and_does_damage(good, name):
    one, two = ([MUTATORS[name](good, random.Random(seed)) for seed in range(20)] for _ in range(2))
    assert one == two
    assert len({mutant for mutant in one if mutant not in (good.content, good.other)}) > 5


def test_no_cut_is_accepted(good, path):
    path.write_bytes(good.content)
    for length in range(len(good.content) - 1, -1, -1):
        os.truncate(path, length)
        with pytest.raises(BundleError):
            open_bundle(path, TRUSTED)


def test_no_flipped_bit_of_the_length_or_signature_is_accepted(good, path):
    start, end = good.signature_span
    for span in ((0, 8), (start - 60, end + 4)):
        for name, mutant in every_bit(good, *span):
            refuse(path, name, mutant)
