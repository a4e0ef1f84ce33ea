"""Goldens of the `hybrid` format: every mixer, every joining, every norm and feed-forward.

The reference is tools/hybrid_reference.py, computed in float64.
"""

import functools

import torch

import hybrid_format
import hybrid_reference
from goldens import common, half, plain

SOURCE = "tools/hybrid_reference.py, float64, CPU"


def layer(kind: str, feed_forward="default", **params) -> dict:
    out = {"type": kind, "params": params}
    if feed_forward != "default":
        out["feed_forward"] = feed_forward
    return out


def mixer(kind: str, **params) -> dict:
    return {"type": kind, "params": params}


def parallel(*mixers, **more) -> dict:
    return {"type": "parallel", "mixers": list(mixers), **more}


def routed(*mixers, **more) -> dict:
    return {"type": "routed", "mixers": list(mixers), **more}


def model(layers: list, hidden=36, vocab=109, inner=44, **given) -> dict:
    config = {
        "model_type": "hybrid", "vocab_size": vocab, "hidden_size": hidden, "layers": layers,
        "feed_forward": {"type": "swiglu", "intermediate_size": inner}, "norm": "rms_norm",
        "norm_eps": 1e-6, "tie_word_embeddings": False, "max_position_embeddings": 4096,
        "bos_token_id": 1, "eos_token_id": 2, "dtype": "float32",
    }
    config.update(given)
    return config


def build(config: dict, dtype: torch.dtype, seed: int):
    shapes = hybrid_format.tensor_shapes(hybrid_format.read_config(config))
    zero = config["norm"] == "rms_norm_zero_centered"
    draw = half.initializer(dtype, len(config["layers"]), config["tie_word_embeddings"])
    return config, {n: draw(n, s, seed, zero_centered_norms=zero).to(dtype)
                    for n, s in shapes.items()}


def reference(dtype: torch.dtype, config: dict, tensors: common.Tensors):
    return lambda ids: hybrid_reference.forward(config, tensors, ids, dtype)


def golden(name: str, covers: str, config: dict, dtype=torch.float32, **given) -> common.Golden:
    return common.Golden(
        name="hybrid_" + name, family="hybrid", covers=covers,
        build=functools.partial(build, config, dtype), second=plain.hybrid, source=SOURCE,
        reference=functools.partial(reference, torch.float64),
        single=functools.partial(reference, torch.float32), **given)


LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}


