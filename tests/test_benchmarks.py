"""Every speed table at its smallest size: it runs, and its systems agree where they must. Never a time."""

import json
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
