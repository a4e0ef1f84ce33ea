"""Muon for the matrices of the layers, AdamW for everything else."""

from __future__ import annotations

import torch
from torch import Tensor

from hybrid_format import Weights

SMALL = ("conv", "router", "gk_proj", "a_proj", "b_proj", "norm", "embeddings", "lm_head")


def orthogonal(g: Tensor, steps: int = 5) -> Tensor:
    """Nearest semi-orthogonal matrices by a quintic Newton-Schulz iteration. g [n, rows, columns]."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.bfloat16()
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        s = x @ x.mT
        x = a * x + (b * s + c * (s @ s)) @ x
    return (x.mT if tall else x).float()


class Muon:
    """Momentum, then the nearest orthogonal matrix, scaled to the size of an AdamW step.

    Matrices of one shape are treated together as one batch.
    """

    def __init__(self, tensors: list[Tensor], momentum: float, decay: float) -> None:
        self.momentum, self.decay = momentum, decay
        groups: dict[torch.Size, list[Tensor]] = {}
        for t in tensors:
            groups.setdefault(t.shape, []).append(t)
        self.groups = list(groups.values())
        self.moving = [torch.zeros(len(g), *g[0].shape, device=g[0].device) for g in self.groups]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        for group, moving in zip(self.groups, self.moving, strict=True):
            gradient = torch.stack([t.grad for t in group])
            moving.lerp_(gradient, 1 - self.momentum)
            update = orthogonal(gradient.lerp(moving, self.momentum))
            size = 0.2 * max(update.shape[1:]) ** 0.5
            torch._foreach_mul_(group, 1 - rate * self.decay)
            torch._foreach_add_(group, list(update.unbind()), alpha=-rate * size)


class Optimizer:
    """Both, with one step and one learning rate each."""

    def __init__(self, weights: Weights, decay: float) -> None:
        matrices = [t for n, t in weights.items() if t.dim() == 2 and not any(k in n for k in SMALL)]
        taken = {id(t) for t in matrices}
        rest = [t for t in weights.values() if id(t) not in taken]
        self.muon = Muon(matrices, momentum=0.95, decay=decay)
        self.adam = torch.optim.AdamW(rest, lr=0.0, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0,
                                      fused=rest[0].is_cuda)

    def step(self, matrix_rate: float, other_rate: float) -> None:
        self.muon.step(matrix_rate)
        for group in self.adam.param_groups:
            group["lr"] = other_rate
        self.adam.step()
