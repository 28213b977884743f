"""The cost model's arithmetic against torch's own counts and slow sums; the page's tables are its output."""

import itertools
import math
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from provider import costs
from shared.batches import alone
from shared.projection import ProjectedNetwork, feed_forward_linears
from shared.sizes import PRESETS, SlmConfig
from shared.slm import build_slm, count_parameters
from tests.parties import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import rates  # noqa: E402
import scaling  # noqa: E402

PLANS = [
    costs.Plan(2**17, n_gpus, 2, points, sends_leaves=leaves, is_sharded=shards)
    for n_gpus, points, leaves, shards in itertools.product(
        (1, 2, 8, 64), (0, 1.5), (False, True), (False, True)
    )
]
TRAFFIC_SIZES = [
    (2, 256, 640, 2000, 4),
    (6, 128, 512, 1000, 8),
    (3, 192, 320, 4000, 2),
    (2, 128, 256, 500, 16),
]
"""Layers, D, F, V and rows of 64 tokens, in which no two terms go together."""


class Traffic(TorchDispatchMode):
    """Adds up the bytes that every operation reads and writes; a view moves nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        read = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        written = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
        places = {t.untyped_storage().data_ptr() for t in read}
        name = function._schema.name
        is_view = written and all(t.untyped_storage().data_ptr() in places for t in written)
        if "empty" not in name and (not is_view or name.endswith("_")):
            self.bytes += sum(t.numel() * t.element_size() for t in read + written)
        return result


def run(model: Any, is_training: bool, n_rows: int = 4) -> int:
    """A forward pass as the training loop does it on hardware with bfloat16, and the loss backward."""
    sizes = model.config
    ids = torch.randint(3, sizes.vocab_size, (n_rows, sizes.max_position_embeddings))
    positions = torch.arange(ids.shape[1]).expand(n_rows, -1)
    with torch.set_grad_enabled(is_training):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(input_ids=ids, position_ids=positions).logits
        logits = logits.float().flatten(0, 1)
        if is_training:
            torch.nn.functional.cross_entropy(logits, ids.flatten(), reduction="sum").backward()
    return ids.numel()


@pytest.mark.parametrize("name", ["slm-126m", "slm-126m-table6", "llm-771m", "laptop"])
def test_parameters_are_those_that_torch_counts(name):
    assert costs.System(PRESETS[name]).slm == count_parameters(build_slm(PRESETS[name], "meta"))


def test_the_papers_networks_have_the_papers_parameters():
    assert scaling.PN.trained / 1e6 == pytest.approx(1422, rel=0.001)
    assert scaling.LLM.slm / 1e6 == pytest.approx(771, rel=0.02)


def test_a_projected_networks_parameters_are_counted_but_for_its_vectors_and_mixing():
    sizes = PRESETS["test"]
    model = build_slm(sizes)
    network = ProjectedNetwork(model, feed_forward_linears(model), 5, 3, 7)
    small = sum(p.numel() for p in [network.expert_KM, *network.mixing])
    trained = sum(p.numel() for p in [*model.parameters(), *network.parameters()] if p.requires_grad)
    assert costs.System(sizes, sizes.n_layers, 7).trained == trained - small


@pytest.mark.parametrize("architecture", ["llama", "starcoder2"])
def test_flops_are_those_that_torch_counts(architecture):
    sizes = SlmConfig(architecture, 3, 64, 2, 144, 200, 32)
    model = build_slm(sizes)
    model.set_attn_implementation("eager")  # the counter does not know the CPU kernel of the other
    for is_training, passes in ((False, 1), (True, 3)):
        with FlopCounterMode(display=False) as counter:
            tokens = run(model, is_training)
        expected = passes * costs.System(sizes).forward_flops * tokens
        assert expected == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.parametrize("architecture", ["llama", "starcoder2"])
@pytest.mark.parametrize("is_training", [False, True])
def test_traffic_is_that_of_torchs_operations(architecture, is_training):
    for layers, width, ffn, vocabulary, n_rows in TRAFFIC_SIZES:
        sizes = SlmConfig(architecture, layers, width, 2, ffn, vocabulary, 64)
        model, system = build_slm(sizes), costs.System(sizes)
        with Traffic() as traffic:
            tokens = run(model, is_training, n_rows)
        found = system.token_bytes(is_training) * tokens + system.weight_bytes(is_training)
        assert found == pytest.approx(traffic.bytes, rel=0.01)


def test_traffic_of_the_projection_and_of_adam_is_that_of_torchs_operations():
    sizes = replace(PRESETS["laptop"], n_layers=2)
    model = build_slm(sizes)
    network = ProjectedNetwork(model, feed_forward_linears(model), 5, 5, 7)
    system, n_points = costs.System(sizes, 2, 7), 3
    with Traffic() as traffic:
        network.begin_step([alone(cluster) for cluster in range(n_points)])
        for cluster in range(n_points):
            for weight in network.weights_of(alone(cluster)).values():
                weight.grad = torch.ones_like(weight)
        made = traffic.bytes
        traffic.bytes = 0
        network.finish_step()
    made_by_the_test = 2 * 4 * n_points * system.projected
    banks = costs.BANK_BYTES * 7 * system.projected
    leaves = costs.LEAF_BYTES * n_points * system.projected
    assert banks + leaves == pytest.approx(made - made_by_the_test + traffic.bytes, rel=0.01)
    parameters = [p for p in [*model.parameters(), *network.parameters()] if p.requires_grad]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer = torch.optim.Adam(parameters, fused=True)
    optimizer.step()
    with Traffic() as traffic:
        torch.nn.utils.clip_grad_norm_(parameters, 5.0, foreach=False)
        optimizer.step()
    # An operation in place is counted as reading what it was given and writing all it returns: fused Adam
    # returns nothing, so what it writes is added here.
    written = 3 * 4 * system.trained
    assert costs.ADAM_BYTES * system.trained == pytest.approx(traffic.bytes + written, rel=0.01)


def slow_ring(n_gpus: int, n_bytes: float) -> float:
    """Bytes that one GPU sends: n - 1 turns of adding up and n - 1 of handing on, a piece each."""
    return sum(n_bytes / n_gpus for _ in range(2) for _ in range(n_gpus - 1))


@pytest.mark.parametrize("n_gpus", [1, 2, 5, 8, 64])
def test_exchanges_are_the_slow_sums(n_gpus):
    machine = replace(scaling.A100, link_bytes_s=100.0, node_bytes_s=50.0)
    by = 100.0 if n_gpus <= 8 else 50.0
    assert costs.ring(machine, n_gpus, 3000.0) == pytest.approx(slow_ring(n_gpus, 3000.0) / by)
    near = sum(3000.0 / n_gpus for other in range(1, n_gpus) if other < 8)
    far = sum(3000.0 / n_gpus for other in range(1, n_gpus) if other >= 8)
    assert costs.all_to_all(machine, n_gpus, 3000.0) == pytest.approx(max(near / 100.0, far / (50.0 / 8)))


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_a_steps_terms_add_up_and_one_gpu_waits_for_no_network(plan):
    system = scaling.PN if plan.points else scaling.SLM
    cost = costs.step_cost(scaling.A100, system, plan)
    terms = costs.step_terms(scaling.A100, system, plan)
    assert cost.seconds == pytest.approx(sum(seconds for *_, seconds in terms) / scaling.A100.achieved)
    assert (cost.network > 0) == (plan.n_gpus > 1)
    assert cost.flops >= 3 * system.forward_flops * plan.tokens / plan.n_gpus


def test_no_gpu_is_faster_than_its_share_of_one_and_more_gpus_are_faster():
    for system in (scaling.SLM, scaling.PN, scaling.LLM):
        seconds = [
            costs.step_cost(scaling.H200, system, scaling.our_plan(n, system)).seconds for n in (1, 8, 64)
        ]
        assert seconds[0] > seconds[1] > seconds[2]
        assert seconds[1] >= seconds[0] / 8
        assert seconds[2] >= seconds[0] / 64


def test_columns_on_one_gpu_are_whole_banks():
    whole, columns = (
        scaling.our_plan(1, scaling.PN, sends_leaves=way, is_sharded=way) for way in (False, True)
    )
    assert costs.step_cost(scaling.A100, scaling.PN, whole) == costs.step_cost(
        scaling.A100, scaling.PN, columns
    )
    assert costs.resident_bytes(scaling.PN, whole) == costs.resident_bytes(scaling.PN, columns)


def test_distinct_clusters_are_the_mean_over_all_draws():
    draws = list(itertools.product(range(3), repeat=4))
    assert costs.distinct(3, 4) == pytest.approx(sum(len(set(draw)) for draw in draws) / len(draws))


def test_work_beside_the_gpu_is_hidden_and_one_core_is_not():
    cost = costs.Cost(compute=1.0, memory=2.0, network=0.5, cpu=3.0, disk=3.25, one_core=4.0)
    assert cost.seconds == 1.0 + 2.0 + 0.5 + 4.0
    assert cost.limit == "one core"
    assert replace(cost, cpu=9.0).seconds == 13.0


def test_no_other_share_of_the_peaks_fits_the_two_cells_better():
    def misfit(achieved: float) -> float:
        machine = replace(scaling.A100, achieved=achieved)
        hours = [scaling.per_billion(machine, name, scaling.paper_plan(name)) for name in ("slm", "llm")]
        return math.log(hours[0] / 2.2) ** 2 + math.log(hours[1] / 7.7) ** 2

    best = scaling.A100.achieved
    assert misfit(best) < min(misfit(0.99 * best), misfit(1.01 * best))


def test_no_cell_of_table_2_is_off_by_more_than_a_tenth():
    for row in scaling.table_2():
        assert abs(float(str(row[4]).rstrip("%"))) <= 10, row


def test_the_given_rates_are_those_that_are_measured():
    measured = rates.windows(500)
    assert min(measured.values()) > 0
    assert set(measured) <= set(scaling.CORE)
    cell = rates.training(1, pairs=2)
    assert cell["tokens_per_step"] == PRESETS[rates.PRESET].context_tokens
    assert [set(cell)] * len(rates.ROWS) == [set(given) for given in scaling.DATA["training"]]


def test_the_page_holds_what_the_program_prints():
    page = (ROOT / "docs/scaling.md").read_text(encoding="utf-8")
    assert scaling.refreshed(page) == page
    command = [sys.executable, str(ROOT / "benchmarks/scaling.py")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    for name, content in scaling.tables().items():
        assert f"{name}\n\n{content}" in printed
    assert scaling.refreshed(page, 2.0) != page
