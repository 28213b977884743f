import math
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from shared.batches import Sampler, all_microbatches
from shared.checkpoints import load_checkpoint, load_newest, save_checkpoint
from shared.errors import CheckpointError, PlanearlyError
from shared.interrupts import interrupt_held
from shared.losses import evaluate
from shared.projection import ProjectedNetwork, feed_forward_linears
from shared.sizes import PRESETS
from shared.slm import build_slm
from shared.train_config import TrainConfig, learning_rate
from shared.training import train, train_step, trained_parameters
from tests.conftest import make_windows

CONFIG = TrainConfig(
    steps=20, rows_per_step=4, rows_per_microbatch=2, learning_rate=1e-2, warmup_steps=3, eval_every_steps=5
)
WINDOWS = make_windows([9, 31, 17, 5, 32, 24] * 6, clusters=[0, 1, 2, 2, 0, 1] * 6)
HELDOUT = make_windows([20, 30, 10], clusters=[0, 1, 2], seed=9)


def run(folder, config=CONFIG, with_network=False, inputs="x", said=None):
    torch.manual_seed(0)
    model = build_slm(PRESETS["test"])
    network = ProjectedNetwork(model, feed_forward_linears(model), 3, 4, 5) if with_network else None
    sampler = Sampler(WINDOWS, 32, config.rows_per_step, config.rows_per_microbatch, seed=1)
    heldout = list(all_microbatches(HELDOUT, 32, 2))
    say = (lambda line: None) if said is None else said.append
    result = train(model, network, sampler, lambda: heldout, config, folder, say, inputs)
    return result, {name: p.detach().clone() for name, p in trained_parameters(model, network).items()}


