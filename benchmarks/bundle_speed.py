"""Verifying a bundle, and materializing one expert from it, against hashing the same file once.

  python benchmarks/bundle_speed.py [--size pn32] [--bundle big.st]

The bundle is of kind pn with random bfloat16 weights, made once if the file is not there: pn32 is the
paper's (1.4B parameters, 2.9 GB), laptop that of a laptop's recipe. `hash` is hashlib's own file_digest
on one thread. Opening comes first, so materializing pays for the signature too; every tensor that it uses
is hashed in the buffer that is used. On a busy machine the processor's seconds say more than the clock's.
Memory of materializing is the growth of the resident peak, of a process with torch in it; verifying needs no
torch and runs in processes of its own (verify_alone.py), whose whole peak is told.
"""

import functools
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from side_by_side import Compare, Figures, forget_peak, options_of, peak_bytes, take_turns

from provider.bundling import Source, write_bundle
from provider.signing import SigningKey
from shared.bundle import open_bundle
from shared.embedder import NAME, SUB_WINDOW_PIECES, WEIGHTS_SHA256, WIDTH
from shared.materializing import materialize
from shared.sizes import PRESETS, linear_names, parameter_shapes

SIZES = {
    # preset, experts, capacity, projected layers; none named: all
    "pn32": ("slm-126m-table6", 32, 32, (1, 2, 3, 4, 5)),
    "laptop": ("laptop", 16, 12, ()),
    "toy": ("test", 4, 3, ()),
}
KEY = SigningKey(Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"planearly benchmark").digest()))
BLOCK = 1 << 20
"""Random values that a large tensor repeats: what they are does not matter to any figure."""


def _random(shape: tuple[int, ...]) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    block = (0.02 * torch.randn(BLOCK, generator=generator)).bfloat16()
    count = torch.Size(shape).numel()
    return block.repeat(-(-count // BLOCK))[:count].reshape(shape)


def make_bundle(path: Path, preset: str, n_experts: int, capacity: int, layers: tuple[int, ...]) -> None:
    """Write a bundle of random weights."""
    config = PRESETS[preset]
    shapes, linears = parameter_shapes(config), linear_names(config)
    feed_forward = [
        name for name in linears if ".mlp." in name and (not layers or int(name.split(".")[2]) in layers)
    ]
    tensors: dict[str, Source] = {
        f"shared.{name}": functools.partial(_random, shape)
        for name, shape in shapes.items()
        if name.removesuffix(".weight") not in feed_forward
    }
    tensors["experts.vectors"] = _random((n_experts, n_experts))
    for name in feed_forward:
        tensors[f"projected.{name}.mixing"] = _random((n_experts, capacity))
        bank = (capacity, *shapes[f"{name}.weight"])
        tensors[f"projected.{name}.bank"] = functools.partial(_random, bank)
    tensors["clusters.centroids"] = torch.eye(n_experts, WIDTH)
    tensors["clusters.counts"] = torch.ones(n_experts, dtype=torch.int64)
    tensors["files.tokenizer.json"] = torch.frombuffer(bytearray(b"[]"), dtype=torch.uint8)
    manifest = {
        "name": f"random-{preset}",
        "version": 1,
        "created": "2026-11-21T00:00:00Z",
        "license": "CC0-1.0",
        "kind": "pn",
        "model": config.to_dict(),
        "n_experts": n_experts,
        "comparison": [],
        "projection": {"capacity": capacity, "expert_size": n_experts, "linears": feed_forward},
        "tokenizer": {"type": "unigram", "file": "tokenizer.json"},
        "embedder": {
            "name": NAME,
            "sha256": WEIGHTS_SHA256,
            "width": WIDTH,
            "sub_window_pieces": SUB_WINDOW_PIECES,
            "embedded": False,
        },
        "clusters": {"n": n_experts, "corpus_windows": n_experts},
        "training": {
            "corpus": "none: random weights",
            "sources": [],
            "seed": 0,
            "steps": 1,
            "tokens": 1,
            "learning_rate": 0.1,
            "rows_per_step": 1,
            "heldout_loss": 1.0,
            "heldout_loss_per_cluster": [None] * n_experts,
        },
    }
    write_bundle(path, manifest, tensors, KEY)


def _measure(options: Namespace, deed: Callable[[], object], cores: int) -> Figures:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    before = forget_peak()
    start, start_cpu = time.perf_counter(), time.process_time()
    kept = deed()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
    del kept
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "growth_mb": (peak_bytes() - before) / 1e6,
        "process_mb": before / 1e6,
        "file_mb": options.bundle.stat().st_size / 1e6,
    }


def hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _verify(path: Path, cores: int) -> Figures:
    script = Path(__file__).with_name("verify_alone.py")
    command = [sys.executable, script, path, KEY.public_key.raw.hex(), str(cores)]
    environment = os.environ | {"PYTHONPATH": str(script.parent.parent)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    figures: Figures = json.loads(done.stdout)
    return figures


def _materialize(path: Path) -> object:
    with open_bundle(path, [KEY.public_key]) as bundle:
        return materialize(bundle, bundle.manifest.n_experts // 2)


def main() -> None:
    options = options_of(
        __doc__, ("--size", {"choices": list(SIZES), "default": "pn32"}), ("--bundle", {"type": Path})
    )
    if options.toy:
        options.size = "toy"
    options.bundle = options.bundle or Path(tempfile.gettempdir()) / f"random-{options.size}.st"
    if not options.bundle.exists():
        make_bundle(options.bundle, *SIZES[options.size])
    if not options.only:
        hash_file(options.bundle)  # from now on the file lies in memory, for all alike
    path, all_cores = options.bundle, os.sched_getaffinity(0)
    n = min(2, len(all_cores))
    systems = {
        "hash": lambda o: _measure(o, lambda: hash_file(path), 1),
        "verify": lambda o: _verify(path, 1),
        "verify on two cores": lambda o: _verify(path, n),
        "materialize": lambda o: _measure(o, lambda: _materialize(path), 1),
        "materialize on two cores": lambda o: _measure(o, lambda: _materialize(path), n),
    }
    goals = {"verify": 1.05, "verify on two cores": 0.6}
    compares = [Compare(name, "hash", goal=goals.get(name, 1.5)) for name in systems if name != "hash"]
    compares += [Compare(name, "hash", "cpu_seconds") for name in ("verify", "materialize")]
    try:
        take_turns(f"bundle {options.size}", systems, compares, options)
    finally:
        os.sched_setaffinity(0, all_cores)


if __name__ == "__main__":
    main()
