"""The paper's driver end to end at toy size: every system, every table; then its arithmetic."""

import csv
import gzip
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from tests.parties import ROOT, kill_after, write_corpus

PAPER = ROOT / "benchmarks" / "paper"
sys.path.insert(0, str(PAPER))

import plan as plans  # noqa: E402
import tables  # noqa: E402


def write_domains(folder: Path) -> Path:
    names = sorted(topics)
    for domain, chosen in (("first", names[40:58]), ("second", names[58:])):
        (folder / domain).mkdir(parents=True)
        for split, part in (("train", chosen[6:]), ("valid", chosen[:3]), ("test", chosen[3:6])):
            with gzip.open(folder / domain / f"{split}.jsonl.gz", "wt") as out:
                out.writelines(json.dumps({"text": topics[name]}) + "\n" for name in part)
    return folder


def start_driver(folder: Path) -> subprocess.Popen[str]:
    command = [
        sys.executable, PAPER / "run.py", "toy", "--corpus", folder / "corpus", "--domains",
        folder / "domains", "--work", folder / "work", "--device", "cpu",
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        list(map(str, command)), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The driver's work folder after a SIGKILL, then two processes side by side."""
    folder = tmp_path_factory.mktemp("paper")
    write_corpus(folder / "corpus")
    write_domains(folder / "domains")
    assert kill_after(start_driver(folder), 25.0)
    processes = [start_driver(folder), start_driver(folder)]
    ends = []
    for process in processes:
        out, err = process.communicate(timeout=900)
        ends.append((process.returncode, out, err[-3000:]))
    for code, out, err in ends:
        assert code == 0, err
        assert "Macro-averaged perplexity" in out
    return folder / "work"


def test_every_system_of_the_paper_has_a_row_and_a_job_is_done_once(finished):
    lines = [json.loads(line) for line in (finished / "results.jsonl").read_text().splitlines()]
    names = [line["job"] for line in lines]
    assert len(names) == len(set(names))
    assert {line["row"] for line in lines if "row" in line} >= set(tables.ROWS)
    for line in lines:
        if "row" in line:
            assert math.isfinite(line["test_loss"])
            assert line["seconds"] > 0
        else:
            assert line["tokens"] > 0
            assert line["device"] == "cpu"


def test_tables_figures_and_csv_are_written(finished):
    text = (finished / "tables" / "tables.md").read_text()
    for row in tables.ROWS:
        assert f"| {row} |" in text
    for number in ("3", "4a", "4b", "4c", "5", "6", "7", "8", "9", "10", "11", "12", "14"):
        assert (finished / "tables" / f"figure-{number}.png").stat().st_size > 5000 or number == "14"
    with (finished / "tables" / "costs.csv").open() as file:
        costs = {row["row"]: row for row in csv.DictReader(file)}
    for n in (1, 7, 50):
        generic, specific = float(costs["slm-pn"]["generic_s"]), float(costs["slm-pn"]["specific_s"])
        assert float(costs["slm-pn"][str(n)]) == pytest.approx(generic + specific * n)
    assert float(costs["slm-is"]["generic_s"]) == 0


def test_the_macro_average_gives_every_domain_the_same_weight():
    assert tables.macro_average([1.0, 3.0]) == pytest.approx(math.exp(2.0))


def test_the_total_cost_is_equation_1():
    assert tables.total_cost(100.0, 2.0, 7) == 114.0


@pytest.mark.parametrize("size", ["toy", "tiny", "small", "paper"])
def test_every_plan_and_recipe_is_read(size):
    plan, recipe = plans.read_plan(PAPER, size)
    assert len(plan.spec_tokens) == len(plan.epochs) == len(plan.rates)
    for system in (
        "slm",
        "llm",
        f"pn-{plan.pn_clusters[0]}",
        f"trunk-{plan.pn_clusters[0]}",
        "mix-2",
        "is-4",
    ):
        assert plans.variant(recipe, system, plan).kind in ("slm", "pn", "mix")


def test_the_papers_plan_has_the_papers_numbers_of_parameters():
    from shared.slm import build_slm, count_parameters

    plan, recipe = plans.read_plan(PAPER, "paper")
    small = count_parameters(build_slm(recipe.model, "meta"))
    large = count_parameters(build_slm(plans.variant(recipe, "llm", plan).model, "meta"))
    assert small == pytest.approx(126e6, rel=0.05)
    assert large == pytest.approx(771e6, rel=0.05)