def test_the_loss_of_a_step_does_not_depend_on_the_microbatches():
    gradients = []
    for rows_per_microbatch in (1, 4):
        torch.manual_seed(0)
        model = build_slm(PRESETS["test"])
        windows = make_windows([29, 31, 17, 25], clusters=[0] * 4)
        batches = Sampler(windows, 32, 4, rows_per_microbatch, seed=1).step(0)
        loss = train_step(model, None, batches)
        gradients.append(([p.grad for p in model.parameters()], loss))
    assert gradients[0][1] == pytest.approx(gradients[1][1], rel=1e-6)
    for one, other in zip(gradients[0][0], gradients[1][0], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("with_network", [False, True])
def test_twenty_steps_lower_the_loss_and_repeat_bit_for_bit(tmp_path, with_network):
    one, weights = run(tmp_path / "one", with_network=with_network)
    two, again = run(tmp_path / "two", with_network=with_network)
    assert one.history == two.history
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert [entry["step"] for entry in one.history] == [0, 5, 10, 15, 20]
    assert one.history[0]["train_loss"] is None
    assert one.history[-1]["train_loss"] < one.history[1]["train_loss"]
    assert one.tokens == sum(b.n_tokens for s in range(20) for b in Sampler(WINDOWS, 32, 4, 2, 1).step(s))


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
@pytest.mark.parametrize("with_network", [False, True])
def test_a_run_cut_in_two_ends_with_the_same_bits(tmp_path, with_network, optimizer):
    config = replace(CONFIG, optimizer=optimizer)
    _, whole = run(tmp_path / "whole", config, with_network)
    every_step = replace(config, checkpoint_every_s=0.0)
    run(tmp_path / "cut", every_step, with_network)
    for path in sorted((tmp_path / "cut").glob("step-*"))[1:]:
        path.unlink()  # as if killed one step before the end
    said = []
    result, resumed = run(tmp_path / "cut", every_step, with_network, said=said)
    assert said[0] == "resumed at step 19/20"
    assert result.steps_run == 20
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


KILLED = """
import sys; sys.path.insert(0, {root!r})
from pathlib import Path
from dataclasses import replace
import shared.device; shared.device.has_bf16 = lambda device: False
from tests import test_training as t
t.run(Path({folder!r}), replace(t.CONFIG, steps=400, eval_every_steps=20, checkpoint_every_s=0.02))
"""


def test_killed_by_sigkill_at_any_moment_it_ends_with_the_same_bits(tmp_path, pytestconfig):
    config = replace(CONFIG, steps=400, eval_every_steps=20)
    undisturbed, whole = run(tmp_path / "whole", config)
    folder = tmp_path / "killed"
    code = KILLED.format(root=str(pytestconfig.rootpath), folder=str(folder))
    kills = 0
    for wait_s in (0.1, 0.35, 0.2, 0.5):
        process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not list(folder.glob("step-*")) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(wait_s)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills > 0
    before = load_newest(folder, load_checkpoint(sorted(folder.glob("step-*"))[-1]).record["run"], print)
    assert before is not None
    result, resumed = run(folder, config)
    assert result.history == undisturbed.history
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not list(folder.glob(".*"))


INTERRUPTED = """
import sys; sys.path.insert(0, {root!r})
from pathlib import Path
from dataclasses import replace
import shared.device; shared.device.has_bf16 = lambda device: False
from shared.progress import listening, stage
from shared.terminal import errors_printed
from tests import test_training as t
config = replace(t.CONFIG, steps=60, eval_every_steps=20)
with errors_printed("owner"), stage("train"):
    with listening(lambda moment: moment and moment.done == {after} and print("there", flush=True)):
        t.run(Path({folder!r}), config, said=t.Printed())
"""


class Printed(list):
    """Lines that a child says."""

    def append(self, line):
        print(line, flush=True)


def test_ctrl_c_leaves_the_step_at_hand_and_a_resumed_run_ends_with_the_same_bits(tmp_path, pytestconfig):
    config = replace(CONFIG, steps=60, eval_every_steps=20)
    undisturbed, whole = run(tmp_path / "whole", config)
    folder = tmp_path / "interrupted"
    reached = 0
    for after in (3, 30):
        code = INTERRUPTED.format(root=str(pytestconfig.rootpath), folder=str(folder), after=after)
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            said = list(iter(process.stdout.readline, "there\n"))
            process.send_signal(signal.SIGINT)
            said = [line.strip() for line in [*said, *process.stdout]]
        assert process.returncode == 130
        assert "interrupted: a checkpoint comes after this step; Ctrl-C again ends at once" in said
        assert (f"resumed at step {reached}/60" in said) == (reached > 0)
        reached = int(sorted(folder.glob("step-*"))[-1].stem.removeprefix("step-"))
        assert after <= reached < 60  # checkpoint_every_s never came
    said = []
    result, resumed = run(folder, config, said=said)
    assert said[0] == f"resumed at step {reached}/60"
    assert result.history == undisturbed.history
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_an_interrupt_that_came_too_late_to_cut_anything_is_handed_on(tmp_path):
    before = signal.getsignal(signal.SIGINT)

    def held(error=None):
        with interrupt_held(print) as is_interrupted:
            assert not is_interrupted()
            signal.raise_signal(signal.SIGINT)
            assert is_interrupted()
            assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL  # the second one kills
            if error:
                raise error

    with pytest.raises(KeyboardInterrupt):
        held()
    with pytest.raises(OSError, match="full"):  # what went wrong is said, not hidden behind the interrupt
        held(OSError("full"))
    assert signal.getsignal(signal.SIGINT) is before


def test_early_stopping_keeps_the_best_step(tmp_path):
    config = replace(CONFIG, steps=400, learning_rate=0.05, patience_evals=2)
    result, weights = run(tmp_path, config)
    losses = [entry["heldout_loss"] for entry in result.history]
    assert result.steps_run < 400
    assert result.heldout_loss == min(losses)
    assert result.step == result.history[losses.index(min(losses))]["step"]
    assert len(losses) - 1 - losses.index(min(losses)) == 2
    model = build_slm(PRESETS["test"])
    model.load_state_dict({name.removeprefix("model."): p for name, p in weights.items()}, strict=False)
    assert evaluate(model, None, all_microbatches(HELDOUT, 32, 2)).mean == pytest.approx(
        min(losses), rel=1e-6
    )
    again, _ = run(tmp_path, config)  # a finished run is read back
    assert again.history == result.history


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    run(tmp_path)
    with pytest.raises(CheckpointError, match="belongs to another run"):
        run(tmp_path, inputs="other data")
    with pytest.raises(CheckpointError, match="belongs to another run"):
        run(tmp_path, replace(CONFIG, learning_rate=0.5))


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path):
    _, whole = run(tmp_path, replace(CONFIG, checkpoint_every_s=0.0))
    newest = sorted(tmp_path.glob("step-*"))[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    said = []
    _, resumed = run(tmp_path, replace(CONFIG, checkpoint_every_s=0.0), said=said)
    assert said[0].startswith(f"skipped {newest}: damaged (")
    assert said[1] == "resumed at step 19/20"
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    for path in tmp_path.glob("step-*"):
        path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="no checkpoint can be read"):
        run(tmp_path)


