import pytest

from provider.stages import run_stage
from shared.errors import CheckpointError


def test_a_stage_runs_once_per_inputs_and_keeps_older_results(tmp_path):
    runs = []

    def deed(folder):
        runs.append(folder.name)
        return {"n": len(runs)}

    first = run_stage(tmp_path, "cut", {"a": 1}, deed)
    again = run_stage(tmp_path, "cut", {"a": 1}, deed)
    other = run_stage(tmp_path, "cut", {"a": 2}, deed)
    back = run_stage(tmp_path, "cut", {"a": 1}, deed)
    assert (first.was_done, again.was_done, other.was_done, back.was_done) == (False, True, False, True)
    assert again.report == back.report == {"n": 1}
    assert first.folder != other.folder
    assert len(runs) == 2


def test_a_failed_stage_is_not_done_and_keeps_what_it_finished(tmp_path):
    def fails(folder):
        (folder / "part").write_text("finished")
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        run_stage(tmp_path, "cut", {}, fails)
    stage = run_stage(tmp_path, "cut", {}, lambda folder: {"part": (folder / "part").read_text()})
    assert stage.report == {"part": "finished"}


def test_a_damaged_record_is_named(tmp_path):
    stage = run_stage(tmp_path, "cut", {}, lambda folder: {})
    (stage.folder / "done.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"done.json: damaged") as caught:
        run_stage(tmp_path, "cut", {}, lambda folder: {})
    assert "delete" in caught.value.hint
