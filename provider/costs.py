"""What an optimizer step costs, on paper: bytes and FLOPs of a model and a projected network, and their time.

Products at the data sheet's peak, plus every byte that torch moves in eager mode at the peak of memory, plus
the ring's bytes at the peak of the link, none hidden behind another, all over one fraction `achieved`. The
bytes are counted (tests/test_scaling.py counts them again). Left out: latency, failures, held-out losses,
checkpoints, and the expert vectors and mixing matrices, which are thousandths of what is trained.
"""

import math
from dataclasses import dataclass

from shared.sizes import SlmConfig

TRAFFIC = {
    ("starcoder2", True): (456, 22, 67, 50),
    ("starcoder2", False): (168, 8, 41, 8),
    ("llama", True): (694, 46, 171, 50),
    ("llama", False): (216, 16, 61, 8),
}
"""Bytes read and written per token in eager mode, by architecture and whether it trains: of each layer for
each unit of D, and of F; outside the layers for each of D, and of V. Products in bfloat16, logits float32."""
WEIGHT_BYTES = {True: (18, 38), False: (8, 12)}
"""The same per microbatch, for each weight of a layer's products, and of the tied embedding: it is cast, used
and given a gradient that is added up. Whether it trains: see above."""
ADAM_BYTES = 28 + 12
"""Per trained weight and step: fused Adam reads 4 floats and writes 3; clipping reads one, and scales it."""
BANK_BYTES, LEAF_BYTES = 12, 20
"""Per weight of a bank and step: read for W, read for dE and dM, dT written. Per weight of a point's dense
leaf: written, its gradient copied when stacked (4 + 4), read by two products."""
NODE_GPUS = 8
"""GPUs behind one set of fast links, each with a network card."""
RESIDENT_BYTES = 16
"""Per trained weight: itself, its gradient and Adam's two moments, in float32."""


@dataclass(frozen=True)
class Machine:
    """One processor and its share of the machine around it, at the vendor's peaks."""

    bf16_flops: float
    f32_flops: float
    """Without TF32, which the projection does not ask for."""
    memory_bytes_s: float
    link_bytes_s: float = math.inf
    """To the other GPUs of a node, one way."""
    node_bytes_s: float = math.inf
    """All network cards of a node, one way."""
    achieved: float = 1.0
    """Share of all peaks that is reached."""
    source: str = ""


@dataclass(frozen=True)
class System:
    """What is trained: a plain model, or a projected network over one."""

    sizes: SlmConfig
    n_projected_layers: int = 0
    capacity: int = 1
    """h; 1 without a projection."""

    @property
    def per_matrix(self) -> int:
        """Matrices of a feed-forward layer: SwiGLU has three."""
        return 3 if self.sizes.architecture == "llama" else 2

    @property
    def layer_products(self) -> int:
        """Weights of one layer's products."""
        return 4 * self.sizes.width**2 + self.per_matrix * self.sizes.width * self.sizes.ffn_width

    @property
    def slm(self) -> int:
        """Weights of the model that runs, each tied one once."""
        s = self.sizes
        norms = (2 * s.n_layers + 1) * s.width * (1 if s.architecture == "llama" else 2)
        return s.n_layers * self.layer_products + s.vocab_size * s.width + norms

    @property
    def projected(self) -> int:
        """P: weights of the running model that come from banks."""
        return self.n_projected_layers * self.per_matrix * self.sizes.width * self.sizes.ffn_width

    @property
    def trained(self) -> int:
        """Weights that the optimizer moves, the banks' h slices among them."""
        return self.slm + (self.capacity - 1) * self.projected

    @property
    def forward_flops(self) -> int:
        """Per token: two for each weight of a product, and attention over a whole window."""
        s = self.sizes
        products = s.n_layers * self.layer_products + s.vocab_size * s.width
        return 2 * products + 4 * s.n_layers * s.context_tokens * s.width

    def token_bytes(self, is_training: bool) -> int:
        """Memory traffic per token."""
        s = self.sizes
        layer, ffn, width, vocabulary = TRAFFIC[s.architecture, is_training]
        layers = s.n_layers * (layer * s.width + ffn * s.ffn_width)
        return layers + width * s.width + vocabulary * s.vocab_size

    def weight_bytes(self, is_training: bool) -> int:
        """Memory traffic of the weights per microbatch."""
        product, embedding = WEIGHT_BYTES[is_training]
        s = self.sizes
        return product * s.n_layers * self.layer_products + embedding * s.vocab_size * s.width


@dataclass(frozen=True)
class Plan:
    """How a step is spread over GPUs."""

    tokens: float
    """Per optimizer step, over all GPUs."""
    n_gpus: int = 1
    microbatches: float = 1.0
    """Per GPU."""
    points: float = 0.0
    """Clusters (or points between some) materialized per GPU."""
    sends_leaves: bool = False
    """Whether GPUs exchange the dense gradients dW_c of their points instead of dT."""
    is_sharded: bool = False
    """Whether each GPU steps a share of the weights (ZeRO); with sends_leaves it also holds no more of the
    banks than its share of their columns."""


