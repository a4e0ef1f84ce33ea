"""The plain forward pass that defines the `hybrid` model format (docs/hybrid-format.md).

One sequence at a time, float32, recurrences one token after another, nothing clever. Fast code is
compared with this file; this file is compared with the text of the format.

    hybrid_reference.py MODEL_DIR --lengths 1,5,61,200 --greedy 16
    hybrid_reference.py --random config.json --seed 7 --dtype bfloat16 MODEL_DIR

The first form writes MODEL_DIR/expected.safetensors as `weir check` reads it; the second writes a
checkpoint with every parameter drawn at random.

Shapes: T tokens, D hidden size, H heads (HK key/value heads, HV value heads), K and V the dimensions
of a head's keys and values, W taps of a convolution.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from hybrid_format import (Json, Weights, layer_feed_forward, layer_mixers, load_checkpoint,
                           mixer_params, mixer_prefix, random_checkpoint, read_config,
                           save_checkpoint)

# ---------------------------------------------------------------------------------------------------
# Pieces.


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) · w over the last dimension."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def l2(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).sum(-1, keepdim=True) + 1e-6)


def block_norm(x: Tensor, w: Weights, name: str, config: Json) -> Tensor:
    """A layer's or the final norm. x [T, D]."""
    weight, eps = w[f"{name}.weight"], config["norm_eps"]
    if config["norm"] == "layer_norm":
        return F.layer_norm(x, x.shape[-1:], weight, w[f"{name}.bias"], eps)
    if config["norm"] == "rms_norm_zero_centered":
        return rms(x, 1 + weight, eps)
    if config["norm"] != "rms_norm":
        raise ValueError(f"unknown norm {config['norm']!r}")
    return rms(x, weight, eps)


def linear(x: Tensor, w: Weights, name: str) -> Tensor:
    y = x @ w[f"{name}.weight"].T
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def causal_conv(x: Tensor, w: Weights, name: str) -> Tensor:
    """Depthwise: y_t = Σ_j w[j] x_{t-W+1+j} (+ b). x [T, C]."""
    weight = w[f"{name}.weight"][:, 0, :]  # [C, W]
    taps = weight.shape[1]
    padded = torch.cat([x.new_zeros(taps - 1, x.shape[1]), x])
    y = torch.zeros_like(x)
    for j in range(taps):
        y = y + padded[j : j + x.shape[0]] * weight[:, j]
    return y + w[f"{name}.bias"] if f"{name}.bias" in w else y


def heads_of(x: Tensor, heads: int) -> Tensor:
    """[T, heads·d] -> [T, heads, d]."""
    return x.reshape(x.shape[0], heads, -1)


def repeat_heads(x: Tensor, heads: int) -> Tensor:
    """[T, n, d] -> [T, heads, d]: head i reads i // (heads / n)."""
    return x.repeat_interleave(heads // x.shape[1], dim=1)


def recurrence(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor | None,
               beta: Tensor | None = None) -> Tensor:
    """S⁻ = exp(g) S; S = S⁻ + k vᵀ, or with beta S = S⁻ + k (β (v - S⁻ᵀk))ᵀ; o = Sᵀ q.

    q, k [T, H, K]; v [T, H, V]; log_decay [T, H, K] or [T, H, 1]; beta [T, H, 1]. Returns [T, H, V].
    """
    state = v.new_zeros(q.shape[1], q.shape[2], v.shape[2])  # [H, K, V]
    out = []
    for t in range(q.shape[0]):
        if log_decay is not None:
            state = state * log_decay[t].exp()[:, :, None]
        write = v[t]
        if beta is not None:
            read = torch.einsum("hkv,hk->hv", state, k[t])
            write = beta[t] * (v[t] - read)
        state = state + k[t][:, :, None] * write[:, None, :]
        out.append(torch.einsum("hkv,hk->hv", state, q[t]))
    return torch.stack(out)


def rope_frequencies(dim: int, theta: float, scaling: Json | None) -> Tensor:
    """Angle per position of each pair of dimensions, [dim / 2]."""
    freq = 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    if scaling is None:
        return freq
    if scaling["rope_type"] == "linear":
        return freq / scaling["factor"]
    if scaling["rope_type"] != "llama3":
        raise ValueError(f"unknown rope_type {scaling['rope_type']!r}")
    length, low, high = (scaling[key] for key in (
        "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"))
    turns = length * freq / (2 * math.pi)  # full turns within the original length
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - smooth) * freq / scaling["factor"] + smooth * freq


