"""Where fine-tuning starts from, what it does on the way, and which result is kept."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from owner.choice.candidates import Start, check_method, choose_starts, expert_start, histogram_start
from owner.choice.methods import METHODS
from owner.choice.selecting import Selection
from owner.documents.windows import Split
from owner.training.adapting import (
    Replay,
    adapt,
    finetune_teacher,
)
from owner.training.finetuning import FinetuneConfig
from owner.training.matching import check_pack, check_same_tokenizer, check_teacher
from owner.training.replaying import ReplayConfig, replay_weights
from shared.batches import all_microbatches
from shared.errors import BundleError, PlanearlyError
from shared.losses import evaluate
from shared.materializing import comparison_slm, materialize
from shared.replay import replay_tensors, replay_windows, sample_replay
from tests.conftest import make_windows
from tests.test_materializing import N_EXPERTS, manifest, pn_bundle, write

CPU = torch.device("cpu")
CONFIG = FinetuneConfig(max_epochs=2, rows_per_microbatch=2, least_steps_per_epoch=4, rate_fraction=0.3)
SELECTION = Selection(1, [1, 5, 0, 2, 0])


@pytest.fixture
def bundle(tmp_path):
    with pn_bundle(tmp_path) as opened:
        yield opened


@pytest.fixture
def split():
    """Text of few words, so that a few steps learn something."""
    windows = make_windows([32] * 40, vocab_size=12)
    numbers = np.arange(40, dtype=np.int32)
    train = numbers < 32
    return Split(windows.take(train), windows.take(~train), "documents", numbers[train], numbers[~train])


def quiet(line):
    pass


def loss_of(model, split):
    return evaluate(model, None, all_microbatches(split.heldout, 32, 2)).mean


def run(bundle, split, tmp_path, method="most-frequent", config=CONFIG, **more):
    work = tmp_path / f"work-{method}"
    work.mkdir(exist_ok=True)
    return adapt(bundle, split, SELECTION, method, config, CPU, work, "run", quiet, **more)


def test_the_histogram_start_is_the_weighted_mean_of_the_experts_weights(bundle):
    mixed = dict(histogram_start(bundle, SELECTION).materialize(bundle).named_parameters())
    experts = [dict(materialize(bundle, i).named_parameters()) for i in range(N_EXPERTS)]
    for name, weight in mixed.items():
        mean = sum(count / 8 * experts[i][name] for i, count in enumerate(SELECTION.histogram))
        torch.testing.assert_close(weight, mean, rtol=1e-5, atol=1e-6)


def test_most_frequent_starts_from_the_selected_expert(bundle, split, tmp_path):
    adapted = run(bundle, split, tmp_path)
    assert adapted.chosen == expert_start(1)
    assert math.log(adapted.figures["expert-1"]["before"]) == pytest.approx(
        loss_of(materialize(bundle, 1), split), rel=1e-6
    )
    assert math.log(adapted.figures["expert-1"]["after"]) == pytest.approx(loss_of(adapted.model, split))
    assert set(adapted.figures) == {"expert-1", "slm"}


def test_best_pretrained_is_the_lowest_of_all_before_fine_tuning(bundle, split, tmp_path):
    losses = [loss_of(materialize(bundle, i), split) for i in range(N_EXPERTS)]
    adapted = run(bundle, split, tmp_path, "best-pretrained")
    assert adapted.chosen.expert == int(np.argmin(losses))
    assert [start.heldout_loss for start in adapted.starts] == pytest.approx(losses)


def test_best_fine_tuned_is_the_lowest_of_all_after_it(bundle, split, tmp_path):
    adapted = run(bundle, split, tmp_path, "best-fine-tuned", compare=False)
    assert set(adapted.figures) == {f"expert-{i}" for i in range(N_EXPERTS)}
    lowest = min(figures["after"] for figures in adapted.figures.values())
    assert adapted.figures[adapted.chosen.name]["after"] == lowest
    assert loss_of(adapted.model, split) == pytest.approx(math.log(lowest))


def test_a_learned_point_moves_the_vector_alone_and_is_no_worse_than_its_start(bundle, split, tmp_path):
    adapted = run(bundle, split, tmp_path, "learned", compare=False)
    learned = adapted.chosen
    before = [s.heldout_loss for s in adapted.starts if s.name != "learned"]
    assert learned.heldout_loss <= min(before)
    assert loss_of(learned.materialize(bundle), split) == pytest.approx(learned.heldout_loss, rel=1e-4)
    point, expert = (dict(s.materialize(bundle).named_parameters()) for s in (learned, expert_start(1)))
    projected = {f"{name}.weight" for name in bundle.manifest.linears}
    assert {n for n in point if not torch.equal(point[n], expert[n])} == projected


def test_auto_ends_no_worse_on_the_held_out_text_than_the_plain_model(bundle, split, tmp_path):
    adapted = run(bundle, split, tmp_path, "auto")
    assert {start.name for start in adapted.starts} == {"expert-1", "histogram", "learned", "slm"}
    assert len(adapted.figures) == 2
    assert adapted.figures[adapted.chosen.name]["after"] <= adapted.figures["slm"]["after"]
    assert loss_of(adapted.model, split) == pytest.approx(
        math.log(adapted.figures[adapted.chosen.name]["after"])
    )


def test_auto_keeps_the_plain_model_where_that_is_better(bundle):
    losses = {"expert-1": 3.0, "histogram": 3.2, "slm": 2.0}

    def measure(start):
        return replace(start, heldout_loss=losses[start.name])

    chosen, starts = choose_starts(
        "auto", bundle, SELECTION, measure, lambda start: Start("learned", vector=(0.0,), heldout_loss=2.9)
    )
    assert [start.name for start in chosen] == ["learned", "slm"]
    assert len(starts) == 4


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_adaptation_goes_on_to_the_same_bits(bundle, split, tmp_path, method):
    if method == "best-fine-tuned":
        pytest.skip("the same as most-frequent, five times")
    whole = run(bundle, split, tmp_path, method)

    class Killed(BaseException):
        pass

    lines = []

    def stop(line):
        lines.append(line)
        if len(lines) == 2:
            raise Killed

    work = tmp_path / "again"
    work.mkdir()
    config = replace(CONFIG, checkpoint_every_s=0.0)
    with pytest.raises(Killed):
        adapt(bundle, split, SELECTION, method, config, CPU, work, "run", stop)
    again = adapt(bundle, split, SELECTION, method, config, CPU, work, "run", quiet)
    assert again.chosen == whole.chosen
    for (name, one), two in zip(whole.model.named_parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, two), name


def test_every_method_has_a_meaning(bundle, split, tmp_path):
    for method in METHODS:
        check_method(method, bundle)


def test_a_mixture_has_no_points_between_experts(tmp_path):
    from tests.test_materializing import mix_bundle

    with mix_bundle(tmp_path) as bundle:
        for method in ("histogram", "learned"):
            with pytest.raises(PlanearlyError, match="no points between experts"):
                check_method(method, bundle)
        check_method("auto", bundle)


def replay_source(clusters=(0, 1, 2, 3, 4) * 8):
    return make_windows([32] * len(clusters), clusters=list(clusters), vocab_size=12, seed=4)


def test_a_pack_reads_back_window_by_window(tmp_path):
    windows = replay_source()
    fields = manifest("replay", replay={"tokens": windows.n_tokens, "windows": len(windows)}, n_experts=1)
    fields["training"] = {"corpus": "c", "sources": [], "seed": 0}
    with write(tmp_path, fields, replay_tensors(windows), name="pack.st") as pack:
        pack.verify_all()
        found = replay_windows(pack)
        assert found.cluster.tolist() == windows.cluster.tolist()
        for window in range(len(windows)):
            assert found.tokens(window).tolist() == windows.tokens(window).tolist()
        with pytest.raises(PlanearlyError, match="holds no model"):
            check_method("most-frequent", pack)


def test_a_bundle_of_models_is_no_pack(bundle):
    with pytest.raises(BundleError, match="kind is pn, expected replay"):
        replay_windows(bundle)


def test_a_pack_has_so_many_windows_of_each_cluster_and_the_same_for_everyone():
    windows = make_windows([7] * 30, clusters=[0] * 3 + [1] * 27)
    one, two = sample_replay(windows, 5, seed=2), sample_replay(windows, 5, seed=2)
    assert np.bincount(one.cluster).tolist() == [3, 5]
    assert one.start.tolist() == two.start.tolist()


def test_the_packs_weights_give_its_rows_the_owners_histogram(tmp_path):
    windows = replay_source((0,) * 20 + (1,) * 10 + (2,) * 5 + (3, 4) * 5)
    weights = replay_weights(np.array(SELECTION.histogram), windows)
    drawn = weights * np.bincount(windows.cluster)
    np.testing.assert_allclose(drawn / drawn.sum(), np.array(SELECTION.histogram) / 8)


def test_replay_comes_before_fine_tuning_and_is_reported(bundle, split, tmp_path):
    replay = Replay(replay_source(), np.array(SELECTION.histogram), ReplayConfig(tokens=4000, evals=2))
    adapted = run(bundle, split, tmp_path, replay=replay)
    figures = adapted.figures["expert-1"]
    assert figures["replay"]["tokens"] >= 4000
    assert figures["before"] == figures["replay"]["before"]
    assert figures["replay"]["resampling"]["n_clusters"] == 3
    assert figures["history"][0]["heldout_loss"] == pytest.approx(math.log(figures["replay"]["after"]))
    assert "replay" not in adapted.figures["slm"]


def test_a_teacher_is_fine_tuned_and_joins_the_loss(bundle, split, tmp_path):
    teacher = finetune_teacher(bundle, split, CONFIG, CPU, tmp_path / "teacher", "run", quiet)
    assert loss_of(teacher, split) < loss_of(materialize(bundle, 0), split)
    plain = run(bundle, split, tmp_path)
    (tmp_path / "taught").mkdir()
    taught = run(bundle, split, tmp_path / "taught", teacher=teacher)
    assert taught.figures["slm"]["history"] == plain.figures["slm"]["history"]
    ours, theirs = (a.figures["expert-1"]["history"] for a in (taught, plain))
    assert ours[0]["heldout_loss"] == theirs[0]["heldout_loss"]
    assert ours[1]["heldout_loss"] != theirs[1]["heldout_loss"]


def test_a_teacher_of_another_tokenizer_is_refused(bundle, tmp_path):
    (tmp_path / "other").mkdir()
    with pn_bundle(tmp_path / "other", tokenizer=b"[2]") as other:
        with pytest.raises(PlanearlyError, match="its tokenizer has digest"):
            check_same_tokenizer(bundle, other)
        check_same_tokenizer(bundle, bundle)


def test_a_pack_of_longer_windows_and_a_teacher_of_a_shorter_context_are_refused(bundle, tmp_path):
    (tmp_path / "other").mkdir()
    with pn_bundle(tmp_path / "other", context_tokens=16) as shorter:
        with pytest.raises(PlanearlyError, match="windows of 32 tokens for a context of 16"):
            check_teacher(bundle, shorter)
        check_teacher(shorter, bundle)
        with pytest.raises(BundleError, match="kind is pn, expected replay"):
            check_pack(bundle, shorter)


def test_lora_ends_as_a_stock_model(bundle, split, tmp_path):
    adapted = run(bundle, split, tmp_path, config=replace(CONFIG, lora_rank=2, rate_fraction=1.0))
    plain = dict(comparison_slm(bundle).named_parameters())
    assert set(dict(adapted.model.named_parameters())) == set(plain)
    assert loss_of(adapted.model, split) == pytest.approx(
        math.log(adapted.figures["expert-1"]["after"]), rel=1e-5
    )
