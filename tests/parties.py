"""The two commands as real processes, for tests: one thread, a home of their own, no network."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from pydoc_data.topics import topics

from provider.signing import create_key

ROOT = Path(__file__).parent.parent

RECIPE = """
name = "tiny"
version = {version}
created = 2026-11-21T00:00:00Z
kind = "{kind}"
comparison = {comparison}
embedder = "{embedder}"
seed = 3
license = "for tests"

[corpus]
description = "Python's language reference"
heldout_every = 9

[model]
preset = "test"
width = 32
ffn_width = 48
vocab_size = 500
context_tokens = 64

[clustering]
n_clusters = 4
n_init = 1

{projection}

[pretraining]
steps = 40
rows_per_step = 8
learning_rate = 1e-2
warmup_steps = 5
eval_every_steps = 20
checkpoint_every_s = 0.2
"""


PROJECTION = """
[projection]
capacity = 3
expert_size = 3
mixed_fraction = 0.5

[replay]
windows_per_cluster = 20
"""


def write_recipe(path: Path, kind: str = "pn", version: int = 1, embedder: str = "digest") -> Path:
    """Write a small recipe of a kind."""
    projection = PROJECTION if kind == "pn" else ""
    comparison = [] if kind == "slm" else ["slm"]
    path.write_text(
        RECIPE.format(
            kind=kind, version=version, embedder=embedder, comparison=comparison, projection=projection
        )
    )
    return path


def write_corpus(folder: Path) -> Path:
    """Write half of Python's language reference as a generic corpus."""
    folder.mkdir()
    names = sorted(topics)[:40]
    (folder / "a.txt").write_text(topics[names[0]])
    for name in names[1:]:
        (folder / f"{name}.md").write_text(topics[name])
    return folder


def write_key(folder: Path) -> Path:
    """Write provider.key, which no passphrase guards, and provider.pub."""
    create_key(folder / "provider.key", folder / "provider.pub")
    return folder / "provider.key"


def write_private(folder: Path, n_documents: int = 8) -> Path:
    """Write some of the other half as private documents."""
    folder.mkdir()
    for name in sorted(topics)[40 : 40 + n_documents]:
        (folder / f"{name}.txt").write_text(topics[name][:6000])
    return folder


def start(party: str, arguments: Sequence[object], cwd: Path, home: Path) -> subprocess.Popen[str]:
    """Start `owner` or `provider` as a process in which the other party cannot be imported."""
    other = "provider" if party == "owner" else "owner"
    code = f"import sys; sys.modules[{other!r}] = None; from {party}.cli import main; main()"
    environment = os.environ | {"PLANEARLY_HOME": str(home), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(party: str, *arguments: object, cwd: Path, home: Path) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    process = start(party, arguments, cwd, home)
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(list(map(str, arguments)), process.returncode, out, err)


def kill_after(process: subprocess.Popen[str], seconds: float) -> bool:
    """Send SIGKILL after some seconds; say whether the process was still at work."""
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL
