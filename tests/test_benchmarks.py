"""Every speed table at its smallest size: it runs, and its systems agree where they must. Never a time."""

import json
import os
import signal
import subprocess
import sys

import pytest

from tests.parties import ROOT

TABLES = {
    "PN training step",
    "SLM pretraining, seconds per step",
    "owner fine-tuning",
    "bundle toy",
    "embed and assign windows",
    "k-means, k = 8, 2,000 x 384",
    "reading training windows",
    "memory of PN training",
    "growth",
}

GPU_ROWS = {f"step-{size}k{how}" for size in (16, 64, 128) for how in ("", "-compiled")}
GPU_ROWS |= {"finetuning", "chunks", "trainer", "litgpt", "embedding", "materializing"}


@pytest.fixture(scope="module")
def lines():
    command = [sys.executable, ROOT / "benchmarks" / "run_all.py", "--toy"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"table"')]


def test_one_command_runs_every_table_and_names_the_peers_that_are_missing(lines):
    assert {line["table"] for line in lines} == TABLES
    for line in lines:
        if "skipped" in line:
            assert line["skipped"].endswith("is not installed")
        else:
            assert line["smallest"] <= line["median"] <= line["largest"]
            assert line["smallest"] > 0 or line["table"] == "growth"  # a slope
            assert line["toy"]
            assert line["machine"]["cores"] >= 1


def test_a_peer_of_a_table_does_the_same_work(lines):
    facts = {}
    for line in lines:
        facts.setdefault(line["table"], {}).update(line.get("facts", {}))
    embedding = facts["embed and assign windows"]
    for peer in embedding:
        assert embedding[peer]["sum"] == pytest.approx(embedding["planearly"]["sum"], rel=0.01)
    kmeans = facts["k-means, k = 8, 2,000 x 384"]
    for peer in kmeans:
        assert kmeans[peer]["inertia"] == pytest.approx(kmeans["planearly"]["inertia"], rel=0.05)
    finetuning = facts["owner fine-tuning"]
    for peer in finetuning:
        assert finetuning[peer]["lowest_loss"] <= finetuning[peer]["common_loss"]
        assert finetuning[peer]["lowest_loss"] == pytest.approx(
            finetuning["planearly"]["lowest_loss"], rel=0.1
        )


def gpu_command(out, *more):
    command = [sys.executable, ROOT / "benchmarks" / "gpu.py", "--toy", "--device", "cpu", "--threads", "1"]
    # Compiling costs minutes on a CPU and has tests of its own.
    return [*command, "--out", out, *more], os.environ | {"TORCH_COMPILE_DISABLE": "1"}


def test_the_gpu_tables_go_on_after_a_kill_and_repeat_no_finished_row(tmp_path):
    out = tmp_path / "rows.jsonl"
    command, environment = gpu_command(out)
    running = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert running.stderr is not None
    begun = [running.stderr.readline() for _ in range(2)]
    running.send_signal(signal.SIGKILL)
    running.communicate(timeout=60)  # returns once the row's own process has let go of stderr, too
    first = out.read_text()
    assert [json.loads(line)["row"] for line in first.splitlines()] == ["step-16k"]
    assert begun == ["step-16k ...\n", "step-64k ...\n"]

    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert out.read_text().startswith(first)
    records = {}
    for line in out.read_text().splitlines():
        record = json.loads(line)
        assert record["row"] not in records
        records[record["row"]] = record["figures"]
    left_out = {line.split()[1] for line in done.stdout.splitlines() if "left out" in line}
    assert left_out <= {"litgpt"}
    assert set(records) | left_out == GPU_ROWS
    assert records["step-16k"]["tokens a step"] == 64
    assert records["step-128k-compiled"]["compiled"] == "yes"
    assert records["finetuning"]["tokens trained on"] > 0
    printed = done.stdout.splitlines()
    assert len([line for line in printed if line.startswith("## ")]) == 6
    assert len([line for line in printed if line.startswith("| ")]) == len(records) + 2 * 6

    again = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert again.stdout == done.stdout
    assert len(out.read_text().splitlines()) == len(records)


def test_no_row_of_the_gpu_tables_starts_after_the_budget(tmp_path):
    command, environment = gpu_command(tmp_path / "rows.jsonl", "--budget-minutes", "0")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0
    assert done.stdout.count("not run: the budget of 0 minutes was spent") == len(GPU_ROWS)
    assert not (tmp_path / "rows.jsonl").exists()


def test_a_row_without_its_device_fails_alone_and_says_why(tmp_path):
    command, environment = gpu_command(tmp_path / "rows.jsonl")
    command[command.index("cpu")] = "nowhere"
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1
    n_failed = done.stdout.count("failed: device 'nowhere' is not on this machine")
    n_left_out = done.stdout.count("left out: ")  # a package that is not here
    assert n_failed >= 6
    assert n_failed + n_left_out == len(GPU_ROWS)