def test_no_space_left_keeps_the_old_checkpoint(tmp_path):
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, {"a": torch.ones(3)}, {"step": 1})
    small = "/dev/full"
    code = (
        "import sys, resource, torch; sys.path.insert(0, sys.argv[2])\n"
        "from pathlib import Path\n"
        "from shared.checkpoints import save_checkpoint\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try:\n    save_checkpoint(Path(sys.argv[1]), {'a': torch.ones(10**5)}, {})\n"
        "except OSError as error:\n    print('OSError', error); sys.exit(3)\n"
    )
    import pathlib

    root = str(pathlib.Path(__file__).parent.parent)
    done = subprocess.run([sys.executable, "-c", code, str(path), root], capture_output=True, text=True)
    assert done.returncode == 3, (done.stderr, small)
    assert torch.equal(load_checkpoint(path).tensors["a"], torch.ones(3))
    assert [p.name for p in tmp_path.iterdir()] == ["c.safetensors"]


def test_the_rate_warms_up_linearly_then_falls_by_a_cosine():
    config = TrainConfig(steps=110, learning_rate=2.0, warmup_steps=10, final_lr_fraction=0.5)
    assert learning_rate(config, 0) == pytest.approx(0.2)
    assert learning_rate(config, 9) == pytest.approx(2.0)
    assert learning_rate(config, 10) == pytest.approx(2.0)
    assert learning_rate(config, 109) == pytest.approx(1.0)
    constant = TrainConfig(steps=110, warmup_steps=10)
    assert learning_rate(constant, 109) == constant.learning_rate


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0"),
        ({"final_lr_fraction": 2.0}, "0 to 1"),
    ],
)
def test_settings_out_of_range_are_refused(change, message):
    with pytest.raises(PlanearlyError, match=message):
        replace(CONFIG, **change)


def test_a_loss_that_is_not_a_number_stops_the_run_with_a_hint(tmp_path):
    with pytest.raises(PlanearlyError, match="not a number") as caught:
        run(tmp_path, replace(CONFIG, learning_rate=1e30, steps=20, eval_every_steps=100))
    assert "learning rate" in caught.value.hint


@pytest.mark.parametrize("spoiled", ["loss", "gradient"])
def test_weights_that_give_no_number_are_never_saved(tmp_path, monkeypatch, spoiled):
    """From step 4 on something is NaN: the run stops, and what it saved last resumes as if all were well."""
    config = replace(CONFIG, steps=8, eval_every_steps=1, checkpoint_every_s=0.0)
    _, whole = run(tmp_path / "whole", config)
    with monkeypatch.context() as patch:
        steps = iter(range(100))

        def spoil(model, network, batches, *rest):
            loss = train_step(model, network, batches)
            if next(steps) == 4:
                for parameter in model.parameters():
                    if spoiled == "gradient":
                        parameter.grad.fill_(math.nan)
                return math.nan if spoiled == "loss" else loss
            return loss

        patch.setattr("shared.training.train_step", spoil)
        with pytest.raises(PlanearlyError, match="is not a number; good checkpoints stay in") as caught:
            run(tmp_path / "cut", config)
    assert "learning rate" in caught.value.hint
    for path in (tmp_path / "cut").glob("step-*"):
        assert all(tensor.isfinite().all() for tensor in load_checkpoint(path).tensors.values())
    said = []
    _, resumed = run(tmp_path / "cut", config, said=said)
    assert said[0] == "resumed at step 3/8"
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize(
    ("rate", "every", "reason"),
    [
        (1e30, 20, "the gradient after 1 steps is not a number"),
        (30.0, 2, "nats/token, before the first it was"),
    ],
)
def test_an_absurd_learning_rate_with_a_patience_ends_with_the_start(tmp_path, rate, every, reason):
    said = []
    config = replace(CONFIG, learning_rate=rate, patience_evals=3, eval_every_steps=every, warmup_steps=1)
    result, weights = run(tmp_path, config, said=said)
    torch.manual_seed(0)
    start = {f"model.{name}": p for name, p in build_slm(PRESETS["test"]).named_parameters()}
    assert result.step == 0
    assert reason in result.diverged
    assert any(line.startswith(f"stopped: {result.diverged}; keeping step 0") for line in said)
    assert all(torch.equal(start[name], weights[name]) for name in start)


def test_evaluation_counts_every_clusters_tokens():
    model = build_slm(PRESETS["test"])
    found = evaluate(model, None, all_microbatches(HELDOUT, 32, 2))
    assert found.tokens == {0: 20, 1: 30, 2: 10}
    assert found.mean == pytest.approx(math.log(300), rel=0.05)
    assert found.perplexity == pytest.approx(math.exp(found.mean))