def rope(x: Tensor, positions: Tensor, dim: int, theta: float, scaling: Json | None) -> Tensor:
    """Rotate-half over the first `dim` dimensions. x [T, H, d], positions [T]."""
    angle = positions[:, None].double() * rope_frequencies(dim, theta, scaling)  # [T, dim / 2]
    cos = torch.cat([angle.cos()] * 2, -1)[:, None, :].to(x.dtype)
    sin = torch.cat([angle.sin()] * 2, -1)[:, None, :].to(x.dtype)
    turned, rest = x[..., :dim], x[..., dim:]
    first, second = turned.chunk(2, -1)
    return torch.cat([turned * cos + torch.cat([-second, first], -1) * sin, rest], -1)


# ---------------------------------------------------------------------------------------------------
# Mixers: x [T, D] (normed), positions [T] absolute, w the mixer's tensors, p its parameters.


def qkv_convolved(x: Tensor, w: Weights, p: Json) -> list[Tensor]:
    """q, k, v projections, through conv and silu where there is a conv."""
    out = []
    for name in ("q", "k", "v"):
        y = linear(x, w, f"{name}_proj")
        out.append(F.silu(causal_conv(y, w, f"{name}_conv1d")) if p["use_short_conv"] else y)
    return out


def mix_gla(x: Tensor, positions: Tensor, w: Weights, p: Json, kind: str) -> Tensor:
    """gla, simple_gla and retnet."""
    heads, kv_heads, key = p["num_heads"], p["num_kv_heads"], p["head_k_dim"]
    q, k, v = qkv_convolved(x, w, p)
    q, k, v = heads_of(q, heads), heads_of(k, kv_heads), heads_of(v, kv_heads)
    if kind == "retnet":
        q = rope(q, positions, key, p["rope_theta"], None)
        k = rope(k, positions, key, p["rope_theta"], None)
        h = torch.arange(heads, dtype=x.dtype)
        g = torch.log1p(-(2.0 ** (-5 - h)))[None, :, None].expand(x.shape[0], heads, 1)
    else:
        if kind == "gla":
            g = heads_of(linear(x @ w["gk_proj.0.weight"].T, w, "gk_proj.1"), kv_heads)
        else:
            g = linear(x, w, "gk_proj")[:, :, None]  # [T, H, 1]
        g = F.logsigmoid(g) / p["gate_logit_normalizer"]
        if p["clamp_min"] is not None:
            g = g.clamp_min(p["clamp_min"])
        g = repeat_heads(g, heads)
    o = recurrence(q * key**-0.5, repeat_heads(k, heads), repeat_heads(v, heads), g)
    if p["use_output_gate"]:
        gate = heads_of(linear(x, w, "g_proj"), heads)
        o = rms(o, w["g_norm_swish_gate.weight"], p["norm_eps"]) * F.silu(gate)
    else:
        o = rms(o, w["g_norm.weight"], p["norm_eps"])
    return linear(o.flatten(1), w, "o_proj")


def feature_map(x: Tensor, w: Weights, side: str, kind: str) -> Tensor:
    if kind == "elementwise_product":
        first, second = (w[f"feature_map_{side}.layer{i}.weight"] for i in (1, 2))
        return (x @ first.T) * (x @ second.T)
    maps = {"identity": lambda y: y, "relu": F.relu, "elu": lambda y: F.elu(y) + 1}
    if kind not in maps:
        raise ValueError(f"unknown feature_map {kind!r}")
    return maps[kind](x)


