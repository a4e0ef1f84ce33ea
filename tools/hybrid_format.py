"""The `hybrid` model format as data: configuration, tensor names and shapes, checkpoints.

What docs/hybrid-format.md says in words. tools/hybrid_reference.py holds the forward pass.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Json = dict[str, Any]
Weights = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]

# ---------------------------------------------------------------------------------------------------
# Configuration: every key with its default. None where the default depends on other keys.

MODEL_DEFAULTS: Json = {
    "model_type": "hybrid", "vocab_size": None, "hidden_size": None, "layers": None,
    "feed_forward": None, "norm": "rms_norm", "norm_eps": 1e-6, "tie_word_embeddings": False,
    "embedding_multiplier": 1.0, "residual_multiplier": 1.0, "logits_multiplier": 1.0,
    "max_position_embeddings": 32768, "bos_token_id": None, "eos_token_id": None,
    "torch_dtype": None, "dtype": None, "architectures": None, "transformers_version": None,
}
FEED_FORWARD_DEFAULTS: Json = {
    "type": None, "intermediate_size": None, "activation": "gelu_tanh", "bias": False,
}
GLA: Json = {
    "num_heads": 4, "num_kv_heads": None, "expand_k": 0.5, "expand_v": 1.0, "head_k_dim": None,
    "head_v_dim": None, "gate_low_rank_dim": 16, "gate_logit_normalizer": 16, "clamp_min": None,
    "use_output_gate": True, "use_short_conv": False, "conv_size": 4, "conv_bias": False,
    "norm_eps": None,
}
SIMPLE_GLA: Json = {k: v for k, v in GLA.items() if k != "gate_low_rank_dim"} | {
    "expand_k": 1.0, "use_short_conv": True,
}
GATE_KEYS = ("gate_low_rank_dim", "gate_logit_normalizer", "clamp_min")
RETNET: Json = {k: v for k, v in GLA.items() if k not in GATE_KEYS} | {
    "expand_k": 1.0, "expand_v": 2.0, "rope_theta": 10000.0,
}
LINEAR_ATTN: Json = {
    "num_heads": 4, "num_kv_heads": None, "expand_k": 1.0, "expand_v": 1.0, "head_k_dim": None,
    "head_v_dim": None, "feature_map": "identity", "norm_q": False, "norm_k": False,
    "norm_feature_map": False, "norm_eps": None,
}
DELTA_NET: Json = {
    "num_heads": 4, "expand_k": 1.0, "expand_v": 1.0, "head_k_dim": None, "head_v_dim": None,
    "use_beta": True, "use_gate": False, "use_short_conv": True, "conv_size": 4, "conv_bias": False,
    "allow_neg_eigval": False, "qk_norm": "l2", "qk_activation": "silu", "norm_eps": None,
}
GATED_DELTANET: Json = {
    "num_heads": 4, "num_v_heads": None, "head_dim": None, "expand_v": 1.0, "use_gate": True,
    "use_short_conv": True, "conv_size": 4, "conv_bias": False, "allow_neg_eigval": False,
    "norm_eps": None,
}
KDA: Json = {k: v for k, v in GATED_DELTANET.items() if k != "use_gate"} | {"lower_bound": None}
MAMBA2: Json = {
    "num_heads": 4, "expand": 2, "head_dim": None, "state_size": 64, "n_groups": 1, "conv_size": 4,
    "use_bias": False, "use_conv_bias": True, "rms_norm": True, "norm_before_gate": False,
    "time_step_limit": (0.0, None), "norm_eps": None,
}
ATTN: Json = {
    "num_heads": 4, "num_kv_heads": None, "head_dim": None, "rope_theta": 10000.0,
    "partial_rotary_factor": 1.0, "rope_scaling": None, "qk_norm": False, "qkv_bias": False,
    "output_gate": False, "scale": None, "norm_eps": None,
}
SHORT_CONV: Json = {"conv_size": 3, "bias": False}
MIXER_DEFAULTS: dict[str, Json] = {
    "gla": GLA, "simple_gla": SIMPLE_GLA, "retnet": RETNET, "linear_attn": LINEAR_ATTN,
    "delta_net": DELTA_NET, "gated_deltanet": GATED_DELTANET, "kda": KDA, "mamba2": MAMBA2,
    "attn": ATTN, "local_attn": ATTN | {"window": None}, "short_conv": SHORT_CONV,
}


def fill(given: Json, defaults: Json, where: str) -> Json:
    """`given` over `defaults`; a key that `defaults` lacks is refused by name."""
    unknown = sorted(set(given) - set(defaults))
    if unknown:
        raise ValueError(f"{where}: unknown key {', '.join(unknown)}")
    return defaults | given


def mixer_params(mixer: Json, config: Json, where: str) -> Json:
    """The parameters of one mixer with all defaults resolved to numbers."""
    kind = mixer["type"]
    if kind not in MIXER_DEFAULTS:
        raise ValueError(f"{where}: unknown mixer type {kind!r}")
    p = fill(mixer.get("params") or {}, MIXER_DEFAULTS[kind], f"{where} ({kind})")
    hidden = config["hidden_size"]
    if p.get("norm_eps") is None:
        p["norm_eps"] = config["norm_eps"]
    for key in ("num_kv_heads", "num_v_heads"):
        if key in p and p[key] is None:
            p[key] = p["num_heads"]
    for key, expand in (("head_k_dim", "expand_k"), ("head_v_dim", "expand_v")):
        if key in p and p[key] is None:
            p[key] = int(hidden * p[expand] / p["num_heads"])
    if "head_dim" in p and p["head_dim"] is None:
        p["head_dim"] = int(hidden * p.get("expand", 1) / p["num_heads"])
    if kind in ("gated_deltanet", "kda"):
        p["head_v_dim"] = int(p["head_dim"] * p["expand_v"])
    if kind == "local_attn" and not p["window"]:
        raise ValueError(f"{where}: local_attn needs a window")
    return p


def layer_mixers(layer: Json) -> list[Json]:
    """The mixers of one layer: one for a plain layer, several for parallel and routed."""
    return layer["mixers"] if layer["type"] in ("parallel", "routed") else [layer]


def layer_feed_forward(layer: Json, config: Json) -> Json | None:
    given = layer.get("feed_forward", config["feed_forward"])
    return None if given is None else fill(given, FEED_FORWARD_DEFAULTS, "feed_forward")


def read_config(given: Json) -> Json:
    """The whole configuration with its defaults, checked for unknown keys."""
    config = fill(given, MODEL_DEFAULTS, "config.json")
    for n, layer in enumerate(config["layers"]):
        allowed = {"type": None, "feed_forward": None}
        if layer["type"] == "routed":
            allowed |= {"mixers": None, "top_k": 1, "norm_topk_prob": False}
        elif layer["type"] == "parallel":
            allowed |= {"mixers": None}
        else:
            allowed |= {"params": None}
        fill(layer, allowed, f"layer {n}")
        for m, mixer in enumerate(layer_mixers(layer)):
            mixer_params(mixer, config, f"layer {n} mixer {m}")
    return config


# ---------------------------------------------------------------------------------------------------
# Tensors: names and shapes.


def gla_shapes(p: Json, hidden: int, kind: str) -> Shapes:
    heads, kv_heads = p["num_heads"], p["num_kv_heads"]
    key, value = p["head_k_dim"], p["head_v_dim"]
    shapes: Shapes = {
        "q_proj.weight": (heads * key, hidden), "k_proj.weight": (kv_heads * key, hidden),
        "v_proj.weight": (kv_heads * value, hidden), "o_proj.weight": (hidden, heads * value),
    }
    if kind == "gla":
        rank = p["gate_low_rank_dim"]
        shapes["gk_proj.0.weight"] = (rank, hidden)
        shapes["gk_proj.1.weight"] = (kv_heads * key, rank)
        shapes["gk_proj.1.bias"] = (kv_heads * key,)
    elif kind == "simple_gla":
        shapes["gk_proj.weight"] = (heads, hidden)
        shapes["gk_proj.bias"] = (heads,)
    if p["use_output_gate"]:
        shapes["g_proj.weight"] = (heads * value, hidden)
        shapes["g_norm_swish_gate.weight"] = (value,)
    else:
        shapes["g_norm.weight"] = (value,)
    widths = {"q": heads * key, "k": kv_heads * key, "v": kv_heads * value}
    return shapes | qkv_conv_shapes(p, widths)


def qkv_conv_shapes(p: Json, widths: dict[str, int]) -> Shapes:
    shapes: Shapes = {}
    for name, width in widths.items() if p["use_short_conv"] else ():
        shapes[f"{name}_conv1d.weight"] = (width, 1, p["conv_size"])
        if p["conv_bias"]:
            shapes[f"{name}_conv1d.bias"] = (width,)
    return shapes


def linear_attn_shapes(p: Json, hidden: int, kind: str) -> Shapes:
    heads, kv_heads = p["num_heads"], p["num_kv_heads"]
    key, value = p["head_k_dim"], p["head_v_dim"]
    shapes: Shapes = {
        "q_proj.weight": (heads * key, hidden), "k_proj.weight": (kv_heads * key, hidden),
        "v_proj.weight": (kv_heads * value, hidden), "norm.weight": (value,),
        "o_proj.weight": (hidden, heads * value),
    }
    if p["feature_map"] == "elementwise_product":
        for side in ("q", "k"):
            for layer in (1, 2):
                shapes[f"feature_map_{side}.layer{layer}.weight"] = (key, key)
    return shapes


def delta_net_shapes(p: Json, hidden: int, kind: str) -> Shapes:
    heads, key, value = p["num_heads"], p["head_k_dim"], p["head_v_dim"]
    shapes: Shapes = {
        "q_proj.weight": (heads * key, hidden), "k_proj.weight": (heads * key, hidden),
        "v_proj.weight": (heads * value, hidden), "o_norm.weight": (value,),
        "o_proj.weight": (hidden, heads * value),
    }
    if p["use_beta"]:
        shapes["b_proj.weight"] = (heads, hidden)
    if p["use_gate"]:
        shapes["g_proj.weight"] = (heads * value, hidden)
    return shapes | qkv_conv_shapes(p, {"q": heads * key, "k": heads * key, "v": heads * value})


def gated_deltanet_shapes(p: Json, hidden: int, kind: str) -> Shapes:
    heads, v_heads, key, value = p["num_heads"], p["num_v_heads"], p["head_dim"], p["head_v_dim"]
    shapes: Shapes = {
        "q_proj.weight": (heads * key, hidden), "k_proj.weight": (heads * key, hidden),
        "v_proj.weight": (v_heads * value, hidden), "b_proj.weight": (v_heads, hidden),
        "A_log": (v_heads,), "o_norm.weight": (value,), "o_proj.weight": (hidden, v_heads * value),
    }
    if kind == "kda":
        shapes["f_proj.0.weight"] = (value, hidden)
        shapes["f_proj.1.weight"] = (v_heads * key, value)
        shapes["dt_bias"] = (v_heads * key,)
        shapes["g_proj.0.weight"] = (value, hidden)
        shapes["g_proj.1.weight"] = (v_heads * value, value)
        shapes["g_proj.1.bias"] = (v_heads * value,)
    else:
        shapes["a_proj.weight"] = (v_heads, hidden)
        shapes["dt_bias"] = (v_heads,)
        if p["use_gate"]:
            shapes["g_proj.weight"] = (v_heads * value, hidden)
    return shapes | qkv_conv_shapes(p, {"q": heads * key, "k": heads * key, "v": v_heads * value})


def mamba2_shapes(p: Json, hidden: int, kind: str) -> Shapes:
    heads = p["num_heads"]
    inner, groups_state = heads * p["head_dim"], p["n_groups"] * p["state_size"]
    conv, projected = inner + 2 * groups_state, 2 * inner + 2 * groups_state + heads
    shapes: Shapes = {
        "in_proj.weight": (projected, hidden), "conv1d.weight": (conv, 1, p["conv_size"]),
        "dt_bias": (heads,), "A_log": (heads,), "D": (heads,), "out_proj.weight": (hidden, inner),
    }
    if p["use_conv_bias"]:
        shapes["conv1d.bias"] = (conv,)
    if p["rms_norm"]:
        shapes["norm.weight"] = (inner,)
    if p["use_bias"]:
        shapes |= {"in_proj.bias": (projected,), "out_proj.bias": (hidden,)}
    return shapes


def attn_shapes(p: Json, hidden: int, kind: str) -> Shapes:
    width, kv_width = p["num_heads"] * p["head_dim"], p["num_kv_heads"] * p["head_dim"]
    shapes: Shapes = {
        "q_proj.weight": (width, hidden), "k_proj.weight": (kv_width, hidden),
        "v_proj.weight": (kv_width, hidden), "o_proj.weight": (hidden, width),
    }
    if p["qkv_bias"]:
        shapes |= {"q_proj.bias": (width,), "k_proj.bias": (kv_width,), "v_proj.bias": (kv_width,)}
    if p["qk_norm"]:
        shapes |= {"q_norm.weight": (p["head_dim"],), "k_norm.weight": (p["head_dim"],)}
    if p["output_gate"]:
        shapes["g_proj.weight"] = (width, hidden)
    return shapes


def short_conv_shapes(p: Json, hidden: int, kind: str) -> Shapes:
    shapes: Shapes = {
        "in_proj.weight": (3 * hidden, hidden), "conv.weight": (hidden, 1, p["conv_size"]),
        "out_proj.weight": (hidden, hidden),
    }
    if p["bias"]:
        shapes |= {"in_proj.bias": (3 * hidden,), "conv.bias": (hidden,), "out_proj.bias": (hidden,)}
    return shapes


def norm_shapes(name: str, config: Json) -> Shapes:
    shapes: Shapes = {f"{name}.weight": (config["hidden_size"],)}
    if config["norm"] == "layer_norm":
        shapes[f"{name}.bias"] = (config["hidden_size"],)
    return shapes


def feed_forward_shapes(name: str, ff: Json, hidden: int) -> Shapes:
    inner = ff["intermediate_size"]
    shapes: Shapes = {f"{name}.up_proj.weight": (inner, hidden),
                      f"{name}.down_proj.weight": (hidden, inner)}
    if ff["type"] in ("swiglu", "geglu"):
        shapes[f"{name}.gate_proj.weight"] = (inner, hidden)
    if ff["bias"]:
        shapes |= {k.replace(".weight", ".bias"): v[:1] for k, v in shapes.items()}
    return shapes


SHAPES: dict[str, Callable[[Json, int, str], Shapes]] = {
    "gla": gla_shapes, "simple_gla": gla_shapes, "retnet": gla_shapes,
    "linear_attn": linear_attn_shapes, "delta_net": delta_net_shapes,
    "gated_deltanet": gated_deltanet_shapes, "kda": gated_deltanet_shapes, "mamba2": mamba2_shapes,
    "attn": attn_shapes, "local_attn": attn_shapes, "short_conv": short_conv_shapes,
}


def mixer_prefix(n: int, m: int, layer: Json) -> str:
    plain = layer["type"] not in ("parallel", "routed")
    return f"model.layers.{n}.mixer." if plain else f"model.layers.{n}.mixers.{m}."


def tensor_shapes(config: Json) -> Shapes:
    """Name and shape of every tensor of a checkpoint with this (complete) configuration."""
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    shapes: Shapes = {"model.embeddings.weight": (vocab, hidden)} | norm_shapes("model.norm", config)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab, hidden)
    for n, layer in enumerate(config["layers"]):
        at = f"model.layers.{n}"
        shapes |= norm_shapes(f"{at}.mixer_norm", config)
        if layer["type"] == "routed":
            shapes[f"{at}.router.weight"] = (len(layer["mixers"]), hidden)
        for m, mixer in enumerate(layer_mixers(layer)):
            p = mixer_params(mixer, config, f"layer {n} mixer {m}")
            for name, shape in SHAPES[mixer["type"]](p, hidden, mixer["type"]).items():
                shapes[mixer_prefix(n, m, layer) + name] = shape
        ff = layer_feed_forward(layer, config)
        if ff is not None:
            shapes |= norm_shapes(f"{at}.mlp_norm", config)
            shapes |= feed_forward_shapes(f"{at}.mlp", ff, hidden)
    return shapes


# ---------------------------------------------------------------------------------------------------
# Checkpoints and expected outputs.


def random_tensor(name: str, shape: tuple[int, ...], config: Json, rng: torch.Generator) -> Tensor:
    """A parameter of plausible size, none at a value that would hide a mistake (0 or 1)."""
    noise = torch.randn(shape, generator=rng)
    uniform = torch.rand(shape, generator=rng)
    last = name.rsplit(".", 2)[-2:]
    if last[-1] == "A_log":
        return (1 + 7 * uniform).log()
    if last[-1] == "dt_bias":  # softplus of it lies between 0.01 and 1
        step = torch.exp(math.log(0.01) * uniform)
        return step + torch.log(-torch.expm1(-step))
    if last[-1] == "D":
        return 1 + 0.3 * noise
    if last[-1] == "bias":
        return 0.2 * noise
    if "norm" in last[0]:
        centre = 0.0
        block = last[0] in ("mixer_norm", "mlp_norm") or name == "model.norm.weight"
        if not (block and config["norm"] == "rms_norm_zero_centered"):
            centre = 1.0
        return centre + 0.2 * noise
    if last[0] == "g_norm_swish_gate":
        return 1 + 0.2 * noise
    if last[0] == "embeddings":
        return 0.5 * noise
    if last[0] == "router":
        return noise * 2 * shape[-1] ** -0.5
    return noise * shape[-1] ** -0.5


def random_checkpoint(config: Json, seed: int, dtype: torch.dtype = torch.float32) -> Weights:
    """Every tensor of the configuration, all drawn at random from `seed`."""
    config = read_config(config)
    rng = torch.Generator().manual_seed(seed)
    return {name: random_tensor(name, shape, config, rng).to(dtype).contiguous()
            for name, shape in sorted(tensor_shapes(config).items())}


def load_checkpoint(folder: Path) -> tuple[Json, Weights]:
    """config.json and all safetensors of a folder; misfits are named together."""
    given = json.loads((folder / "config.json").read_text())
    config = read_config(given)
    index = folder / "model.safetensors.index.json"
    names = {"model.safetensors"}
    if index.exists():
        names = set(json.loads(index.read_text())["weight_map"].values())
    tensors: Weights = {}
    for name in sorted(names):
        tensors |= load_file(folder / name)
    expected = tensor_shapes(config)
    wrong = [f"missing {n}" for n in expected if n not in tensors]
    wrong += [f"extra {n}" for n in tensors if n not in expected]
    wrong += [f"{n} is {list(tensors[n].shape)}, expected {list(s)}" for n, s in expected.items()
              if n in tensors and tuple(tensors[n].shape) != s]
    if wrong:
        raise ValueError("; ".join(wrong))
    return given, tensors


def save_checkpoint(folder: Path, config: Json, tensors: Weights) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
