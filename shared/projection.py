"""The paper's equation of §2.5: expert vector, mixing matrix and weight bank to a dense weight.

Shape legend of the whole project, where a tensor's name ends in its axes:
B batch, S tokens, D model width, F FFN width, V vocabulary, N heads, C clusters in a step,
K experts, M expert size, H capacity, W embedding width; O and I: a linear layer's out and in axes.

Training treats the projected network as a controller over the stock model, not as new modules: once
per optimizer step it materializes W_c of each cluster in the step as leaf weights, the stock model runs
with them, and their gradients are pushed into the expert vectors, mixing matrices and banks by one
product per layer. That is autograd through the sum, reordered: exact, at the small model's cost.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from shared.batches import Mixture

COMPUTE_DTYPE = torch.float32
"""In which a projection is computed, whatever the stored type."""
MIXING_SCALE = 0.3
"""Of a fresh mixing matrix, against the scale that keeps the size of its input."""


def project(expert_CM: Tensor, mixing_MH: Tensor, bank_HOI: Tensor) -> Tensor:
    """Return the dense weights W^(l,i) of some experts in one linear layer: (C, O, I).

    expert_CM are rows E_i, mixing_MH is M^(l), bank_HOI is T^(1,l):
    W_oi = sum_m sum_h E_im M_mh T_hoi (paper §2.5). Computed in COMPUTE_DTYPE.
    Cost: C*M*H + C*H*O*I multiply-adds. Raises nothing: shapes are checked when a bundle is opened.
    """
    coefficient_CH = expert_CM.to(COMPUTE_DTYPE) @ mixing_MH.to(COMPUTE_DTYPE)
    bank_HP = bank_HOI.to(COMPUTE_DTYPE).flatten(1)
    return (coefficient_CH @ bank_HP).unflatten(1, bank_HOI.shape[1:])


def feed_forward_linears(model: nn.Module, layers: Sequence[int] = ()) -> list[str]:
    """Return the names of the `nn.Linear` modules inside the model's MLPs, in module order.

    An MLP is a module that transformers calls `mlp`; its index among them is its layer. `layers` picks
    some, none named: all. Works for any transformers model whose MLPs are made of `nn.Linear`.
    """
    mlps = [name for name, _ in model.named_modules() if name.rsplit(".", 1)[-1] == "mlp"]
    chosen = [mlps[layer] for layer in layers] if layers else mlps
    return [
        f"{mlp}.{name}"
        for mlp in chosen
        for name, module in model.get_submodule(mlp).named_modules()
        if isinstance(module, nn.Linear)
    ]


class ProjectedNetwork(nn.Module):
    """Expert vectors, mixing matrices and weight banks over one stock small model.

    Not in the paper: the first slice of every bank is shared by all experts (its coefficient is 1) and
    the other coefficients are divided by sqrt(h). Adam moves each entry of T by about the learning rate
    whatever its gradient, so without this a step of W would grow with h. The published E and M contain
    both, so that a reader needs only the paper's equation.

    `is_identity` is the hard mixture of §2.5 (h = k = m, E and M the identity, both fixed) over a shared
    trunk: each expert has weights of its own in the projected layers.
    """

    def __init__(
        self,
        slm: nn.Module,
        linears: Sequence[str],
        n_experts: int,
        expert_size: int,
        capacity: int,
        is_identity: bool = False,
    ) -> None:
        """Start with all experts equal to the given model: banks hold its weights, then zeros.

        Expert vectors and mixing matrices are drawn with torch's global generator. The model's own
        weights of the projected layers are no longer used; all its others are shared by the experts.
        """
        super().__init__()
        if is_identity:
            assert n_experts == expert_size == capacity, "the identity has h = k = m"
        self.linears = list(linears)
        self.n_experts, self.expert_size, self.capacity = n_experts, expert_size, capacity
        self.is_identity = is_identity
        self.mixing = nn.ParameterList()
        self.bank = nn.ParameterList()
        if not is_identity:
            self.expert_KM = nn.Parameter(torch.randn(n_experts, expert_size - 1))
        for name in self.linears:
            weight_OI = slm.get_parameter(f"{name}.weight")
            bank_HOI = torch.zeros(capacity, *weight_OI.shape)
            if is_identity:
                bank_HOI[:] = weight_OI.detach()
            else:
                scale = MIXING_SCALE / math.sqrt(max(1, expert_size - 1))
                self.mixing.append(nn.Parameter(scale * torch.randn(expert_size - 1, capacity - 1)))
                bank_HOI[0] = weight_OI.detach()
            self.bank.append(nn.Parameter(bank_HOI))
            weight_OI.requires_grad_(False)
        self._mixtures: list[Mixture] = []
        self._leaves: list[list[Tensor]] = []
        self._dense: list[Tensor] = []

    @property
    def _device(self) -> torch.device:
        return self.bank[0].device

    def published_experts(self) -> Tensor:
        """Return E of §2.5: (K, M), whose first component is 1 unless it is the identity."""
        if self.is_identity:
            return torch.eye(self.n_experts, device=self._device)
        ones_K1 = torch.ones(self.n_experts, 1, device=self._device)
        return torch.cat([ones_K1, self.expert_KM], dim=1)

    def published_mixing(self, index: int) -> Tensor:
        """Return M^(l) of §2.5 for one projected linear: (M, H), block diagonal (1, free / sqrt(h))."""
        if self.is_identity:
            return torch.eye(self.capacity, device=self._device)
        shared = torch.ones(1, 1, device=self._device)
        return torch.block_diag(shared, self.mixing[index] / math.sqrt(self.capacity))

    def begin_step(self, mixtures: Sequence[Mixture]) -> None:
        """Materialize the weights of these points as leaves; `weights_of` then hands them out."""
        self._mixtures = list(mixtures)
        weight_CK = torch.zeros(len(self._mixtures), self.n_experts, device=self._device)
        for row, mixture in enumerate(self._mixtures):
            for cluster, weight in mixture:
                weight_CK[row, cluster] = weight
        experts_CM = weight_CK.to(COMPUTE_DTYPE) @ self.published_experts().to(COMPUTE_DTYPE)
        self._dense = [
            project(experts_CM, self.published_mixing(index), bank) for index, bank in enumerate(self.bank)
        ]
        # One leaf per point: a gradient into a slice of one big leaf would write zeros to the others.
        self._leaves = [
            [weight_OI.requires_grad_() for weight_OI in dense.detach().unbind(0)] for dense in self._dense
        ]

    def weights_of(self, mixture: Mixture) -> Mapping[str, Tensor]:
        """Return one point's dense weights by parameter name, for `torch.func.functional_call`."""
        position = self._mixtures.index(mixture)
        return {
            f"{name}.weight": leaves[position]
            for name, leaves in zip(self.linears, self._leaves, strict=True)
        }

    def finish_step(self) -> None:
        """Push the leaves' summed gradients into E, M and T, and drop the dense weights."""
        gradients = [
            torch.stack([torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves])
            for leaves in self._leaves
        ]
        torch.autograd.backward(self._dense, gradients)
        self._dense, self._leaves, self._mixtures = [], [], []
