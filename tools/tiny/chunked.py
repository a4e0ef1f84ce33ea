"""Recurrences as matrix products over chunks of tokens, for training.

Each equals tools/hybrid_reference.py's token-by-token recurrence. B rows, T tokens (a multiple of the
chunk), H heads, N = T / C chunks of C tokens, K and V the dimensions of keys and values. All float32.
"""

from __future__ import annotations

import torch
from torch import Tensor


def split(x: Tensor, size: int) -> Tensor:
    """[B, T, H, ...] -> [B, H, N, C, ...]."""
    b, t, h, *rest = x.shape
    return x.reshape(b, t // size, size, h, *rest).movedim(3, 1)


def join(x: Tensor) -> Tensor:
    """[B, H, N, C, V] -> [B, T, H, V]."""
    b, h, n, c, v = x.shape
    return x.permute(0, 2, 3, 1, 4).reshape(b, n * c, h, v)


def lower_mask(size: int, like: Tensor, diagonal: int = 0) -> Tensor:
    return torch.ones(size, size, dtype=torch.bool, device=like.device).tril(diagonal)


def decay_between(log_sum: Tensor, diagonal: int = 0) -> Tensor:
    """exp(b_i - b_j) for j <= i + diagonal, else 0. log_sum [..., C] -> [..., C, C]."""
    difference = log_sum.unsqueeze(-1) - log_sum.unsqueeze(-2)
    mask = lower_mask(log_sum.shape[-1], log_sum, diagonal)
    return difference.masked_fill(~mask, float("-inf")).exp()


def carry(added: Tensor, total: Tensor) -> Tensor:
    """State before each chunk from what each chunk adds.

    added [B, H, N, K, V]; total [B, H, N, G] log decay of a whole chunk, G = K or 1.
    S_n = Σ_{m<n} exp(Σ_{m<l<n} total_l) added_m, as one matrix product over chunks.
    """
    b, h, n, k, v = added.shape
    groups = total.shape[-1]
    after = total.cumsum(2).transpose(2, 3)  # [B, H, G, N] through chunk n
    before = after - total.transpose(2, 3)  # through chunk n - 1
    difference = before.unsqueeze(-1) - after.unsqueeze(-2)  # [B, H, G, n, m]
    weight = difference.masked_fill(~lower_mask(n, added, -1), float("-inf")).exp()
    grouped = added.reshape(b, h, n, groups, -1).transpose(2, 3)  # [B, H, G, N, K/G·V]
    return (weight @ grouped).transpose(2, 3).reshape(b, h, n, k, v)


def scalar_decay(q: Tensor, k: Tensor, v: Tensor, g: Tensor, size: int = 64) -> Tensor:
    """S = exp(g) S + k vᵀ, o = Sᵀ q. q, k [B, T, H or 1, K]; v [B, T, H, V]; g [B, T, H]."""
    q, k, v, g = split(q, size), split(k, size), split(v, size), split(g, size)
    log_sum = g.cumsum(-1)  # [B, H, N, C]
    total = log_sum[..., -1:]
    inside = ((q @ k.transpose(-1, -2)) * decay_between(log_sum)) @ v
    added = (k.transpose(-1, -2) * (total - log_sum).exp().unsqueeze(-2)) @ v
    state = carry(added, total)
    return join(inside + (q @ state) * log_sum.exp().unsqueeze(-1))


def channel_decay(q: Tensor, k: Tensor, v: Tensor, g: Tensor, size: int = 32) -> Tensor:
    """The same with a decay per channel. q, k, g [B, T, H, K]; v [B, T, H, V].

    exp(-Σ g) over a chunk must fit float32: g >= -80 / C. The format's clamp_min sees to it.
    """
    q, k, v, g = split(q, size), split(k, size), split(v, size), split(g, size)
    log_sum = g.cumsum(-2)  # [B, H, N, C, K]
    total = log_sum[..., -1:, :]
    grown, shrunk = q * log_sum.exp(), k * (-log_sum).exp()
    scores = (grown @ shrunk.transpose(-1, -2)).masked_fill(~lower_mask(size, q), 0)
    added = (k * (total - log_sum).exp()).transpose(-1, -2) @ v
    state = carry(added, total.squeeze(-2))
    return join(scores @ v + grown @ state)


def gated_delta(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, size: int = 64) -> Tensor:
    """S⁻ = exp(g) S, S = S⁻ + k (β (v - S⁻ᵀk))ᵀ, o = Sᵀ q. q, k, v [B, T, H, ·]; g, beta [B, T, H].

    Within a chunk the written values u solve (I + A) u = β v - β exp(b) k S with
    A_ij = β_i exp(b_i - b_j) k_i·k_j for j < i; between chunks the state goes in order.
    """
    q, k, v, g, beta = (split(x, size) for x in (q, k, v, g, beta))
    log_sum = g.cumsum(-1)  # [B, H, N, C]
    grown = log_sum.exp().unsqueeze(-1)
    decay = decay_between(log_sum)
    k_beta = k * beta.unsqueeze(-1)
    a = (k_beta @ k.transpose(-1, -2)) * decay
    right = torch.cat([v * beta.unsqueeze(-1), k_beta * grown], -1)
    solved = torch.linalg.solve_triangular(a, right, upper=False, unitriangular=True)
    u, w = solved.split([v.shape[-1], k.shape[-1]], -1)
    scores = (q @ k.transpose(-1, -2)) * decay
    q_grown = q * grown
    k_left = (k * (log_sum[..., -1:] - log_sum).exp().unsqueeze(-1)).transpose(-1, -2)
    total = log_sum[..., -1].exp()[..., None, None]  # [B, H, N, 1, 1]
    # Per chunk, state = total·state + k_leftᵀ (u - w state): one product with a [K, K] matrix.
    keep = (total * torch.eye(k.shape[-1], device=k.device) - k_left @ w).flatten(0, 1).unbind(1)
    add = (k_left @ u).flatten(0, 1).unbind(1)  # N of [B·H, K, V]
    states = [torch.zeros_like(add[0])]
    for n in range(len(add) - 1):
        states.append(torch.baddbmm(add[n], keep[n], states[n]))
    before = torch.stack(states, 1).unflatten(0, q.shape[:2])  # [B, H, N, K, V]
    return join(q_grown @ before + scores @ (u - w @ before))
