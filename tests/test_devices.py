"""What both parties compute, on a device that is not the CPU, and what only a GPU's path does."""

import os
import subprocess
import sys
import warnings

import pytest
import torch

from shared.batches import Sampler
from shared.device import make_deterministic
from shared.prefetching import made_ahead, rows_of_steps
from tests.conftest import make_windows
from tests.parties import ROOT


def test_both_parties_keep_their_tensors_on_one_device():
    command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", "-p", "no:randomly"]
    done = subprocess.run(
        [*command, ROOT / "tests" / "other_device.py"], capture_output=True, text=True, cwd=ROOT, timeout=600
    )
    assert done.returncode == 0, done.stdout


def test_rows_made_ahead_are_the_samplers_own():
    windows = make_windows([31, 9, 20, 7, 32, 30, 11], clusters=[0, 1, 2, 0, 1, 2, 2])
    plain = list(rows_of_steps(Sampler(windows, 32, 4, 2, 1).step, range(3, 8), torch.device("cpu")))
    ahead = list(made_ahead(Sampler(windows, 32, 4, 2, 1).step, range(3, 8)))
    assert len(plain) == len(ahead) == 5
    for one, other in zip(plain, ahead, strict=True):
        for batch, same in zip(one, other, strict=True):
            assert batch.mixture == same.mixture
            assert batch.n_tokens == same.n_tokens
            for name in ("input_ids", "position_ids", "labels"):
                assert torch.equal(getattr(batch, name), getattr(same, name))


def test_at_most_one_step_is_made_ahead_and_its_error_comes_when_it_is_due():
    asked = []

    def rows_of(step):
        asked.append(step)
        if step == 2:
            raise OSError("the disk is gone")
        return []

    rows = made_ahead(rows_of, range(9))
    assert next(rows) == []
    assert max(asked) <= 1
    assert next(rows) == []
    with pytest.raises(OSError, match="the disk is gone"):
        next(rows)
    assert asked == [0, 1, 2]


def test_no_steps_ask_for_no_rows():
    assert list(made_ahead(lambda step: pytest.fail("asked"), range(4, 4))) == []


@pytest.mark.parametrize("kind", ["Flash Attention", "cuDNN Attention", "Memory Efficient attention"])
def test_torchs_words_on_cudas_attention_are_left_to_the_manual(kind):
    make_deterministic(0)
    warnings.warn(f"{kind} defaults to a non-deterministic algorithm. To explicitly", stacklevel=1)
    with pytest.raises(UserWarning):
        warnings.warn("cumsum_cuda_kernel does not have a deterministic implementation", stacklevel=1)


def test_cuda_products_are_asked_for_a_workspace_that_repeats(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    make_deterministic(0)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] in (":4096:8", ":16:8")  # those that torch takes
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    make_deterministic(0)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
