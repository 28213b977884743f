"""LoRA (App. F): the base weights stay, the merged model is the stock model."""

import torch

from owner.training.lora import add_lora, merge_lora
from shared.batches import Sampler, all_microbatches
from shared.sizes import PRESETS
from shared.slm import build_slm
from shared.train_config import TrainConfig
from shared.training import train
from tests.conftest import make_windows


def test_the_base_weights_are_unchanged_and_the_merged_model_is_stock(tmp_path):
    torch.manual_seed(0)
    model = build_slm(PRESETS["test"])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    windows = make_windows([32] * 24)
    adapted = add_lora(model, 3)
    config = TrainConfig(
        steps=12, rows_per_step=4, rows_per_microbatch=4, learning_rate=2e-2, warmup_steps=1,
        eval_every_steps=4, patience_evals=9,
    )  # fmt: skip
    heldout = list(all_microbatches(windows, 32, 8))
    result = train(
        adapted, None, Sampler(windows, 32, 4, 4, 0), lambda: heldout, config, tmp_path, lambda line: None
    )
    assert result.heldout_loss < result.history[0]["heldout_loss"]
    for name, p in adapted.named_parameters():
        if "lora_" not in name:
            plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
            assert torch.equal(p, before[plain]), name
            assert not p.requires_grad
    ids = torch.arange(3, 20).unsqueeze(0)
    with torch.no_grad():
        tuned = adapted.eval()(ids).logits
        merged = merge_lora(adapted)
        torch.testing.assert_close(merged(ids).logits, tuned, rtol=1e-4, atol=1e-5)
    assert set(dict(merged.named_parameters())) == set(before)
    changed = {name for name, p in merged.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if "q_proj" in name or "v_proj" in name}


def test_rank_64_on_the_papers_llm_has_its_5_million_trainable_parameters():
    with torch.device("meta"):
        adapted = add_lora(build_slm(PRESETS["llm-771m"], "meta"), 64)
    trainable = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert round(trainable / 1e6) == 5