def goldens() -> list[common.Golden]:
    mlp = lambda act, inner=40, **more: {"type": "mlp", "intermediate_size": inner,
                                         "activation": act, **more}
    return [
        golden("gla", "gla: GQA 6/2 with conv and its bias; clamp_min, normalizer 8, rank 5; no "
               "output gate, K 7 != V 11, own norm_eps",
               model([layer("gla", num_heads=6, num_kv_heads=2, use_short_conv=True, conv_bias=True,
                            conv_size=3),
                      layer("gla", num_heads=3, gate_low_rank_dim=5, gate_logit_normalizer=8,
                            clamp_min=-0.2),
                      layer("gla", num_heads=3, head_k_dim=7, head_v_dim=11, use_output_gate=False,
                            norm_eps=1e-3)])),
        golden("simple_gla", "simple_gla: defaults; GQA 4/2 without conv, clamp_min; conv with "
               "bias, no gate; multipliers on embedding, residual and logits",
               model([layer("simple_gla"),
                      layer("simple_gla", num_kv_heads=2, use_short_conv=False, clamp_min=-0.1,
                            head_k_dim=10, head_v_dim=6),
                      layer("simple_gla", num_heads=3, conv_bias=True, conv_size=2,
                            use_output_gate=False, gate_logit_normalizer=4)],
                     embedding_multiplier=2.5, residual_multiplier=0.6, logits_multiplier=0.35)),
        golden("retnet", "retnet: defaults; 5 heads, theta 500, conv; GQA 6/3, no gate, expand_v 1",
               model([layer("retnet", num_heads=2, expand_v=1.5),
                      layer("retnet", num_heads=5, head_k_dim=6, head_v_dim=9, rope_theta=500.0,
                            use_short_conv=True),
                      layer("retnet", num_heads=6, num_kv_heads=3, expand_v=1.0,
                            use_output_gate=False)])),
        golden("linear_attn", "linear_attn: identity; relu with norm_q and norm_k; elu with "
               "norm_feature_map, GQA 4/2; elementwise_product; geglu",
               model([layer("linear_attn", num_heads=3),
                      layer("linear_attn", feature_map="relu", norm_q=True, norm_k=True,
                            expand_k=1.0, expand_v=0.5),
                      layer("linear_attn", feature_map="elu", norm_feature_map=True,
                            num_kv_heads=2, head_k_dim=7),
                      layer("linear_attn", feature_map="elementwise_product", num_heads=6,
                            num_kv_heads=3, head_k_dim=10, head_v_dim=5)],
                     feed_forward={"type": "geglu", "intermediate_size": 36})),
        golden("delta_net", "delta_net: defaults; gate, no conv, neg eigval; elu with sum, no "
               "beta; relu without conv; identity with conv bias",
               model([layer("delta_net", num_heads=3),
                      layer("delta_net", use_gate=True, use_short_conv=False,
                            allow_neg_eigval=True, head_k_dim=10, head_v_dim=6),
                      layer("delta_net", qk_activation="elu", qk_norm="sum", use_beta=False,
                            head_k_dim=5),
                      layer("delta_net", qk_activation="relu", use_short_conv=False,
                            head_k_dim=12, head_v_dim=5),
                      layer("delta_net", qk_activation="identity", conv_size=3, conv_bias=True)],
                     inner=28)),
        golden("gated_deltanet", "gated_deltanet: HV = 3 H with V 14 != K 7; no conv, no gate, neg "
               "eigval; HV = 2 H, conv of 3 with bias, neg eigval",
               model([layer("gated_deltanet", num_heads=2, num_v_heads=6, head_dim=7, expand_v=2.0),
                      layer("gated_deltanet", use_short_conv=False, use_gate=False,
                            allow_neg_eigval=True),
                      layer("gated_deltanet", num_heads=2, num_v_heads=4, head_dim=12,
                            expand_v=0.5, conv_size=3, conv_bias=True, allow_neg_eigval=True)])),
        golden("kda", "kda: defaults; lower_bound -3, HV = 2 H, V 14 != K 7; no conv, neg eigval, "
               "lower_bound -5; tied head",
               model([layer("kda", num_heads=3, head_dim=12),
                      layer("kda", num_heads=2, num_v_heads=4, head_dim=7, expand_v=2.0,
                            lower_bound=-3.0),
                      layer("kda", num_heads=1, num_v_heads=3, head_dim=16, expand_v=0.5,
                            use_short_conv=False, allow_neg_eigval=True, lower_bound=-5.0)],
                     tie_word_embeddings=True)),
        golden("mamba2", "mamba2: defaults but N 20; 3 groups of 6 heads, norm_before_gate, "
               "biases, no conv bias, time_step_limit; no rms_norm, lower limit only; no "
               "feed-forward",
               model([layer("mamba2", num_heads=4, state_size=20),
                      layer("mamba2", num_heads=6, n_groups=3, state_size=7, head_dim=10,
                            norm_before_gate=True, use_bias=True, use_conv_bias=False,
                            time_step_limit=[0.05, 0.5]),
                      layer("mamba2", num_heads=6, n_groups=2, state_size=12, expand=1,
                            rms_norm=False, conv_size=3, time_step_limit=[0.1, None]),
                      layer("mamba2", num_heads=3, n_groups=3, state_size=9, head_dim=11,
                            norm_eps=1e-3)],
                     feed_forward=None)),
        golden("attn", "attn: GQA 6/2 with half of head_dim rotated; llama3 scaling, qk_norm; "
               "linear scaling, qkv_bias, output_gate; no RoPE, scale; zero-centred norms",
               model([layer("attn", num_heads=6, num_kv_heads=2, head_dim=12,
                            partial_rotary_factor=0.5),
                      layer("attn", num_heads=3, num_kv_heads=1, head_dim=10, rope_scaling=LLAMA3,
                            qk_norm=True, norm_eps=1e-4),
                      layer("attn", num_heads=2, head_dim=18, rope_theta=500000.0, qkv_bias=True,
                            output_gate=True, rope_scaling={"rope_type": "linear", "factor": 3.0}),
                      layer("attn", num_heads=4, num_kv_heads=2, rope_theta=None, scale=0.2)],
                     inner=32, norm="rms_norm_zero_centered")),
        golden("local_attn", "local_attn: windows of 16, 61, 7 and 1; GQA, qk_norm, biases, output "
               "gate; layer_norm",
               model([layer("local_attn", window=16, num_heads=3, rope_theta=None),
                      layer("local_attn", window=61, num_heads=4, num_kv_heads=2, qk_norm=True,
                            head_dim=10, partial_rotary_factor=0.6),
                      layer("local_attn", window=7, num_heads=2, head_dim=14, qkv_bias=True,
                            output_gate=True, rope_theta=300.0),
                      layer("local_attn", window=1, num_heads=3, num_kv_heads=1, head_dim=8)],
                     inner=28, norm="layer_norm", norm_eps=1e-5),
               # Softmax over one entry is 1, whatever q and k.
               without_effect=("layers.3.mixer.q_proj", "layers.3.mixer.k_proj")),
        golden("short_conv", "short_conv: defaults; conv of 5 with bias; every plain feed-forward "
               "activation, biases; one layer without feed-forward; layer_norm",
               model([layer("short_conv", mlp("gelu")),
                      layer("short_conv", mlp("relu2", bias=True), conv_size=5, bias=True),
                      layer("short_conv", None, conv_size=2),
                      layer("attn", mlp("silu", 33), num_heads=3),
                      layer("short_conv", {"type": "geglu", "intermediate_size": 30, "bias": True}),
                      layer("short_conv", mlp("relu", 50)),
                      layer("short_conv", {"type": "mlp", "intermediate_size": 37})],
                     hidden=30, norm="layer_norm",
                     feed_forward={"type": "swiglu", "intermediate_size": 31, "bias": True})),
        golden("parallel", "parallel: attn + mamba2; gla + gated_deltanet + short_conv; "
               "local_attn + kda; own feed-forwards",
               model([parallel(mixer("attn", num_heads=3, num_kv_heads=1),
                               mixer("mamba2", num_heads=4, state_size=10, expand=1)),
                      parallel(mixer("gla", num_heads=2),
                               mixer("gated_deltanet", num_heads=2, num_v_heads=4, head_dim=8),
                               mixer("short_conv"), feed_forward=mlp("gelu_tanh")),
                      parallel(mixer("local_attn", window=12, num_heads=2),
                               mixer("kda", num_heads=2, head_dim=9), feed_forward=None)],
                     hidden=32, inner=36, norm="rms_norm_zero_centered")),
        golden("routed", "routed, top 1: attn, local_attn, gated_deltanet with conv, mamba2; then "
               "gla with conv, short_conv, retnet",
               model([routed(mixer("attn", num_heads=3, num_kv_heads=1),
                             mixer("local_attn", window=5, num_heads=2),
                             mixer("gated_deltanet", num_heads=2, num_v_heads=4, head_dim=7),
                             mixer("mamba2", num_heads=4, state_size=8, expand=1)),
                      routed(mixer("gla", num_heads=2, use_short_conv=True), mixer("short_conv"),
                             mixer("retnet", num_heads=2, expand_v=1.0), top_k=1)],
                     hidden=32)),
        golden("routed_top2", "routed, top 2: norm_topk_prob over kda, delta_net, local_attn, "
               "simple_gla; without over attn, linear_attn, mamba2; all mixers picked",
               model([routed(mixer("kda", num_heads=2, head_dim=8),
                             mixer("delta_net", num_heads=2, head_k_dim=6),
                             mixer("local_attn", window=9, num_heads=2, qk_norm=True),
                             mixer("simple_gla", num_heads=2, head_v_dim=6),
                             top_k=2, norm_topk_prob=True),
                      routed(mixer("attn", num_heads=2, rope_scaling=LLAMA3),
                             mixer("linear_attn", num_heads=2, feature_map="elu"),
                             mixer("mamba2", num_heads=3, head_dim=7, state_size=6), top_k=2),
                      routed(mixer("short_conv"), mixer("gla", num_heads=2), top_k=2,
                             norm_topk_prob=True, feed_forward=None)],
                     hidden=28, inner=36, norm="layer_norm")),
        golden("mixed_bf16", "bfloat16 weights: gla, gated_deltanet, mamba2, local_attn in plain "
               "layers and one parallel; tied; multipliers",
               model([layer("gla", num_heads=2),
                      layer("gated_deltanet", num_heads=2, num_v_heads=4, head_dim=12),
                      layer("mamba2", num_heads=4, state_size=12),
                      layer("local_attn", window=24, num_heads=4, num_kv_heads=2, head_dim=14),
                      parallel(mixer("kda", num_heads=2, head_dim=12),
                               mixer("attn", num_heads=3, head_dim=10))],
                     hidden=44, inner=60, vocab=173, tie_word_embeddings=True, dtype="bfloat16",
                     embedding_multiplier=1.5, logits_multiplier=0.5),
               dtype=torch.bfloat16, min_gap=0.04, max_bf16=half.MAX_BF16),
        golden("mixed_fp16",
               "float16 weights: delta_net, simple_gla, short_conv, linear_attn, attn",
               model([layer("delta_net", num_heads=2), layer("simple_gla", num_heads=2),
                      layer("short_conv"), layer("linear_attn", num_heads=2, feature_map="elu"),
                      layer("attn", num_heads=4, num_kv_heads=2, head_dim=12)],
                     hidden=40, inner=52, dtype="float16"),
               dtype=torch.float16, min_gap=0.01, max_bf16=half.MAX_BF16),
    ]