def mix_linear_attn(x: Tensor, positions: Tensor, w: Weights, p: Json, kind: str) -> Tensor:
    heads, kv_heads = p["num_heads"], p["num_kv_heads"]
    q = feature_map(heads_of(linear(x, w, "q_proj"), heads), w, "q", p["feature_map"])
    k = feature_map(heads_of(linear(x, w, "k_proj"), kv_heads), w, "k", p["feature_map"])
    v = heads_of(linear(x, w, "v_proj"), kv_heads)
    if p["norm_q"]:
        q = q / (q.sum(-1, keepdim=True) + 1e-4)
    if p["norm_k"]:
        k = k / (k.sum(-1, keepdim=True) + 1e-4)
    q, k, v = q * p["head_k_dim"] ** -0.5, repeat_heads(k, heads), repeat_heads(v, heads)
    o = recurrence(q, k, v, None)
    if p["norm_feature_map"]:
        o = o / ((q * k.cumsum(0)).sum(-1, keepdim=True) + 1e-10)
    return linear(rms(o, w["norm.weight"], p["norm_eps"]).flatten(1), w, "o_proj")


def mix_delta_net(x: Tensor, positions: Tensor, w: Weights, p: Json, kind: str) -> Tensor:
    heads = p["num_heads"]
    acts = {"silu": F.silu, "relu": F.relu, "elu": lambda y: F.elu(y) + 1, "identity": lambda y: y}
    act = acts[p["qk_activation"]]
    parts = []
    for name in ("q", "k", "v"):
        y = linear(x, w, f"{name}_proj")
        y = causal_conv(y, w, f"{name}_conv1d") if p["use_short_conv"] else y
        parts.append(heads_of((F.silu if name == "v" else act)(y), heads))
    q, k, v = parts
    if p["qk_norm"] == "l2":
        q, k = l2(q), l2(k)
    elif p["qk_norm"] == "sum":
        q, k = q / q.sum(-1, keepdim=True), k / k.sum(-1, keepdim=True)
    else:
        raise ValueError(f"unknown qk_norm {p['qk_norm']!r}")
    beta = x.new_ones(x.shape[0], heads)
    if p["use_beta"]:
        beta = linear(x, w, "b_proj").sigmoid()
    if p["allow_neg_eigval"]:
        beta = beta * 2
    o = recurrence(q * p["head_k_dim"] ** -0.5, k, v, None, beta[:, :, None])
    o = rms(o, w["o_norm.weight"], p["norm_eps"])
    if p["use_gate"]:
        o = o * F.silu(heads_of(linear(x, w, "g_proj"), heads))
    return linear(o.flatten(1), w, "o_proj")


def mix_gated_deltanet(x: Tensor, positions: Tensor, w: Weights, p: Json, kind: str) -> Tensor:
    """gated_deltanet and kda."""
    heads, v_heads, key = p["num_heads"], p["num_v_heads"], p["head_dim"]
    q, k, v = qkv_convolved(x, w, p)
    if not p["use_short_conv"]:
        q, k, v = F.silu(q), F.silu(k), F.silu(v)
    q, k, v = heads_of(q, heads), heads_of(k, heads), heads_of(v, v_heads)
    q, k = repeat_heads(l2(q) * key**-0.5, v_heads), repeat_heads(l2(k), v_heads)
    if kind == "kda":
        f = (x @ w["f_proj.0.weight"].T) @ w["f_proj.1.weight"].T + w["dt_bias"]
        f, scale = heads_of(f, v_heads), w["A_log"].exp()[:, None]
        if p["lower_bound"] is None:
            g = -scale * F.softplus(f)
        else:
            g = p["lower_bound"] * (scale * f).sigmoid()
    else:
        g = -w["A_log"].exp() * F.softplus(linear(x, w, "a_proj") + w["dt_bias"])
        g = g[:, :, None]
    beta = linear(x, w, "b_proj").sigmoid() * (2 if p["allow_neg_eigval"] else 1)
    o = recurrence(q, k, v, g, beta[:, :, None])
    o = rms(o, w["o_norm.weight"], p["norm_eps"])
    if kind == "kda":
        gate = linear(x @ w["g_proj.0.weight"].T, w, "g_proj.1")
        o = o * heads_of(gate, v_heads).sigmoid()
    elif p["use_gate"]:
        o = o * F.silu(heads_of(linear(x, w, "g_proj"), v_heads))
    return linear(o.flatten(1), w, "o_proj")


