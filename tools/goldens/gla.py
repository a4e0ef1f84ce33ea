"""Goldens of FLA's `gla`.

The names and shapes are those of flash-linear-attention 0.5.2. The expected logits come from the
plain forward in plain.py, in float64; `make_goldens.py --fla` runs the same checkpoints through
FLA's own model and records the difference.
"""

import functools

from goldens import common, half, plain

SOURCE = ("tools/goldens/plain.py, float64, CPU, checked against flash-linear-attention 0.5.2 "
          "(its kernels in float32)")


def gla_config(**given) -> dict:
    config = {
        "architectures": ["GLAForCausalLM"], "model_type": "gla", "vocab_size": 113,
        "hidden_size": 42, "num_hidden_layers": 3, "num_heads": 3, "num_kv_heads": None,
        "expand_k": 0.5, "expand_v": 1.0, "hidden_ratio": 4, "intermediate_size": 68,
        "feature_map": None, "attn_mode": "fused_recurrent", "use_short_conv": False,
        "conv_size": 4, "use_output_gate": True, "clamp_min": None, "hidden_act": "swish",
        "max_position_embeddings": 2048, "elementwise_affine": True, "norm_eps": 1e-6,
        "use_gk": True, "use_gv": False, "attn": None, "use_cache": True, "bos_token_id": 1,
        "eos_token_id": 2, "tie_word_embeddings": False, "initializer_range": 0.02,
        "fuse_norm": True, "fuse_swiglu": True, "fuse_cross_entropy": True, "dtype": "float32",
    }
    config.update(given)
    return config


