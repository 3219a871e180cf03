"""Muon for matrices, AdamW for the rest (https://kellerjordan.github.io/posts/muon)."""

from collections.abc import Callable, Iterable
from functools import cache

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from safelight.models.networks.placement import fast_dtypes


class Muon(Optimizer):
    """Momentum whose update for each matrix is made orthogonal; convolutions are flattened to (out, in * kh * kw).

    Gradients are the same on every process, so each holds all momentum, but each process orthogonalises
    only its share of the matrices and sends the result to the others.
    """

    def __init__(self, params: Iterable[Tensor], *, lr: float, momentum: float = 0.95) -> None:
        super().__init__(list(params), {"lr": lr, "momentum": momentum})
        self.world = dist.get_world_size() if dist.is_initialized() else 1
        self.rank = dist.get_rank() if dist.is_initialized() else 0

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        assert closure is None
        for group in self.param_groups:
            params: list[Tensor] = [param for param in group["params"] if param.grad is not None]
            for param in params:
                buffer = self.state[param].setdefault("momentum", torch.zeros_like(param))
                assert param.grad is not None
                buffer.lerp_(param.grad, 1 - group["momentum"])
            for owner, share in enumerate(shares(params, self.world)):
                updates = torch.zeros(sum(param.numel() for param in share))
                slots = updates.split([param.numel() for param in share])
                if owner == self.rank:
                    for param, slot in zip(share, slots, strict=True):
                        assert param.grad is not None
                        nesterov = torch.lerp(param.grad, self.state[param]["momentum"], group["momentum"])
                        slot.copy_(orthogonalise(nesterov.flatten(1)).flatten())
                if self.world > 1:
                    dist.broadcast(updates, src=owner)
                for param, slot in zip(share, slots, strict=True):
                    rows, columns = param.flatten(1).shape
                    param.add_(slot.view(param.shape), alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)


def shares(params: list[Tensor], world: int) -> list[list[Tensor]]:
    """Share matrices (out, in) or (out, in, kh, kw) among `world` processes with about the same work each."""
    shared: list[list[Tensor]] = [[] for _ in range(world)]
    work = [0.0] * world
    for param in sorted(params, key=cost, reverse=True):
        least = work.index(min(work))
        shared[least].append(param)
        work[least] += cost(param)
    return shared


def cost(param: Tensor) -> float:
    """Relative cost of orthogonalising a matrix (out, in) or (out, in, kh, kw)."""
    return param.numel() * min(param.flatten(1).shape)


POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
)
"""The first four polynomials of arXiv:2505.16932; as accurate here as five of Muon's own, and a fifth cheaper."""


def orthogonalise(matrix: Tensor) -> Tensor:
    """(rows, columns) approximately the nearest orthogonal matrix: all but tiny singular values become about 1."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.mT if tall else matrix
    # bfloat16 is accurate enough here (as in Muon's own implementation), and twice as fast on hardware that has it.
    x = (x / (x.norm() * 1.01 + 1e-7)).to(fastest(matrix.device))
    for a, b, c in POLAR_EXPRESS:
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrix.dtype)


@cache
def fastest(device: torch.device) -> torch.dtype:
    """bfloat16 where its matrix products are fast, else float32."""
    return torch.bfloat16 if torch.bfloat16 in fast_dtypes(device.type) else torch.float32


def new_optimizers(
    network: nn.Module,
    *,
    muon_rate: float,
    adam_rate: float,
    weight_decay: float,
    is_matrix: Callable[[str, Tensor], bool],
) -> list[Optimizer]:
    """Muon on the parameters for which `is_matrix(name, param)` is true, AdamW on the others; any shape."""
    matrices = [param for name, param in network.named_parameters() if param.requires_grad and is_matrix(name, param)]
    others = [param for name, param in network.named_parameters() if param.requires_grad and not is_matrix(name, param)]
    optimizers: list[Optimizer] = [
        Muon(matrices, lr=muon_rate),
        AdamW(others, lr=adam_rate, betas=(0.9, 0.98), weight_decay=weight_decay),
    ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["full_rate"] = group["lr"]
    return optimizers


def set_rates(optimizers: list[Optimizer], factor: float) -> None:
    """Set every rate to its full value times `factor`."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["full_rate"] * factor
