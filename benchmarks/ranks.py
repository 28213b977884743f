"""Step time, bytes on the wire and memory of one rank and of several, exchanging weights or banks.

  python benchmarks/ranks.py

Starts itself under torchrun on this machine, one thread per rank, in a network namespace of its own where
that is allowed, so that the loopback's byte counter has these ranks' traffic alone. One JSON line per run:
seconds per step (median), `counted_bytes` that all ranks say they sent and `wire_bytes` that the loopback
carried, of the gradients' exchange alone, and per rank what it keeps for the banks (values, gradients,
moments) and its peak memory. Ranks share this machine's cores: the seconds say little of a cluster.
Options: --ranks 1 2 (default), --steps 10.
"""

import argparse
import ctypes
import fcntl
import json
import os
import resource
import socket
import statistics
import struct
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.distributed as dist

import provider.parallel
from provider.parallel import ManyProcesses, joined
from shared.batches import Sampler, Windows
from shared.device import keep_freed_memory, make_deterministic
from shared.projection import ProjectedNetwork, feed_forward_linears
from shared.sizes import PRESETS
from shared.slm import build_slm
from shared.training import train_step, trained_parameters

SIZES = replace(PRESETS["laptop"], n_layers=4, width=256, n_heads=4, ffn_width=1024, vocab_size=4096)
N_CLUSTERS = CAPACITY = EXPERT_SIZE = 32
ROWS_PER_STEP, ROWS_PER_MICROBATCH, CONTEXT_TOKENS = 16, 2, 128
"""Eight clusters in a step, four on each of two ranks: as the full-size recipe with 128 rows by 16."""
NEW_NETWORK_NAMESPACE = 0x40000000
GET_FLAGS, SET_FLAGS, UP = 0x8913, 0x8914, 1
"""linux/sched.h, linux/sockios.h, linux/if.h."""


def enter_own_network() -> bool:
    """Move to a namespace with nothing but a loopback; say whether that is allowed."""
    if ctypes.CDLL(None, use_errno=True).unshare(NEW_NETWORK_NAMESPACE):
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        found = fcntl.ioctl(control, GET_FLAGS, struct.pack("16sH14x", b"lo", 0))
        flags = struct.unpack("16sH14x", found)[1] | UP
        fcntl.ioctl(control, SET_FLAGS, struct.pack("16sH14x", b"lo", flags))
    return True


def loopback_bytes() -> int:
    lines = Path("/proc/self/net/dev").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.strip().startswith("lo:"))


def random_windows() -> Windows:
    n_rows = 8 * ROWS_PER_STEP
    stream = np.random.default_rng(0).integers(3, SIZES.vocab_size, n_rows * CONTEXT_TOKENS)
    lengths = np.full(n_rows, CONTEXT_TOKENS, np.int32)
    starts = np.arange(n_rows, dtype=np.int64) * CONTEXT_TOKENS
    clusters = np.arange(n_rows, dtype=np.int32) % N_CLUSTERS
    return Windows([stream], np.zeros(n_rows, np.int32), starts, lengths, clusters)


def work(exchange: str, steps: int) -> None:
    """Train on this rank; the first one prints."""
    torch.set_num_threads(1)
    keep_freed_memory()
    make_deterministic(0)
    if exchange == "banks":
        provider.parallel.is_fewer_weights = lambda points, capacity: False
    with joined("cpu") as ranks:
        model = cast(torch.nn.Module, build_slm(SIZES))
        linears = feed_forward_linears(model)
        inner = ProjectedNetwork(model, linears, N_CLUSTERS, EXPERT_SIZE, CAPACITY)
        network = ranks.split(inner)
        parameters = trained_parameters(model, network)
        optimizer = torch.optim.Adam(parameters.values(), lr=1e-4, fused=True)
        sampler = Sampler(random_windows(), CONTEXT_TOKENS, ROWS_PER_STEP, ROWS_PER_MICROBATCH, 0)
        seconds, counted, wire, norms = [], [], [], []
        for step in range(steps + 2):
            batches = sampler.step(step)
            ranks.agree(True)
            sent, carried = ranks.cost().get("sent_bytes", 0), loopback_bytes()
            start = time.perf_counter()
            optimizer.zero_grad(set_to_none=True)
            loss = ranks.add_up(parameters, train_step(model, network, batches, ranks=ranks))
            norms.append(ranks.clip(parameters, 5.0))
            optimizer.step()
            if step >= 2:
                seconds.append(time.perf_counter() - start)
                counted.append(ranks.cost().get("sent_bytes", 0) - sent)
                wire.append(loopback_bytes() - carried)
        banks = sum(bank.nbytes for bank in inner.bank)
        mine = [
            statistics.median(counted),
            4 * banks,
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10,
        ]
        every = [mine]
        if isinstance(ranks, ManyProcesses):
            every = [[0] * len(mine) for _ in range(ranks.n)]
            dist.all_gather_object(every, mine)
        if ranks.is_first:
            result = {
                "ranks": len(every),
                "exchange": exchange if len(every) > 1 else None,
                "step_s": round(statistics.median(seconds), 3),
                "step_s_quartiles": [round(q, 3) for q in statistics.quantiles(seconds, n=4)],
                "counted_bytes": int(sum(each[0] for each in every)),
                "wire_bytes": int(statistics.median(wire)),
                "banks_state_bytes": [each[1] for each in every],
                "peak_bytes": [each[2] for each in every],
                "last_loss": loss,
                "last_norm": norms[-1],
                "load": round(os.getloadavg()[0], 1),
                "torch": torch.__version__,
            }
            print(json.dumps(result), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--work", choices=["weights", "banks"])
    options = parser.parse_args()
    if options.work:
        work(options.work, options.steps)
        return
    if not enter_own_network():
        print("no network namespace of its own: wire_bytes has the traffic of others too", file=sys.stderr)
    for n_ranks in options.ranks:
        for exchange in ("weights", "banks") if n_ranks > 1 else ("weights",):
            launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n_ranks)]
            command = [__file__, "--work", exchange, "--steps", str(options.steps)]
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            subprocess.run(
                [sys.executable, *(launch if n_ranks > 1 else []), *command], env=environment, check=True
            )


if __name__ == "__main__":
    main()
