"""The attacks of the audit, each against what is known, and the figures that they must not invent."""

import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from owner.audit.attacks import (
    PREFIX_TOKENS,
    TokenFigures,
    auc_interval,
    distances,
    expose,
    rank_auc,
    recite,
    sure_fraction,
    token_figures,
)
from owner.audit.auditing import read_report
from owner.audit.summarizing import summarize_audit
from owner.privacy.canaries import draw_canaries, plant_canaries
from shared.batches import Sampler, all_microbatches
from shared.errors import PlanearlyError
from shared.losses import evaluate
from shared.materializing import materialize
from shared.sizes import PRESETS
from shared.slm import build_slm
from shared.train_config import TrainConfig
from shared.training import train
from tests.conftest import make_windows
from tests.test_materializing import pn_bundle
from tests.test_private_training import make_split


def test_the_auc_is_the_share_of_pairs_in_order():
    generator = np.random.default_rng(0)
    members, others = generator.integers(0, 9, 23), generator.integers(2, 11, 31)
    pairs = [(m < o) + (m == o) / 2 for m in members for o in others]
    assert rank_auc(members, others) == pytest.approx(np.mean(pairs))
    assert rank_auc(np.zeros(3), np.ones(5)) == 1.0
    assert sure_fraction(np.asarray([0.0, 2.0]), np.ones(50)) == 0.5


@pytest.mark.parametrize("shift", [0.0, 0.7, 1.6])
def test_the_interval_holds_the_true_auc_nineteen_times_in_twenty(shift):
    generator = np.random.default_rng(1)
    true = 0.5 * (1 + math.erf(shift / 2))  # of two normals that are shift apart: Phi(shift / sqrt 2)
    n_held = 0
    for _ in range(400):
        members, others = generator.normal(0, 1, 40), generator.normal(shift, 1, 15)
        low, high = auc_interval(rank_auc(members, others), 40, 15)
        assert 0 <= low < high <= 1
        n_held += low <= true <= high
    assert n_held / 400 == pytest.approx(0.95, abs=0.04)


def test_an_interval_at_the_end_has_width():
    low, high = auc_interval(1.0, 8, 3)
    assert high == pytest.approx(1.0)
    assert 0.3 < low < 0.9


def test_a_windows_figures_are_those_of_the_loss_and_of_greedy_decoding():
    torch.manual_seed(0)
    model, windows = build_slm(PRESETS["test"]), make_windows([31, 5, 32, 17])
    figures = token_figures(model, windows)
    nats = sum(float(one.nats.sum()) for one in figures)
    found = evaluate(model, None, all_microbatches(windows, 32, 2))
    assert nats / windows.n_tokens == pytest.approx(found.mean, rel=1e-5)
    assert [len(one.nats) for one in figures] == [31, 5, 32, 17]


def test_recital_counts_the_tokens_up_to_the_first_wrong_one():
    def window(right, n):
        is_likeliest = np.zeros(PREFIX_TOKENS + n, bool)
        is_likeliest[PREFIX_TOKENS : PREFIX_TOKENS + right] = True
        is_likeliest[PREFIX_TOKENS + right + 1 :] = True
        return TokenFigures(np.zeros(PREFIX_TOKENS + n, np.float32), is_likeliest)

    found = recite([window(0, 4), window(3, 9), window(5, 5), window(0, 0)])
    assert (found.windows, found.longest_tokens) == (3, 5)
    assert found.mean_tokens == pytest.approx(8 / 3)
    assert recite([]).windows == 0


def test_recital_is_what_generate_writes():
    """The one-pass figures against transformers' own greedy decoding, on text the model has learned."""
    windows = make_windows([31] * 2, vocab_size=20)
    model = learned(windows, steps=60)
    ids = torch.from_numpy(windows.tokens(0).astype(np.int64))
    right = token_figures(model, windows)[0].is_likeliest
    n_prefix = 6
    expected = int(np.argmin(np.append(right[n_prefix:], False)))
    asked = torch.cat([torch.tensor([1]), ids[:n_prefix]]).unsqueeze(0)
    model.config.use_cache = True
    written = model.generate(
        asked, max_new_tokens=31 - n_prefix, do_sample=False, pad_token_id=2, eos_token_id=None
    )
    same = written[0, 1 + n_prefix :] == ids[n_prefix:]
    assert int(np.argmin(np.append(same.numpy(), False))) == expected
    assert expected > 3


