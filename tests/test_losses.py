import numpy as np
import pytest
import torch

from shared import losses
from shared.batches import all_microbatches
from shared.losses import evaluate, sum_nats
from shared.sizes import PRESETS
from shared.slm import build_slm
from tests.conftest import make_windows


def gradients(model, batch):
    model.zero_grad()
    loss = sum_nats(model, {}, batch)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rows", [1, 7, 31])
def test_logits_in_chunks_give_the_loss_and_gradients_of_whole_ones(monkeypatch, rows, dtype):
    torch.manual_seed(0)
    model = build_slm(PRESETS["test"]).to(dtype)
    (batch,) = list(all_microbatches(make_windows([20, 31, 9]), 32, 4))
    assert (batch.labels == losses.IGNORED).any()
    whole, expected = gradients(model, batch)
    monkeypatch.setattr(losses, "LOGITS_BYTES", 4 * PRESETS["test"].vocab_size * rows)
    loss, found = gradients(model, batch)
    close = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(loss, whole, **close)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, **close)


def test_no_more_logits_than_allowed_are_in_memory(monkeypatch):
    torch.manual_seed(0)
    model = build_slm(PRESETS["test"])
    batches = list(all_microbatches(make_windows([32] * 6), 32, 6))
    whole = evaluate(model, None, batches).mean
    most, seen = 5 * 4 * PRESETS["test"].vocab_size, []
    make = losses._logits
    monkeypatch.setattr(losses, "LOGITS_BYTES", most)
    monkeypatch.setattr(losses, "_logits", lambda *a: seen.append(make(*a)) or seen[-1])
    assert np.isclose(evaluate(model, None, batches).mean, whole, rtol=1e-3)
    sum_nats(model, {}, batches[0]).backward()
    assert len(seen) == 2 * -(-6 * 32 // 5)
    assert max(logits.nbytes for logits in seen) <= most


def test_without_gradients_none_are_made(monkeypatch):
    model = build_slm(PRESETS["test"])
    (batch,) = list(all_microbatches(make_windows([20]), 32, 1))
    monkeypatch.setattr(losses, "LOGITS_BYTES", 1)
    made = []
    monkeypatch.setattr(torch.Tensor, "scatter_add_", lambda *a: made.append(a))
    with torch.no_grad():
        assert not sum_nats(model, {}, batch).requires_grad
    assert not made