def mix_mamba2(x: Tensor, positions: Tensor, w: Weights, p: Json, kind: str) -> Tensor:
    heads, groups, state = p["num_heads"], p["n_groups"], p["state_size"]
    inner = heads * p["head_dim"]
    z, xbc, dt = linear(x, w, "in_proj").split([inner, inner + 2 * groups * state, heads], -1)
    xbc = F.silu(causal_conv(xbc, w, "conv1d"))
    u, b, c = xbc.split([inner, groups * state, groups * state], -1)
    low, high = p["time_step_limit"]
    dt = F.softplus(dt + w["dt_bias"]).clamp(low, high)[:, :, None]  # [T, H, 1]
    u = heads_of(u, heads)
    b, c = repeat_heads(heads_of(b, groups), heads), repeat_heads(heads_of(c, groups), heads)
    o = recurrence(c, b, dt * u, -w["A_log"].exp()[:, None] * dt)
    y = (o + w["D"][:, None] * u).flatten(1)
    gate = F.silu(z)
    if not p["rms_norm"]:
        y = y * gate
    else:
        y = y if p["norm_before_gate"] else y * gate
        weight = w["norm.weight"].reshape(groups, -1)
        y = rms(heads_of(y, groups), weight, p["norm_eps"]).flatten(1)
        y = y * gate if p["norm_before_gate"] else y
    return linear(y, w, "out_proj")


def mix_attn(x: Tensor, positions: Tensor, w: Weights, p: Json, kind: str) -> Tensor:
    """attn and local_attn; the window counts entries of x, not positions."""
    heads, kv_heads, dim = p["num_heads"], p["num_kv_heads"], p["head_dim"]
    q = heads_of(linear(x, w, "q_proj"), heads)
    k = heads_of(linear(x, w, "k_proj"), kv_heads)
    v = heads_of(linear(x, w, "v_proj"), kv_heads)
    if p["qk_norm"]:
        q = rms(q, w["q_norm.weight"], p["norm_eps"])
        k = rms(k, w["k_norm.weight"], p["norm_eps"])
    if p["rope_theta"] is not None:
        rotary = int(p["partial_rotary_factor"] * dim)
        q = rope(q, positions, rotary, p["rope_theta"], p["rope_scaling"])
        k = rope(k, positions, rotary, p["rope_theta"], p["rope_scaling"])
    k, v = repeat_heads(k, heads), repeat_heads(v, heads)
    scale = dim**-0.5 if p["scale"] is None else p["scale"]
    scores = torch.einsum("thd,shd->hts", q, k) * scale
    index = torch.arange(x.shape[0])
    seen = index[None, :] <= index[:, None]
    if kind == "local_attn":
        seen &= index[None, :] > index[:, None] - p["window"]
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    o = torch.einsum("hts,shd->thd", weights, v).flatten(1)
    if p["output_gate"]:
        o = o * linear(x, w, "g_proj").sigmoid()
    return linear(o, w, "o_proj")