@dataclass(frozen=True)
class Cost:
    """Seconds by what they wait for; on one GPU they add up, its host works beside it."""

    flops: float = 0.0
    bytes: float = 0.0
    compute: float = 0.0
    memory: float = 0.0
    network: float = 0.0
    cpu: float = 0.0
    disk: float = 0.0
    one_core: float = 0.0
    """Work that one core does while all else waits."""

    @property
    def seconds(self) -> float:
        """The GPU, the CPU and the disk overlap; the serial part does not."""
        return max(self.compute + self.memory + self.network, self.cpu, self.disk) + self.one_core

    @property
    def limit(self) -> str:
        """What most of the time is spent on."""
        names = ("compute", "memory", "network", "cpu", "disk", "one_core")
        return max(names, key=lambda name: getattr(self, name)).replace("_", " ")

    def times(self, n: float) -> "Cost":
        """Return the cost of n such steps."""
        return Cost(**{name: n * value for name, value in vars(self).items()})


def ring(machine: Machine, n_gpus: int, n_bytes: float) -> float:
    """Seconds of a ring all-reduce: each GPU sends 2 (n - 1) / n of the bytes, by the slowest link."""
    slowest = machine.link_bytes_s if n_gpus <= NODE_GPUS else min(machine.link_bytes_s, machine.node_bytes_s)
    return 2 * (n_gpus - 1) / n_gpus * n_bytes / slowest


def all_to_all(machine: Machine, n_gpus: int, n_bytes: float) -> float:
    """Seconds in which each GPU sends its bytes, cut in n, to all: what leaves the node goes by one card."""
    away = max(0, n_gpus - NODE_GPUS) / n_gpus
    inside = min(n_gpus, NODE_GPUS) - 1
    return max(
        inside / n_gpus * n_bytes / machine.link_bytes_s, away * n_bytes * NODE_GPUS / machine.node_bytes_s
    )


def step_terms(machine: Machine, system: System, plan: Plan) -> list[tuple[str, str, float, float]]:
    """Return what one GPU does in a step: (name, what limits it, FLOPs or bytes, seconds at peak)."""
    n, projected = plan.n_gpus, system.projected
    shards = n if plan.is_sharded else 1
    holds_columns = plan.is_sharded and plan.sends_leaves
    banks = system.capacity * projected if plan.points else 0
    # Either all of a GPU's own points, or its columns of everyone's: as much.
    leaves = plan.points * projected
    # Whole banks from exchanged leaves: each GPU adds up everyone's.
    added = leaves * n if plan.sends_leaves and not plan.is_sharded else leaves
    if not plan.sends_leaves:
        network = ring(machine, n, 4 * system.trained)
    elif holds_columns:  # columns of dW_c go out, columns of the next W_c come back
        network = ring(machine, n, 4 * (system.trained - banks)) + 2 * all_to_all(machine, n, 4 * leaves)
    else:  # everyone gets everyone's dW_c
        network = ring(machine, n, 4 * (system.trained - banks) + 4 * leaves * n / 2)
    flops = 3 * system.forward_flops * plan.tokens / n
    f32_flops = 2 * system.capacity * (2 * leaves + added)
    moved = {
        "activations and logits": system.token_bytes(True) * plan.tokens / n,
        "weights, each microbatch": TRAFFIC[system.sizes.architecture, True][3]
        * system.slm
        * plan.microbatches,
        "Adam and clipping": ADAM_BYTES * system.trained / shards,
        "banks": BANK_BYTES * banks / (n if holds_columns else 1),
        "dense leaves": LEAF_BYTES * leaves + 4 * (added - leaves),
    }
    return [
        ("products", "compute", flops, flops / machine.bf16_flops),
        ("products of the projection", "compute", f32_flops, f32_flops / machine.f32_flops),
        *((name, "memory", size, size / machine.memory_bytes_s) for name, size in moved.items()),
        ("gradients exchanged", "network", 0.0, network),
    ]


def step_cost(machine: Machine, system: System, plan: Plan) -> Cost:
    """Return one optimizer step's cost on one of the plan's GPUs."""
    terms = step_terms(machine, system, plan)

    def total(limit: str) -> tuple[float, float]:
        """Return the FLOPs or bytes of what waits for this, and its seconds."""
        chosen = [(amount, peak_s) for _, waits_for, amount, peak_s in terms if waits_for == limit]
        return sum(amount for amount, _ in chosen), sum(peak_s for _, peak_s in chosen) / machine.achieved

    (flops, compute_s), (moved, memory_s), (_, network_s) = map(total, ("compute", "memory", "network"))
    return Cost(flops, moved, compute_s, memory_s, network_s)


def forward_cost(machine: Machine, system: System, tokens: float, batch_tokens: float) -> Cost:
    """Return the cost of a forward pass over some tokens, in batches."""
    flops = system.forward_flops * tokens
    moved = (system.token_bytes(False) + system.weight_bytes(False) / batch_tokens) * tokens
    compute, memory = flops / machine.bf16_flops, moved / machine.memory_bytes_s
    return Cost(flops, moved, compute / machine.achieved, memory / machine.achieved)


def resident_bytes(system: System, plan: Plan) -> float:
    """Return what weights, gradients, Adam's moments and the points' leaves with gradients take of a GPU."""
    shards = plan.n_gpus if plan.is_sharded else 1
    whole = RESIDENT_BYTES / 2 * (1 / shards if plan.sends_leaves else 1)
    return (whole + RESIDENT_BYTES / 2 / shards) * system.trained + 8 * plan.points * system.projected


def distinct(n_clusters: int, draws: float) -> float:
    """Expected different clusters among some draws, each equally likely."""
    return n_clusters * (1 - (1 - 1 / n_clusters) ** draws)
