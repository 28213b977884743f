import os
import shutil
import subprocess
import sys

import pytest

CODE = """
from dataclasses import replace
import torch
torch.set_num_threads(1)
from shared.compiling import compile_layers
from shared.losses import sum_nats
from shared.slm import build_slm
from shared.sizes import PRESETS
from shared.batches import all_microbatches
from tests.conftest import make_windows
import shared.device
shared.device.has_bf16 = lambda device: False
torch.manual_seed(0)
model = build_slm(replace(PRESETS["test"], n_layers=1))
def look():
    model.zero_grad()
    loss = [sum_nats(model, {}, batch) for batch in all_microbatches(make_windows([31, 9, 20]), 32, 1)]
    sum(loss).backward()
    return [float(one.detach()) for one in loss], [p.grad.clone() for p in model.parameters()]
plain, gradients = look()
print("compiled", compile_layers(model, print))
losses, others = look()
torch.testing.assert_close(torch.tensor(losses), torch.tensor(plain), rtol=1e-5, atol=1e-5)
torch.testing.assert_close(others, gradients, rtol=1e-3, atol=1e-4)
"""


def compile_with(compiler, folder):
    environment = os.environ | {"CXX": compiler, "TORCHINDUCTOR_CACHE_DIR": str(folder)}
    done = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_compiled_layers_give_the_loss_and_gradients_of_plain_ones(tmp_path):
    assert compile_with("g++", tmp_path)[0] == "compiled True"


def test_without_a_compiler_it_says_so_and_goes_on(tmp_path):
    lines = compile_with("/nonexistent/c++", tmp_path)
    assert lines[0].startswith("torch.compile failed (")
    assert "going on without" in lines[0]
    assert lines[1] == "compiled False"