def mix_short_conv(x: Tensor, positions: Tensor, w: Weights, p: Json, kind: str) -> Tensor:
    b, c, u = linear(x, w, "in_proj").chunk(3, -1)
    return linear(c * causal_conv(b * u, w, "conv"), w, "out_proj")


MIXERS: dict[str, Callable[[Tensor, Tensor, Weights, Json, str], Tensor]] = {
    "gla": mix_gla, "simple_gla": mix_gla, "retnet": mix_gla, "linear_attn": mix_linear_attn,
    "delta_net": mix_delta_net, "gated_deltanet": mix_gated_deltanet, "kda": mix_gated_deltanet,
    "mamba2": mix_mamba2, "attn": mix_attn, "local_attn": mix_attn, "short_conv": mix_short_conv,
}


# ---------------------------------------------------------------------------------------------------
# The model.


def route(x: Tensor, router: Tensor, layer: Json) -> tuple[Tensor, Tensor]:
    """Weight of every mixer for every token, and which are picked. x [T, D] -> two of [T, M].

    A picked mixer sees the token even where its weight is so small that it rounds to zero.
    """
    p = (x @ router.T).softmax(-1)
    # Stable: of equal values the lower index comes first.
    order = p.sort(dim=-1, descending=True, stable=True).indices
    picked = torch.zeros_like(p).scatter(-1, order[:, : layer.get("top_k", 1)], 1.0)
    weight = p * picked
    if layer.get("norm_topk_prob", False):
        weight = weight / weight.sum(-1, keepdim=True)
    return weight, picked.bool()


def mix(x: Tensor, n: int, config: Json, tensors: Weights) -> Tensor:
    """The mixing part of layer n. x [T, D] (normed) -> [T, D]."""
    layer = config["layers"][n]
    positions = torch.arange(x.shape[0])
    weight = chosen = None
    if layer["type"] == "routed":
        weight, chosen = route(x, tensors[f"model.layers.{n}.router.weight"], layer)
    out = torch.zeros_like(x)
    for m, mixer in enumerate(layer_mixers(layer)):
        prefix = mixer_prefix(n, m, layer)
        w = {k[len(prefix):]: v for k, v in tensors.items() if k.startswith(prefix)}
        p = mixer_params(mixer, config, f"layer {n} mixer {m}")
        run = MIXERS[mixer["type"]]
        if weight is None:
            out = out + run(x, positions, w, p, mixer["type"])
            continue
        picked = chosen[:, m].nonzero()[:, 0]  # the subsequence this mixer sees
        if len(picked) > 0:
            y = run(x[picked], positions[picked], w, p, mixer["type"])
            out = out.index_add(0, picked, weight[picked, m, None] * y)
    return out


def feed_forward(x: Tensor, n: int, ff: Json, tensors: Weights) -> Tensor:
    """The feed-forward part of layer n. x [T, D] (normed) -> [T, D]."""
    at = f"model.layers.{n}.mlp"
    up = linear(x, tensors, f"{at}.up_proj")
    if ff["type"] == "swiglu":
        inner = F.silu(linear(x, tensors, f"{at}.gate_proj")) * up
    elif ff["type"] == "geglu":
        inner = F.gelu(linear(x, tensors, f"{at}.gate_proj"), approximate="tanh") * up
    elif ff["type"] == "mlp":
        acts = {"silu": F.silu, "gelu": F.gelu, "relu": F.relu, "relu2": lambda y: F.relu(y) ** 2,
                "gelu_tanh": lambda y: F.gelu(y, approximate="tanh")}
        inner = acts[ff["activation"]](up)
    else:
        raise ValueError(f"unknown feed_forward type {ff['type']!r}")
    return linear(inner, tensors, f"{at}.down_proj")


