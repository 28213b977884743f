"""No file makes an owner run out of time or memory before it is refused; tests/bombs.py has the files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bombs import BOMBS

MAX_S, MAX_BYTES = 10.0, 512 << 20
"""Processor time, several times what a busy machine took: it tells work that explodes from work that ends
(docs/reliability.md has what was measured). And memory, all of a process's."""


@pytest.fixture(scope="module")
def measured():
    """What each bomb did to a process of its own, by name."""
    command = [sys.executable, "-W", "error", "-m", "tests.bombs"]
    root, environment = Path(__file__).parent.parent, os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, timeout=600, check=True
    )
    return {line.pop("name"): line for line in map(json.loads, done.stdout.splitlines())}


def test_all_bombs_were_tried(measured):
    assert len(BOMBS) >= 30
    assert list(measured) == ["nothing", *BOMBS]


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_in_time_and_within_memory(measured, name):
    found = measured[name]
    assert found["outcome"].startswith(("BundleError: ", "SignatureError: ", "PlanearlyError: embedder "))
    assert len(found["outcome"]) < 500
    assert found["cpu_s"] < MAX_S
    assert found["peak_bytes"] < MAX_BYTES
