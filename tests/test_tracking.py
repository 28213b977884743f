"""The steps of a training as JSON lines, each once, and as TensorBoard's events."""

import json
import math

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from provider.events import TAGS, Followed, follow_steps
from provider.tracking import METRICS_FILE, StepFile, cut_steps
from shared.batches import Sampler, all_microbatches
from shared.slm import build_slm
from shared.train_config import TrainConfig, learning_rate
from shared.training import train
from tests.conftest import make_windows

CONFIG = TrainConfig(
    steps=9,
    rows_per_step=4,
    rows_per_microbatch=2,
    learning_rate=1e-2,
    warmup_steps=3,
    eval_every_steps=3,
    checkpoint_every_s=0.0,
)


class Killed(BaseException):
    """Stands for SIGKILL at a moment of the test's choice: nothing in the loop catches it."""


def run(folder, test_config, config=CONFIG, die_at=None):
    import torch

    torch.manual_seed(0)
    windows = make_windows([20] * 24)
    steps = StepFile(folder / METRICS_FILE)

    def record(entry):
        steps(entry)
        if entry["step"] == die_at:
            raise Killed

    return train(
        build_slm(test_config),
        None,
        Sampler(windows, test_config.context_tokens, 4, 2, seed=0),
        lambda: all_microbatches(windows, test_config.context_tokens, 2),
        config,
        folder,
        lambda line: None,
        record=record,
    )


def read(folder):
    return [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]


def without_speed(entries):
    return [{name: value for name, value in entry.items() if name != "tokens_per_s"} for entry in entries]


def test_every_step_has_a_line_with_what_the_loop_did(tmp_path, test_config):
    result = run(tmp_path, test_config)
    entries = read(tmp_path)
    assert [entry["step"] for entry in entries] == list(range(10))
    assert [entry["step"] for entry in entries if entry["heldout_loss"] is not None] == [0, 3, 6, 9]
    assert [e["heldout_loss"] for e in entries if e["heldout_loss"]] == [
        h["heldout_loss"] for h in result.history
    ]
    assert entries[0]["train_loss"] is entries[0]["gradient_norm"] is entries[0]["tokens_per_s"] is None
    for entry in entries[1:]:
        assert entry["learning_rate"] == learning_rate(CONFIG, entry["step"] - 1)
        assert entry["tokens_per_s"] > 0
        assert entry["gradient_norm"] > 0
        assert math.isfinite(entry["train_loss"])
    assert entries[-1]["tokens"] == result.tokens
    assert entries[3]["train_loss"] == result.history[1]["train_loss"]


@pytest.mark.parametrize("every_s", [0.0, 1e9])
def test_a_killed_and_resumed_run_has_each_step_once_and_the_same_losses(tmp_path, test_config, every_s):
    """With checkpoints at every step, and with none before the kill."""
    from dataclasses import replace

    config = replace(CONFIG, checkpoint_every_s=every_s)
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    run(tmp_path / "whole", test_config, config)
    for moment in (2, 5, 8):
        with pytest.raises(Killed):
            run(tmp_path / "killed", test_config, config, die_at=moment)
    run(tmp_path / "killed", test_config, config)
    assert without_speed(read(tmp_path / "killed")) == without_speed(read(tmp_path / "whole"))


def test_a_torn_or_damaged_line_is_cut_off_with_all_after_it(tmp_path):
    path = tmp_path / METRICS_FILE
    for tail in (b'{"step": 2, "train', b"\x00\x00\n", b'{"step": 7}\n{"step": 8}\n'):
        path.write_bytes(b'{"step": 0}\n{"step": 1}\n' + tail)
        cut_steps(path, 7)
        assert path.read_bytes() == b'{"step": 0}\n{"step": 1}\n'
    cut_steps(tmp_path / "none", 3)
    assert not (tmp_path / "none").exists()


def events(folder, tag):
    found = EventAccumulator(str(folder))
    found.Reload()
    return (
        [(event.step, event.value) for event in found.Scalars(tag)] if tag in found.Tags()["scalars"] else []
    )


def line(step, loss):
    return json.dumps({"step": step, "train_loss": loss, "tokens_per_s": 1.5}).encode() + b"\n"


def test_tensorboard_shows_the_lines_of_every_training_in_the_work_folder(tmp_path):
    one, other = tmp_path / "work/pretrain-pn-1", tmp_path / "work/pretrain-mix-2/expert-00001"
    for folder, loss in ((one, 3.0), (other, 4.0)):
        folder.mkdir(parents=True)
        (folder / METRICS_FILE).write_bytes(line(1, loss) + line(2, loss - 1))
    followed = {}
    follow_steps(tmp_path / "work", tmp_path / "events", followed)
    with (one / METRICS_FILE).open("ab") as file:
        file.write(line(3, 1.0) + b'{"step": 4, "tr')
    follow_steps(tmp_path / "work", tmp_path / "events", followed)
    for follower in followed.values():
        follower.close()
    assert events(tmp_path / "events/pretrain-pn-1", TAGS["train_loss"]) == [(1, 3.0), (2, 2.0), (3, 1.0)]
    assert events(tmp_path / "events/pretrain-mix-2/expert-00001", TAGS["train_loss"]) == [(1, 4.0), (2, 3.0)]
    assert events(tmp_path / "events/pretrain-pn-1", TAGS["heldout_loss"]) == []


def test_tensorboard_shows_a_resumed_training_once(tmp_path):
    path = tmp_path / METRICS_FILE
    path.write_bytes(line(1, 3.0) + line(2, 2.0) + line(3, 1.0))
    follower = Followed(path, tmp_path / "events")
    follower.catch_up()
    path.write_bytes(line(1, 3.0) + line(2, 2.5) + line(3, 1.5) + line(4, 0.5))
    follower.catch_up()
    follower.close()
    expected = [(1, 3.0), (2, 2.5), (3, 1.5), (4, 0.5)]
    assert events(tmp_path / "events", TAGS["train_loss"]) == expected
    again = Followed(path, tmp_path / "events")
    again.catch_up()
    again.close()
    assert events(tmp_path / "events", TAGS["train_loss"]) == expected
