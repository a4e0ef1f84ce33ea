"""The training forward of a `hybrid` model: batched, chunked, matrix products in bf16.

Works on the format's own flat dictionary of tensors, so that a training step and a checkpoint use the
same names. Covers the mixers weir-tiny is made of; tests compare it with tools/hybrid_reference.py.
Shapes: B rows, T tokens, D hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hybrid_format import Json, Weights, layer_feed_forward, layer_mixers, mixer_params, mixer_prefix
from tiny import chunked


@dataclass(frozen=True)
class Places:
    """Where the tokens of a mixer's input stand. position [B, T] absolute."""

    position: Tensor


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """In float32. x [..., n] -> float32."""
    x = x.float()
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def l2(x: Tensor) -> Tensor:
    x = x.float()
    return x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + 1e-6)


def gated_rms(x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    return rms(x, weight, eps) * F.silu(gate.float())


def norm_then_gate(x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    """rms over the last dimension of x · silu(gate), as Mamba-2 has it."""
    return rms(x.float() * F.silu(gate.float()), weight, eps)


def conv_silu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Causal depthwise convolution and silu. x [B, T, C], weight [C, 1, W]."""
    taps = weight.shape[-1]
    padded = F.pad(x.float(), (0, 0, taps - 1, 0))
    y = sum(padded[:, j : j + x.shape[1]] * weight[:, 0, j] for j in range(taps))
    return F.silu(y if bias is None else y + bias)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate.float()) * up.float()


def rotate(x: Tensor, position: Tensor, theta: float) -> Tensor:
    """RoPE, rotate-half over all of d. x [B, T, H, d] float32."""
    half = x.shape[-1] // 2
    freq = theta ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angle = position[:, :, None, None].float() * freq
    cos, sin = angle.cos(), angle.sin()
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def cross_entropy(x: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """Loss of every token. x [n, D] and head [Vc, D] in one dtype, targets [n] -> float32 [n]."""
    return F.cross_entropy((x @ head.T).float(), targets, reduction="none")


# Replaced by compiled versions on the GPU: see compile_pieces.
PIECES: dict[str, Callable[..., Tensor]] = {
    "rms": rms, "l2": l2, "gated_rms": gated_rms, "norm_then_gate": norm_then_gate,
    "conv_silu": conv_silu, "swiglu": swiglu, "rotate": rotate, "cross_entropy": cross_entropy,
}


PLAIN_PIECES = dict(PIECES)


def compile_pieces() -> None:
    """Fuses the elementwise pieces; the matrix products between them stay as they are."""
    for name, piece in PLAIN_PIECES.items():
        PIECES[name] = torch.compile(piece, dynamic=False)


@contextmanager
def plain_pieces() -> Iterator[None]:
    """Without compiled pieces, which would compile again for every new shape."""
    compiled = dict(PIECES)
    PIECES.update(PLAIN_PIECES)
    try:
        yield
    finally:
        PIECES.update(compiled)


def linear(x: Tensor, w: Weights, name: str) -> Tensor:
    """In the dtype of the cast weights (bf16 in training)."""
    weight = w[f"{name}.weight"]
    y = x.to(weight.dtype) @ weight.T
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def heads_of(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1))


def attend_all(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Causal attention over everything. [B, T, H, d] -> [B, T, H, d]."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale).transpose(1, 2)


def attend_near(q: Tensor, k: Tensor, v: Tensor, scale: float, window: int) -> Tensor:
    """Each token sees itself and the window - 1 before it, in blocks of `window` tokens."""
    b, t, h, d = q.shape
    pad = -t % window
    q, k, v = (F.pad(x, (0, 0, 0, 0, 0, pad)) for x in (q, k, v))
    blocks = (t + pad) // window
    q, k, v = (x.reshape(b, blocks, window, h, d).transpose(2, 3) for x in (q, k, v))
    k, v = (torch.cat([F.pad(x[:, :-1], (0, 0, 0, 0, 0, 0, 1, 0)), x], 3) for x in (k, v))
    back = torch.arange(window, device=q.device)[:, None] + window  # keys begin one block earlier
    key = torch.arange(2 * window, device=q.device)[None, :]
    seen = (key <= back) & (key > back - window)
    first = torch.arange(blocks, device=q.device)[:, None, None, None] == 0
    mask = seen & ~(first & (key < window))  # [blocks, 1, window, 2·window]
    mask = mask.expand(b, -1, -1, -1, -1).reshape(b * blocks, 1, window, 2 * window)
    q, k, v = (x.reshape(b * blocks, h, -1, d) for x in (q, k, v))
    o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    return o.reshape(b, blocks, h, window, d).transpose(2, 3).reshape(b, -1, h, d)[:, :t]


# ---------------------------------------------------------------------------------------------------
# Mixers: x [B, T, D] normed.


def convolved(x: Tensor, w: Weights, p: Json) -> list[Tensor]:
    out = []
    for name in ("q", "k", "v"):
        y = linear(x, w, f"{name}_proj")
        if p["use_short_conv"]:
            conv = f"{name}_conv1d"
            y = PIECES["conv_silu"](y, w[f"{conv}.weight"], w.get(f"{conv}.bias"))
        out.append(y.float())
    return out


def mix_gla(x: Tensor, at: Places, w: Weights, p: Json) -> Tensor:
    heads, key = p["num_heads"], p["head_k_dim"]
    q, k, v = (heads_of(y, heads) for y in convolved(x, w, p))
    g = linear(x, w, "gk_proj.0").float() @ w["gk_proj.1.weight"].float().T + w["gk_proj.1.bias"]
    g = heads_of(F.logsigmoid(g) / p["gate_logit_normalizer"], heads).clamp_min(p["clamp_min"])
    o = chunked.channel_decay(q * key**-0.5, k, v, g)
    gate = heads_of(linear(x, w, "g_proj"), heads)
    o = PIECES["gated_rms"](o, gate, w["g_norm_swish_gate.weight"], p["norm_eps"])
    return linear(o.flatten(2), w, "o_proj")


def mix_gated_deltanet(x: Tensor, at: Places, w: Weights, p: Json) -> Tensor:
    heads, key = p["num_heads"], p["head_dim"]
    q, k, v = (heads_of(y, heads) for y in convolved(x, w, p))
    q, k = PIECES["l2"](q) * key**-0.5, PIECES["l2"](k)
    g = -w["A_log"].exp() * F.softplus(linear(x, w, "a_proj").float() + w["dt_bias"])
    o = chunked.gated_delta(q, k, v, g, linear(x, w, "b_proj").float().sigmoid())
    gate = heads_of(linear(x, w, "g_proj"), heads)
    o = PIECES["gated_rms"](o, gate, w["o_norm.weight"], p["norm_eps"])
    return linear(o.flatten(2), w, "o_proj")


def mix_mamba2(x: Tensor, at: Places, w: Weights, p: Json) -> Tensor:
    """One group of B and C."""
    heads, state = p["num_heads"], p["state_size"]
    inner = heads * p["head_dim"]
    z, xbc, dt = linear(x, w, "in_proj").split([inner, inner + 2 * state, heads], -1)
    xbc = PIECES["conv_silu"](xbc, w["conv1d.weight"], w["conv1d.bias"]).float()
    u, b, c = xbc.split([inner, state, state], -1)
    u, dt = heads_of(u, heads), F.softplus(dt.float() + w["dt_bias"])
    o = chunked.scalar_decay(c.unsqueeze(2), b.unsqueeze(2), dt.unsqueeze(-1) * u, -w["A_log"].exp() * dt)
    y = (o + w["D"][:, None] * u).flatten(2)
    return linear(PIECES["norm_then_gate"](y, z, w["norm.weight"], p["norm_eps"]), w, "out_proj")


def mix_attn(x: Tensor, at: Places, w: Weights, p: Json) -> Tensor:
    """attn and local_attn."""
    heads, kv_heads, dim = p["num_heads"], p["num_kv_heads"], p["head_dim"]
    q, k = heads_of(linear(x, w, "q_proj"), heads), heads_of(linear(x, w, "k_proj"), kv_heads)
    v = heads_of(linear(x, w, "v_proj"), kv_heads)
    dtype = v.dtype
    if p["qk_norm"]:
        q = PIECES["rms"](q, w["q_norm.weight"], p["norm_eps"])
        k = PIECES["rms"](k, w["k_norm.weight"], p["norm_eps"])
    if p["rope_theta"] is not None:
        q = PIECES["rotate"](q.float(), at.position, p["rope_theta"])
        k = PIECES["rotate"](k.float(), at.position, p["rope_theta"])
    q, k = q.to(dtype), k.to(dtype)
    k, v = (y.repeat_interleave(heads // kv_heads, 2) for y in (k, v))
    scale = dim**-0.5
    o = attend_near(q, k, v, scale, p["window"]) if "window" in p else attend_all(q, k, v, scale)
    o = o.flatten(2)
    if p["output_gate"]:
        o = o * linear(x, w, "g_proj").float().sigmoid().to(dtype)
    return linear(o, w, "o_proj")


MIXERS: dict[str, Callable[[Tensor, Places, Weights, Json], Tensor]] = {
    "gla": mix_gla, "gated_deltanet": mix_gated_deltanet, "mamba2": mix_mamba2,
    "attn": mix_attn, "local_attn": mix_attn,
}

# ---------------------------------------------------------------------------------------------------
# The model.


def mix_picked(x: Tensor, at: Places, picked: Tensor, mixer: Json, p: Json, w: Weights) -> Tensor:
    """One routed mixer over the tokens that picked it. picked [B, T] bool; [B, T, D], rest arbitrary.

    A stable sort puts the picked tokens first, in order; being causal, the mixer never shows them the
    others behind.
    """
    order = (~picked).to(torch.int32).sort(dim=1, stable=True).indices  # [B, T]
    wide = order[:, :, None].expand_as(x)
    y = MIXERS[mixer["type"]](x.gather(1, wide), Places(at.position.gather(1, order)), w, p)
    return torch.zeros_like(y).scatter(1, wide, y)


def balance_loss(p: Tensor, picked: Tensor) -> Tensor:
    """M Σ_m (share of tokens that picked m) · (mean probability of m): 1 when even. p [B, T, M]."""
    return p.shape[-1] * (picked.float().mean((0, 1)) * p.mean((0, 1))).sum()


@dataclass
class Routing:
    """What the routed layers of one forward did."""

    balance: list[Tensor]
    shares: list[Tensor]  # [M] share of tokens per mixer


def mix(x: Tensor, at: Places, n: int, config: Json, w: Weights, routing: Routing) -> Tensor:
    layer = config["layers"][n]
    weight = picked = None
    if layer["type"] == "routed":
        p = (x.float() @ w[f"model.layers.{n}.router.weight"].float().T).softmax(-1)  # [B, T, M]
        best = p.sort(dim=-1, descending=True, stable=True).indices[..., : layer["top_k"]]
        picked = torch.zeros_like(p).scatter(-1, best, 1.0)
        weight = p * picked
        routing.balance.append(balance_loss(p, picked))
        routing.shares.append(picked.detach().mean((0, 1)))
    out = torch.zeros_like(x, dtype=torch.float32)
    for m, mixer in enumerate(layer_mixers(layer)):
        prefix = mixer_prefix(n, m, layer)
        own = {k[len(prefix):]: v for k, v in w.items() if k.startswith(prefix)}
        p_m = mixer_params(mixer, config, prefix)
        if weight is None:
            out = out + MIXERS[mixer["type"]](x, at, own, p_m).float()
        else:
            y = mix_picked(x, at, picked[..., m] > 0, mixer, p_m, own)
            out = out + weight[..., m, None] * y.float()
    return out


def cast_weights(w: Weights, dtype: torch.dtype) -> Weights:
    """Matrices that multiply activations in `dtype`; all that is added or scaled stays float32."""
    keep = ("norm", "conv", "bias", "A_log", ".D", "router", "gk_proj.1", "g_norm_swish_gate")
    return {n: t if t.dim() < 2 or any(k in n for k in keep) else t.to(dtype) for n, t in w.items()}


def hidden_states(ids: Tensor, config: Json, w: Weights, routing: Routing,
                  dropout: float = 0.0) -> Tensor:
    """The normed hidden states before the head. ids [B, T], T a multiple of 64; w cast -> [B, T, D]."""
    at = Places(torch.arange(ids.shape[1], device=ids.device).expand_as(ids))
    eps, norm = config["norm_eps"], PIECES["rms"]
    dtype = w["model.embeddings.weight"].dtype
    h = F.embedding(ids, w["model.embeddings.weight"]).float() * config["embedding_multiplier"]
    for n, layer in enumerate(config["layers"]):
        name = f"model.layers.{n}"
        x = norm(h, w[f"{name}.mixer_norm.weight"], eps).to(dtype)
        added = F.dropout(mix(x, at, n, config, w, routing), dropout, dropout > 0)
        h = h + config["residual_multiplier"] * added
        if layer_feed_forward(layer, config) is not None:
            x = norm(h, w[f"{name}.mlp_norm.weight"], eps).to(dtype)
            gate, up = linear(x, w, f"{name}.mlp.gate_proj"), linear(x, w, f"{name}.mlp.up_proj")
            inner = PIECES["swiglu"](gate, up).to(dtype)
            added = F.dropout(linear(inner, w, f"{name}.mlp.down_proj").float(), dropout, dropout > 0)
            h = h + config["residual_multiplier"] * added
    return norm(h, w["model.norm.weight"], eps).to(dtype)


def initial_weights(config: Json, shapes: dict[str, tuple[int, ...]], seed: int) -> Weights:
    """Starting point of training, float32."""
    rng = torch.Generator().manual_seed(seed)
    blocks = len(config["layers"])

    def tensor(name: str, shape: tuple[int, ...]) -> Tensor:
        noise, uniform = torch.randn(shape, generator=rng), torch.rand(shape, generator=rng)
        if name.endswith("A_log"):
            return (1 + 15 * uniform).log()
        if name.endswith("dt_bias"):  # softplus of it from 0.001 to 0.1
            step = torch.exp(math.log(1e-3) + (math.log(1e-1) - math.log(1e-3)) * uniform)
            return step + torch.log(-torch.expm1(-step))
        if name.endswith("gk_proj.1.bias"):
            return 6 * uniform  # decays of half a life in 15 to 4000 tokens
        if "norm" in name or name.endswith(".D"):
            return torch.ones(shape)
        if name.endswith("bias"):
            return torch.zeros(shape)
        if "conv" in name:
            return noise * shape[-1] ** -0.5
        if "embeddings" in name:
            return 0.02 * noise
        if name.endswith(("o_proj.weight", "out_proj.weight", "down_proj.weight")):
            return noise * shape[-1] ** -0.5 * (2 * blocks) ** -0.5
        return noise * shape[-1] ** -0.5

    return {name: tensor(name, shape) for name, shape in sorted(shapes.items())}
