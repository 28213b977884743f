"""Several ranks against one: real torchrun, gloo on this machine's CPU, one thread each."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from provider.cli import main
from provider.parallel import joined, share_microbatches
from provider.pretraining import _pretrain_one
from provider.recipe import read_recipe
from provider.releasing import release
from provider.split_network import is_fewer_weights
from shared.batches import Sampler, all_microbatches
from shared.checkpoints import load_checkpoint
from shared.errors import RecipeError
from shared.files import remove
from shared.projection import ProjectedNetwork, feed_forward_linears
from shared.sizes import PRESETS
from shared.slm import build_slm
from shared.train_config import TrainConfig
from shared.training import train
from tests.conftest import make_windows
from tests.parties import ROOT, write_key, write_recipe

CONFIG = TrainConfig(
    steps=6, rows_per_step=8, rows_per_microbatch=1, learning_rate=1e-3, warmup_steps=2, eval_every_steps=1
)
N_CLUSTERS = 6
WINDOWS = make_windows([9, 31, 17, 5, 32, 24] * 8, clusters=[0, 1, 2, 3, 4, 5, 4, 3, 2, 1, 0, 0] * 4)
HELDOUT = make_windows([20, 30, 10, 5], clusters=[0, 1, 2, 5], seed=9)
LONG = replace(CONFIG, steps=40, eval_every_steps=10)
CAPACITIES = {"slm": None, "pn-weights": 7, "pn-banks": 2}
"""Of a bank: more slices than clusters on a rank, and fewer."""


def make_sampler(config=CONFIG):
    return Sampler(WINDOWS, 32, config.rows_per_step, config.rows_per_microbatch, seed=1, mixed_fraction=0.2)


def run(folder, capacity, config=CONFIG, ranks=None, said=None):
    """Train; return the result and the network."""
    torch.manual_seed(0)
    model = build_slm(PRESETS["test"])
    network = trained = None
    if capacity is not None:
        trained = network = ProjectedNetwork(model, feed_forward_linears(model), N_CLUSTERS, 4, capacity)
    heldout = list(all_microbatches(HELDOUT, 32, 2))
    more = {}
    if ranks is not None:
        more = {"ranks": ranks}
        if network is not None:
            trained = ranks.split(network)
    say = (lambda line: None) if said is None else said.append
    result = train(model, trained, make_sampler(config), lambda: heldout, config, folder, say, "x", **more)
    return result, network


def work(folder: Path) -> None:
    """What each rank does: all systems, one cut in two, and one so long that it is killed."""
    moments: dict[str, int] = {}

    def weigh(optimizer, *rest):
        states = optimizer.state.values()
        moments["bytes"] = sum(state["exp_avg"].nbytes + state["exp_avg_sq"].nbytes for state in states)

    register_optimizer_step_post_hook(weigh)
    with joined("cpu") as ranks:
        for name, capacity in CAPACITIES.items():
            sent = ranks.sent_bytes
            result, network = run(folder / name, capacity, ranks=ranks)
            record = {
                "history": result.history,
                "sent_bytes": ranks.sent_bytes - sent,
                "moments_bytes": moments["bytes"],
                "banks": [] if network is None else [list(bank.shape) for bank in network.bank],
            }
            (folder / f"{name}-{ranks.rank}.json").write_text(json.dumps(record))
        every_step = replace(CONFIG, checkpoint_every_s=0.0)
        run(folder / "cut", CAPACITIES["pn-weights"], every_step, ranks)
        if ranks.is_first:  # as if killed one step before the end
            sorted((folder / "cut").glob("step-*"))[-1].unlink()
        run(folder / "cut", CAPACITIES["pn-weights"], every_step, ranks)
        (folder / f"{ranks.rank}.pid").write_text(str(os.getpid()))
        run(folder.parent / "long", CAPACITIES["pn-weights"], replace(LONG, checkpoint_every_s=0.0), ranks)


START = """
import sys; sys.path.insert(0, {root!r})
import torch; torch.set_num_threads(1)
from pathlib import Path
import shared.device; shared.device.has_bf16 = lambda device: False
from provider.cli.shell import errors_printed
from provider.parallel import joined
from shared.errors import DocumentsError
{call}
"""


def start(n_ranks: int, code: str) -> subprocess.Popen[str]:
    """Start code on some ranks, on one without torchrun."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n_ranks), "--no-python"]
    return subprocess.Popen(
        [sys.executable, *(launch + [sys.executable] if n_ranks > 1 else []), "-c", code],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def newest(folder: Path) -> Path | None:
    return max(folder.glob("step-*"), default=None)


def step_of(folder: Path) -> int:
    path = newest(folder)
    return 0 if path is None else int(path.stem.removeprefix("step-"))


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """Do the work with 2 ranks, then with 4, the last rank killed while it is at the long run."""
    folder = tmp_path_factory.mktemp("ranks")
    ends = {}
    for n_ranks in (2, 4):
        (folder / str(n_ranks)).mkdir()
        goal = step_of(folder / "long") + 3
        call = f"from tests import test_ranks; test_ranks.work(Path({str(folder / str(n_ranks))!r}))"
        process = start(n_ranks, START.format(root=str(ROOT), call=call))
        end = time.monotonic() + 300
        while step_of(folder / "long") < goal and process.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        pids = [int(path.read_text()) for path in sorted((folder / str(n_ranks)).glob("*.pid"))]
        if len(pids) == n_ranks and process.poll() is None:
            os.kill(pids[-1], signal.SIGKILL)
        out, err = process.communicate(timeout=60)
        ends[n_ranks] = (process.returncode, pids, step_of(folder / "long"), out + err)
    return folder, ends


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same systems by one process."""
    folder = tmp_path_factory.mktemp("alone")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shared.device.has_bf16", lambda device: False)
        return folder, {name: run(folder / name, capacity) for name, capacity in CAPACITIES.items()}


def record_of(launched, n_ranks, name, rank):
    folder, ends = launched
    path = folder / str(n_ranks) / f"{name}-{rank}.json"
    assert path.exists(), ends[n_ranks][3]
    return json.loads(path.read_text())


def is_close(one, other):
    """Say whether two histories have the same steps and, to 1e-5 nats/token, the same losses."""
    assert [entry["step"] for entry in one] == [entry["step"] for entry in other]
    pairs = [
        (a[key], b[key]) for a, b in zip(one, other, strict=True) for key in ("train_loss", "heldout_loss")
    ]
    return all(a == b if a is None else abs(a - b) <= 1e-5 for a, b in pairs)


@pytest.mark.parametrize("name", CAPACITIES)
@pytest.mark.parametrize("n_ranks", [2, 4])
def test_ranks_together_have_the_losses_of_one(launched, alone, n_ranks, name):
    result, _ = alone[1][name]
    losses = [entry["train_loss"] for entry in result.history[1:]]
    assert max(losses) - min(losses) > 1e-3  # so that another order of samples could not pass
    for rank in range(n_ranks):
        assert is_close(result.history, record_of(launched, n_ranks, name, rank)["history"])
    one, many = (
        load_checkpoint(newest(f)).tensors for f in (alone[0] / name, launched[0] / str(n_ranks) / name)
    )
    assert one.keys() == many.keys()
    for key in one:
        torch.testing.assert_close(one[key], many[key], rtol=1e-3, atol=1e-4)


def banks_of(alone):
    _, network = alone[1]["pn-weights"]
    return [tuple(bank.shape[1:]) for bank in network.bank]


def paper_bytes(shapes_OI, trunk, capacity, n_ranks, rank):
    """Float32 bytes that one rank sends in all, loop by loop."""
    total = 0
    sampler = make_sampler()
    for step in range(CONFIG.steps):
        total += 2 * 4 * trunk * (n_ranks - 1) // n_ranks
        if capacity is None:
            continue
        clusters = [
            len({b.mixture for b in share}) for share in share_microbatches(sampler.step(step), n_ranks)
        ]
        for out, width in shapes_OI:
            rows = [out * (r + 1) // n_ranks - out * r // n_ranks for r in range(n_ranks)]
            for other in range(n_ranks):
                if other == rank:
                    continue
                if sum(clusters) < n_ranks * capacity:  # W_c there, dW_c back
                    total += 4 * width * (clusters[other] * rows[rank] + clusters[rank] * rows[other])
                else:  # T there, dT back
                    total += 4 * width * capacity * (rows[rank] + rows[other])
    if capacity is not None:
        for out, width in shapes_OI:
            mine = out * (rank + 1) // n_ranks - out * rank // n_ranks
            held_out = (CONFIG.steps + 1) * (n_ranks - 1)  # T, before and after each step
            saved = 3 * (rank > 0)  # T and two moments, once, to the first rank
            total += 4 * width * capacity * mine * (held_out + saved)
    return total


@pytest.mark.parametrize("name", CAPACITIES)
@pytest.mark.parametrize("n_ranks", [2, 4])
def test_a_rank_sends_the_bytes_that_the_rule_says_and_keeps_its_share_of_moments(
    launched, alone, n_ranks, name
):
    capacity, shapes_OI = CAPACITIES[name], banks_of(alone)
    whole = {
        key: t
        for key, t in load_checkpoint(newest(alone[0] / name)).tensors.items()
        if key.startswith("adam_mean.")
    }
    trunk = sum(tensor.numel() for key, tensor in whole.items() if ".bank." not in key)
    banks = sum(tensor.numel() for key, tensor in whole.items() if ".bank." in key)
    kept = []
    for rank in range(n_ranks):
        record = record_of(launched, n_ranks, name, rank)
        assert record["sent_bytes"] == paper_bytes(shapes_OI, trunk, capacity, n_ranks, rank)
        kept.append(record["moments_bytes"] - 2 * 4 * trunk)
        for (held, out, width), (whole_out, whole_width) in zip(
            record["banks"], shapes_OI, strict=capacity is not None
        ):
            assert (held, width) == (capacity, whole_width)
            assert out in (whole_out // n_ranks, whole_out // n_ranks + 1)
    assert sum(kept) == 2 * 4 * banks
    assert max(kept) <= 1.1 * 2 * 4 * banks / n_ranks


def test_what_is_sent_is_never_more_than_the_other_would_be(alone):
    shapes_OI = banks_of(alone)
    for n_ranks in (2, 4):
        for capacity in range(1, N_CLUSTERS + 2):
            for step in range(CONFIG.steps):
                shares = share_microbatches(make_sampler().step(step), n_ranks)
                points = [sorted({batch.mixture for batch in share}) for share in shares]
                weights, banks = (
                    sum(
                        n * (out * (r + 1) // n_ranks - out * r // n_ranks) * width
                        for out, width in shapes_OI
                        for r in range(n_ranks)
                        for q, n in enumerate(counts)
                        if q != r
                    )
                    for counts in (list(map(len, points)), [capacity] * n_ranks)
                )
                assert is_fewer_weights(points, capacity) == (weights < banks)


@pytest.mark.parametrize("n_ranks", [1, 2, 3, 4, 11])
def test_shares_are_even_and_hold_different_clusters(n_ranks):
    batches = make_sampler().step(3)
    shares = share_microbatches(batches, n_ranks)
    assert Counter(map(id, batches)) == Counter(id(batch) for share in shares for batch in share)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    points = [{batch.mixture for batch in share} for share in shares]
    assert sum(map(len, points)) - len(set().union(*points)) <= n_ranks - 1
    assert share_microbatches(batches, n_ranks) == shares


@pytest.mark.parametrize("n_ranks", [2, 4])
def test_a_run_cut_in_two_ends_with_the_same_bits_on_as_many_ranks(launched, n_ranks):
    folder = launched[0] / str(n_ranks)
    cut, whole = (load_checkpoint(newest(folder / name)).tensors for name in ("cut", "pn-weights"))
    assert cut.keys() == whole.keys()
    assert all(torch.equal(cut[name], whole[name]) for name in whole)


def test_a_killed_rank_ends_the_job_and_other_numbers_of_ranks_go_on(launched, tmp_path):
    folder, ends = launched
    for n_ranks, (status, pids, _, text) in ends.items():
        assert len(pids) == n_ranks, text
        assert status == 1
        assert "Signal 9 (SIGKILL)" in text
        assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    steps = [step for _, _, step, _ in ends.values()]
    assert 0 < steps[0] < steps[1] < LONG.steps
    said = []
    resumed, _ = run(folder / "long", CAPACITIES["pn-weights"], LONG, said=said)
    assert said[0] == f"resumed at step {steps[1]}/{LONG.steps}"
    undisturbed, _ = run(tmp_path, CAPACITIES["pn-weights"], LONG)
    assert resumed.steps_run == LONG.steps
    assert resumed.tokens == undisturbed.tokens
    assert is_close(resumed.history, undisturbed.history)


def test_a_rank_that_fails_ends_the_job_and_alone_says_why():
    call = """
with errors_printed(), joined("cpu") as ranks:
    if ranks.rank == 1:
        raise DocumentsError("no such shard", hint="mount it")
    ranks.agree(True)
"""
    process = start(2, START.format(root=str(ROOT), call=call))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1
    said = [line for line in err.splitlines() if line.startswith("provider: ")]
    assert said == ["provider: error: rank 1 of 2: no such shard", "provider: hint: mount it"]


def test_torchrun_releases_what_one_process_does(tmp_path, monkeypatch, capsys):
    write_key(tmp_path)
    (tmp_path / "corpus").mkdir()
    for name in sorted(topics, key=lambda name: -len(topics[name]))[:3]:
        (tmp_path / "corpus" / f"{name}.md").write_text(topics[name][:4000])
    recipe = write_recipe(tmp_path / "release.toml")
    text = recipe.read_text().replace("vocab_size = 500", "vocab_size = 400")
    recipe.write_text(text.replace("heldout_every = 9", "heldout_every = 3"))
    monkeypatch.chdir(tmp_path)
    losses = []
    for n_ranks in (1, 2):
        arguments = ["release", "release.toml", "--corpus", "corpus", "--out", str(n_ranks)]
        if n_ranks == 1:
            main.main(arguments, standalone_mode=False)
            out, err = capsys.readouterr()
        else:
            code = f"import os; os.chdir({str(tmp_path)!r}); from provider.cli import main; main({arguments})"
            process = start(n_ranks, START.format(root=str(ROOT), call=code))
            out, err = process.communicate(timeout=240)
            assert process.returncode == 0, err
        assert out == f"{n_ranks}/tiny.st\n"
        assert err.count("provider: tokenizer ") == 1
        stages = sorted((tmp_path / "work").glob("pretrain-*"))
        costs = [json.loads((stage / "cost.json").read_text()) for stage in stages]
        assert [cost.get("ranks", 1) for cost in costs] == [n_ranks, n_ranks]
        reports = [json.loads((stage / "done.json").read_text())["report"] for stage in stages]
        losses.append([report["heldout_loss"] for report in reports])
        for stage in stages:
            remove(stage)
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)  # of weights rounded to bfloat16


def test_muon_is_refused_for_banks_whose_rows_lie_on_several_ranks(tmp_path):
    recipe = read_recipe(write_recipe(tmp_path / "r.toml"))
    muon = replace(recipe, pretraining=replace(recipe.pretraining, optimizer="muon"))
    with pytest.raises(RecipeError, match="'muon', whose updates need whole matrices"):
        _pretrain_one("pn", muon, WINDOWS, WINDOWS, tmp_path, "cpu", print, ranks=object())  # type: ignore


def test_a_mixture_is_refused_on_several_ranks(tmp_path):
    recipe = read_recipe(write_recipe(tmp_path / "r.toml", kind="mix"))
    with pytest.raises(RecipeError, match="one process for each expert") as caught:
        release(recipe, tmp_path, tmp_path, tmp_path, None, print, ranks=object())
    assert "--executor" in caught.value.hint