@torch.no_grad()
def forward(config: Json, tensors: Weights, ids: list[int] | Tensor,
            dtype: torch.dtype = torch.float32) -> Tensor:
    """Logits [T, vocab] of one sequence of token ids [T], computed in `dtype`."""
    config = read_config(config)
    tensors = {name: t.to(dtype) for name, t in tensors.items()}
    ids = torch.as_tensor(ids, dtype=torch.long)
    h = tensors["model.embeddings.weight"][ids] * config["embedding_multiplier"]
    for n, layer in enumerate(config["layers"]):
        at = f"model.layers.{n}"
        x = block_norm(h, tensors, f"{at}.mixer_norm", config)
        h = h + config["residual_multiplier"] * mix(x, n, config, tensors)
        ff = layer_feed_forward(layer, config)
        if ff is not None:
            x = block_norm(h, tensors, f"{at}.mlp_norm", config)
            h = h + config["residual_multiplier"] * feed_forward(x, n, ff, tensors)
    head = "model.embeddings.weight" if config["tie_word_embeddings"] else "lm_head.weight"
    x = block_norm(h, tensors, "model.norm", config)
    return (x @ tensors[head].T) * config["logits_multiplier"]


def greedy(config: Json, tensors: Weights, ids: list[int], count: int) -> list[int]:
    """The `count` tokens that follow `ids` when the likeliest is taken each time."""
    out: list[int] = []
    for _ in range(count):
        out.append(int(forward(config, tensors, list(ids) + out)[-1].argmax()))
    return out


# ---------------------------------------------------------------------------------------------------
# Expected outputs.


def expected_outputs(config: Json, tensors: Weights, prompts: list[list[int]],
                     greedy_count: int) -> Weights:
    """`prompt_<i>`, `logits_<i>` and `greedy_<i>` for `weir check`."""
    out: Weights = {}
    for i, prompt in enumerate(prompts):
        out[f"prompt_{i}"] = torch.tensor(prompt, dtype=torch.int64)
        out[f"logits_{i}"] = forward(config, tensors, prompt).contiguous()
        if greedy_count > 0:
            tokens = greedy(config, tensors, prompt, greedy_count)
            out[f"greedy_{i}"] = torch.tensor(tokens, dtype=torch.int64)
    return out


def random_prompts(vocab: int, lengths: list[int], seed: int) -> list[list[int]]:
    rng = torch.Generator().manual_seed(seed)
    return [torch.randint(vocab, (n,), generator=rng).tolist() for n in lengths]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("--random", type=Path, metavar="CONFIG",
                        help="write a random checkpoint of this config.json into MODEL_DIR first")
    parser.add_argument("--dtype", default="float32", choices=["float32", "float16", "bfloat16"],
                        help="of the random checkpoint (default float32)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and prompts (default 0)")
    parser.add_argument("--lengths", default="1,5,61,200",
                        help="lengths of random prompts (default 1,5,61,200)")
    parser.add_argument("--prompt", action="append", metavar="IDS",
                        help="a prompt as comma-separated ids, instead of random ones; repeatable")
    parser.add_argument("--greedy", type=int, default=8, help="tokens to continue (default 8)")
    parser.add_argument("--out", type=Path, help="default MODEL_DIR/expected.safetensors")
    args = parser.parse_args()
    if args.random is not None:
        config = json.loads(args.random.read_text())
        tensors = random_checkpoint(config, args.seed, getattr(torch, args.dtype))
        save_checkpoint(args.model_dir, config, tensors)
    config, tensors = load_checkpoint(args.model_dir)
    if args.prompt:
        prompts = [[int(i) for i in text.split(",")] for text in args.prompt]
    else:
        lengths = [int(n) for n in args.lengths.split(",")]
        prompts = random_prompts(config["vocab_size"], lengths, args.seed + 1)
    out = args.out or args.model_dir / "expected.safetensors"
    save_file(expected_outputs(config, tensors, prompts, args.greedy), out)
    print(f"{out}: {len(prompts)} prompts of {', '.join(str(len(p)) for p in prompts)} tokens")


if __name__ == "__main__":
    main()