def intermediate_size(c: dict) -> int:
    """FLA's rule where the config has null: two thirds of the ratio, up to a multiple of 256."""
    if c["intermediate_size"]:
        return c["intermediate_size"]
    return 256 * -(-int(c["hidden_size"] * c["hidden_ratio"] * 2 / 3) // 256)


def mixer_shapes(c: dict) -> dict[str, tuple]:
    d, heads = c["hidden_size"], c["num_heads"]
    kv_heads = c["num_kv_heads"] or heads
    key, value = int(d * c["expand_k"]), int(d * c["expand_v"])
    kv_key, kv_value = key * kv_heads // heads, value * kv_heads // heads
    shapes = {
        "q_proj.weight": (key, d), "k_proj.weight": (kv_key, d), "v_proj.weight": (kv_value, d),
        "gk_proj.0.weight": (16, d), "gk_proj.1.weight": (kv_key, 16), "gk_proj.1.bias": (kv_key,),
        "o_proj.weight": (d, value),
    }
    if c["use_output_gate"]:
        shapes["g_proj.weight"] = (value, d)
    if c["use_short_conv"]:
        for name, width in (("q", key), ("k", kv_key), ("v", kv_value)):
            shapes[f"{name}_conv1d.weight"] = (width, 1, c["conv_size"])
    if c["elementwise_affine"]:
        fused = c["fuse_norm"] and c["use_output_gate"]
        shapes["g_norm_swish_gate.weight" if fused else "g_norm.weight"] = (value // heads,)
    return shapes


def attention_shapes(c: dict, option: dict) -> dict[str, tuple]:
    d = c["hidden_size"]
    kv = d // option["num_heads"] * (option.get("num_kv_heads") or option["num_heads"])
    shapes = {"q_proj.weight": (d, d), "k_proj.weight": (kv, d), "v_proj.weight": (kv, d),
              "o_proj.weight": (d, d)}
    if option.get("qkv_bias"):
        shapes |= {"q_proj.bias": (d,), "k_proj.bias": (kv,), "v_proj.bias": (kv,)}
    return shapes


def shapes(c: dict) -> dict[str, tuple]:
    d, inner = c["hidden_size"], intermediate_size(c)
    out = {"model.embeddings.weight": (c["vocab_size"], d), "model.norm.weight": (d,)}
    if not c["tie_word_embeddings"]:
        out["lm_head.weight"] = (c["vocab_size"], d)
    options = c["attn"] or []
    options = [options] if isinstance(options, dict) else options
    for n in range(c["num_hidden_layers"]):
        at = f"model.layers.{n}."
        option = next((o for o in options if n in o["layers"]), None)
        mixer = attention_shapes(c, option) if option else mixer_shapes(c)
        out |= {at + "attn." + name: shape for name, shape in mixer.items()}
        out |= {at + "attn_norm.weight": (d,), at + "mlp_norm.weight": (d,),
                at + "mlp.gate_proj.weight": (inner, d), at + "mlp.up_proj.weight": (inner, d),
                at + "mlp.down_proj.weight": (d, inner)}
    return out


def build(config: dict, packed_mlp: bool, dtype, seed: int):
    draw = half.initializer(dtype, config["num_hidden_layers"], config["tie_word_embeddings"])
    tensors = {n: draw(n, s, seed).to(dtype) for n, s in shapes(config).items()}
    if packed_mlp:  # as checkpoints before February 2025 hold it: gate rows, then up rows
        for name in [n for n in tensors if n.endswith("mlp.up_proj.weight")]:
            gate = name.replace("up_proj", "gate_proj")
            tensors[gate] = common.torch.cat([tensors[gate], tensors.pop(name)])
    return config, tensors


def golden(name: str, covers: str, config: dict, packed_mlp=False, dtype=common.torch.float32,
           **given) -> common.Golden:
    return common.Golden(
        name=name, family="gla", covers=covers,
        build=functools.partial(build, config, packed_mlp, dtype), reference=plain.fla_gla,
        second=plain.fla_gla, source=SOURCE, **given)


def goldens() -> list[common.Golden]:
    torch = common.torch
    return [
        golden("gla_plain", "no conv, K 7, V 14, three heads", gla_config()),
        golden("gla_conv_gqa", "short conv of 4, 6 heads on 2 key/value heads, K 5, V 10",
               gla_config(hidden_size=60, vocab_size=101, num_heads=6, num_kv_heads=2,
                          use_short_conv=True, num_hidden_layers=2)),
        golden("gla_conv", "short conv of 3, clamp_min -0.1, tied head, eps 1e-5",
               gla_config(use_short_conv=True, conv_size=3, clamp_min=-0.1, norm_eps=1e-5,
                          tie_word_embeddings=True)),
        golden("gla_gqa", "4 heads on one key/value head, expand_k 0.7, expand_v 1.5 (K 7, V 15)",
               gla_config(hidden_size=40, num_heads=4, num_kv_heads=1, expand_k=0.7, expand_v=1.5)),
        golden("gla_no_gate", "use_output_gate false (g_norm), clamp_min -0.15",
               gla_config(use_output_gate=False, clamp_min=-0.15)),
        golden("gla_no_affine", "elementwise_affine false: no norm weight in the mixer",
               gla_config(elementwise_affine=False, expand_k=1.0, num_hidden_layers=2)),
        golden("gla_unfused", "fuse_norm false: the gated norm is named g_norm",
               gla_config(fuse_norm=False, expand_v=0.5, num_hidden_layers=2)),
        golden("gla_packed_mlp", "packed gate_proj [2I, D] of old checkpoints, no up_proj",
               gla_config(num_hidden_layers=2, intermediate_size=58), packed_mlp=True),
        golden("gla_null_intermediate",
               "intermediate_size null (256 by FLA's rule), float16 weights",
               gla_config(hidden_size=36, intermediate_size=None, num_hidden_layers=2,
                          dtype="float16"), dtype=torch.float16, min_gap=0.01,
               max_bf16=half.MAX_BF16),
        golden("gla_bf16", "bfloat16 weights, short conv, GQA 4/2, tied",
               gla_config(hidden_size=56, vocab_size=211, num_heads=4, num_kv_heads=2,
                          use_short_conv=True, dtype="bfloat16", tie_word_embeddings=True),
               dtype=torch.bfloat16, min_gap=0.04, max_bf16=half.MAX_BF16),
        golden("gla_attn", "attention in layer 1: GQA 3/1, head_dim 14, no window, qkv_bias",
               gla_config(attn={"layers": [1], "num_heads": 3, "num_kv_heads": 1, "qkv_bias": True,
                                "window_size": None, "rope_theta": 10000.0})),
        golden("gla_attn_window",
               "a list of attn options: windows of 17 and 50, theta 500, with conv",
               gla_config(hidden_size=40, num_heads=2, use_short_conv=True, num_hidden_layers=4,
                          intermediate_size=44, vocab_size=103,
                          attn=[{"layers": [1], "num_heads": 4, "num_kv_heads": 2,
                                 "window_size": 17, "rope_theta": 500.0, "qkv_bias": False},
                                {"layers": [3], "num_heads": 5, "num_kv_heads": 5,
                                 "window_size": 50, "rope_theta": 10000.0, "qkv_bias": True}])),
    ]