def learned(windows, steps):
    torch.manual_seed(0)
    model = build_slm(PRESETS["test"])
    config = TrainConfig(
        steps,
        rows_per_step=4,
        rows_per_microbatch=4,
        learning_rate=0.02,
        warmup_steps=1,
        eval_every_steps=steps,
    )
    with tempfile.TemporaryDirectory() as temporary:
        train(model, None, Sampler(windows, 32, 4, 4, 0), lambda: [*all_microbatches(windows, 32, 4)], config,
              Path(temporary), lambda line: None)  # fmt: skip
    return model.eval()


def test_canaries_are_exposed_where_they_were_planted_and_only_there():
    split, canaries = make_split(), draw_canaries(3, 300, seed=5)
    with_them = learned(plant_canaries(split, canaries).train, steps=150)
    without = learned(split.train, steps=30)
    found, control = expose(with_them, canaries, 0), expose(without, canaries, 0)
    assert found.mean_bits == 10.0
    assert found.completed == 3
    assert control.mean_bits < 5
    assert control.completed == 0


def test_a_fine_tuned_model_lies_nearest_to_its_start(tmp_path):
    with pn_bundle(tmp_path) as bundle:
        model = materialize(bundle, 3)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.001 * torch.randn_like(parameter)
        found = distances(model, bundle)
    assert next(iter(found)) == "expert-3"
    assert list(found.values()) == sorted(found.values())
    assert set(found) == {*(f"expert-{i}" for i in range(5)), "slm"}


def test_what_is_no_out_folder_is_refused(tmp_path):
    (tmp_path / "report.json").write_text('{"run": "x"}')
    with pytest.raises(PlanearlyError, match="no report.json that can be audited"):
        read_report(tmp_path)


def test_every_line_of_the_short_form_stands_beside_what_it_is_compared_with():
    recital = {"windows": 5, "longest_tokens": 9, "mean_tokens": 1.0}
    exposure = {"bits": [3.0], "mean_bits": 3.0, "completed": 1}
    found = {
        "privacy": {"epsilon": 3.0, "delta": 1e-5},
        "membership": {"score": "loss ratio to the start", "unit": "documents", "trained": 7, "heldout": 2,
                       "auc": 0.75, "auc_95": [0.5, 0.9], "found_at_1_percent_false": 0.25},
        "verbatim": {"prefix_tokens": 32, "model": {"trained": recital, "heldout": recital},
                     "start": {"trained": recital, "heldout": recital}},
        "canaries": {"planted": 4, "repeats": 8, "candidates": 1024, "model": exposure, "start": exposure},
        "start": {"true": "expert-1", "nearest": "expert-1", "distance": 2.0, "next": "slm",
                  "next_distance": 9.0},
    }  # fmt: skip
    text = "\n".join(summarize_audit(found))
    parts = ["0.750 (95 %: 0.500 to 0.900", "25% found", "9 tokens", "3.0 of 10 bits", "1 of 4", "4.5 times"]
    for part in (*parts, "epsilon 3"):
        assert part in text
    bare = found | {"privacy": None, "canaries": None, "start": None}
    bare["verbatim"] = found["verbatim"] | {"start": None}
    text = "\n".join(summarize_audit(bare))
    assert "--canaries" in text
    assert "--bundle" in text
    assert "given away" not in text
    elsewhere = found["start"] | {"true": "histogram"}
    assert "not given away" in "\n".join(summarize_audit(found | {"start": elsewhere}))
    assert "says nothing" in "\n".join(summarize_audit(found | {"start": elsewhere | {"next": None}}))
