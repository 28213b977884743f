"""The n-th file call fails, for n = 1, 2, 3, ... until none fails; and every power cut, replayed.

Nothing good is lost and nothing wrong is taken: what has its final name is whole, and the same call on a
sound disk then ends as if nothing had happened.
"""

import errno
import shutil
from dataclasses import replace

import pytest
import torch

from shared.checkpoints import load_checkpoint, save_checkpoint
from shared.errors import CheckpointError
from tests import test_training, tiny
from tests.crashes import PowerCuts
from tests.disk import disk, failing, filling_up, short

KINDS = (
    lambda n: failing(n, errno.ENOSPC),
    lambda n: failing(n, errno.EDQUOT, is_lasting=True),
    lambda n: failing(n, errno.EIO),
    filling_up,
)
TRAIN = replace(test_training.CONFIG, steps=2, eval_every_steps=1, checkpoint_every_s=0.0, patience_evals=9)


def faults_until_none_fires(run):
    """Yield after each faulty run, the kinds in turn; `run` gets the number of the call that fails."""
    n = 0
    while True:
        n += 1
        with disk(KINDS[n % len(KINDS)](n)) as calls:
            try:
                run(n)
            except OSError:
                failed = True
            else:
                failed = False
        if calls.n < n:
            return
        yield n, failed


def test_training_survives_a_fault_at_any_file_call(tmp_path):
    _, whole = test_training.run(tmp_path / "whole", TRAIN)
    n_failed = 0
    for n, failed in faults_until_none_fires(lambda n: test_training.run(tmp_path / str(n), TRAIN)):
        folder = tmp_path / str(n)
        n_failed += failed
        for path in folder.glob("step-*") if folder.exists() else ():
            load_checkpoint(path)
        _, weights = test_training.run(folder, TRAIN)
        assert all(torch.equal(whole[name], weights[name]) for name in whole), n
        assert not list(folder.glob(".*"))
        shutil.rmtree(folder)
    assert n_failed > 12


def test_a_disk_that_writes_half_of_what_it_is_given_holds_it_all_in_the_end(tmp_path):
    tensors = {"a": torch.randn(50_000), "b": torch.randn(3, 5).bfloat16(), "c": torch.tensor(7)}
    with disk(short) as calls:
        save_checkpoint(tmp_path / "c.safetensors", tensors, {"step": 1})
    assert calls.n > 30
    found = load_checkpoint(tmp_path / "c.safetensors")
    assert found.record == {"step": 1}
    assert all(torch.equal(tensors[name], found.tensors[name]) for name in tensors)


def test_training_goes_on_rightly_after_every_power_cut(tmp_path):
    (tmp_path / "cut").mkdir()
    cuts = PowerCuts(tmp_path / "cut")
    with disk(cuts):
        _, whole = test_training.run(tmp_path / "cut" / "t", TRAIN)
    torn = 0
    for index, mark in enumerate(cuts.marks):
        cuts.restore(index, tmp_path / "after")
        folder = tmp_path / "after" / "t"
        for path in folder.glob("step-*") if folder.exists() else ():
            try:
                load_checkpoint(path)
            except CheckpointError:
                torn += 1
        said = []
        _, weights = test_training.run(folder, TRAIN, said=said)
        assert all(torch.equal(whole[name], weights[name]) for name in whole), cuts.states[index].keys()
        resumed = [int(line.split()[3].split("/")[0]) for line in said if line.startswith("resumed")]
        assert max(resumed, default=-1) >= mark
        shutil.rmtree(tmp_path / "after")
    assert len(cuts.states) > 20
    assert torn == 0  # a checkpoint has its name only after its content is on disk
    assert max(cuts.marks) == TRAIN.steps


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """A tiny release of one plain model, trusted; its owner's result, and runs of hers cut short."""
    folder = tmp_path_factory.mktemp("faults")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLANEARLY_HOME", "")
        patch.setattr("shared.device.has_bf16", lambda device: False)
        tiny.make_inputs(folder)
        tiny.release(folder, folder, kind="slm")
        tiny.trust(folder)
        bundle = folder / "out" / "tiny.st"
        tiny.specialize(folder, folder, bundle, checkpoint_every_s=1e9)
        for name, last in (("selected", "selection.json"), ("trained", "result")):
            (folder / name).mkdir()
            with disk(_stopping_after(last)), pytest.raises(KeyboardInterrupt):
                tiny.specialize(folder / name, folder, bundle, checkpoint_every_s=1e9)
        yield folder


def _stopping_after(last):
    """Return a deed that interrupts once a file or folder of that name is there."""

    def deed(n, name, call, arguments):
        result = call(*arguments)
        if name in ("replace", "mkdir") and arguments[-2 if name == "mkdir" else -1].name == last:
            raise KeyboardInterrupt
        return result

    return deed


@pytest.mark.parametrize(
    ("template", "until"),
    [("fresh", "selection.json"), ("selected", "result"), ("trained", "nothing")],
)
def test_specializing_survives_a_fault_at_any_file_call(job, tmp_path, template, until):
    """From three moments of a run, each up to the next, so that little is done twice."""
    bundle, whole = job / "out" / "tiny.st", tiny.fingerprint(job, *tiny.SPECIALIZED)
    n_failed = 0

    def run(n):
        folder = tmp_path / str(n)
        if template == "fresh":
            folder.mkdir(exist_ok=True)
        elif not folder.exists():
            shutil.copytree(job / template, folder)
        tiny.specialize(folder, job, bundle, checkpoint_every_s=1e9)

    for n, failed in faults_until_none_fires(run):
        n_failed += failed
        folder = tmp_path / str(n)
        assert tiny.fingerprint(folder, *tiny.SPECIALIZED) in ({}, whole)
        is_last = (folder / ".result.unfinished" / until).exists()
        run(n)
        assert tiny.fingerprint(folder, *tiny.SPECIALIZED) == whole, n
        assert not list(folder.glob(".*"))
        shutil.rmtree(folder)
        if is_last:
            break
    assert n_failed > 5


def test_a_result_is_there_as_a_whole_or_not_at_all_after_every_power_cut(job, tmp_path):
    whole = tiny.fingerprint(job, *tiny.SPECIALIZED)
    shutil.copytree(job / "trained", tmp_path / "cut")
    cuts = PowerCuts(tmp_path / "cut")
    with disk(cuts):
        tiny.specialize(tmp_path / "cut", job, job / "out" / "tiny.st", checkpoint_every_s=1e9)
    found = []
    for index in range(len(cuts.states)):
        cuts.restore(index, tmp_path / "after")
        found.append(tiny.fingerprint(tmp_path / "after", *tiny.SPECIALIZED))
        assert found[-1] in ({}, whole)
        shutil.rmtree(tmp_path / "after")
    assert {} in found
    assert found[-1] == whole
    assert found == sorted(found, key=bool)  # once there, it stays


def test_publishing_survives_a_fault_at_any_file_call(job, tmp_path):
    whole = tiny.fingerprint(job, *tiny.RELEASED)
    shutil.copytree(job / "work", tmp_path / "work")
    n_failed = 0
    for n, failed in faults_until_none_fires(lambda n: tiny.release(tmp_path, job, kind="slm")):
        n_failed += failed
        assert tiny.fingerprint(tmp_path, *tiny.RELEASED).items() <= whole.items()
        tiny.release(tmp_path, job, kind="slm")
        assert tiny.fingerprint(tmp_path, *tiny.RELEASED) == whole, n
        assert not list((tmp_path / "out").glob(".*"))
        shutil.rmtree(tmp_path / "out")
    assert n_failed > 25
