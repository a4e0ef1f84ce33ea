"""Goldens of `qwen3_5_text` and `qwen3_5`: transformers on a CPU, float32, eager attention."""

import functools
import json
import os

import torch
import transformers
from transformers import (Qwen3_5Config, Qwen3_5ForCausalLM, Qwen3_5ForConditionalGeneration,
                          Qwen3_5TextConfig)

from goldens import common, half, plain

SOURCE = f"transformers {transformers.__version__}, float32, CPU, eager"

# Kept in float32 where a published checkpoint's other tensors are bfloat16.
FLOAT32_IN_BF16 = ("A_log", "linear_attn.norm.weight")

VISION = {"depth": 1, "hidden_size": 8, "intermediate_size": 12, "num_heads": 2, "in_channels": 3,
          "patch_size": 2, "spatial_merge_size": 2, "temporal_patch_size": 2,
          "num_position_embeddings": 4, "hidden_act": "gelu_pytorch_tanh"}


def text_config(**given) -> dict:
    """A config in the words of a published config.json."""
    config = {
        "architectures": ["Qwen3_5ForCausalLM"], "model_type": "qwen3_5_text", "vocab_size": 117,
        "hidden_size": 42, "intermediate_size": 68, "num_hidden_layers": 3, "hidden_act": "silu",
        "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 24,
        "linear_conv_kernel_dim": 4, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
        "linear_key_head_dim": 12, "linear_value_head_dim": 20, "attention_bias": False,
        "attn_output_gate": True, "max_position_embeddings": 4096, "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False, "full_attention_interval": 3, "mamba_ssm_dtype": "float32",
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000000.0,
                            "partial_rotary_factor": 0.25, "mrope_interleaved": True,
                            "mrope_section": [1, 1, 1]},
        "bos_token_id": 1, "eos_token_id": 2, "dtype": "float32",
    }
    config.update(given)
    if not config["full_attention_interval"]:
        del config["full_attention_interval"]
    return config


def multimodal_config(text: dict) -> dict:
    text = dict(text)
    del text["architectures"]
    return {
        "architectures": ["Qwen3_5ForConditionalGeneration"], "model_type": "qwen3_5",
        "image_token_id": text["vocab_size"] - 3, "video_token_id": text["vocab_size"] - 4,
        "vision_start_token_id": text["vocab_size"] - 5,
        "vision_end_token_id": text["vocab_size"] - 6,
        "tie_word_embeddings": text["tie_word_embeddings"], "text_config": text,
        "vision_config": dict(VISION, model_type="qwen3_5_vision",
                              out_hidden_size=text["hidden_size"]),
    }


def empty_model(config: dict):
    """The transformers model of a config, weights not yet set."""
    given = {k: v for k, v in config.items() if k not in ("architectures", "model_type")}
    if config["model_type"] == "qwen3_5":
        hf, kind = Qwen3_5Config(**given), Qwen3_5ForConditionalGeneration
    else:
        hf, kind = Qwen3_5TextConfig(**given), Qwen3_5ForCausalLM
    hf._attn_implementation = "eager"
    return kind(hf).to(torch.float32).eval()


def mtp_tensors(text: dict, seed: int) -> common.Tensors:
    """The multi-token prediction head of published checkpoints, which transformers ignores."""
    d, i = text["hidden_size"], text["intermediate_size"]
    h, k, hd = text["num_attention_heads"], text["num_key_value_heads"], text["head_dim"]
    layer = "mtp.layers.0."
    shapes = {
        "mtp.fc.weight": (d, 2 * d), "mtp.norm.weight": (d,),
        "mtp.pre_fc_norm_embedding.weight": (d,), "mtp.pre_fc_norm_hidden.weight": (d,),
        layer + "input_layernorm.weight": (d,), layer + "post_attention_layernorm.weight": (d,),
        layer + "self_attn.q_proj.weight": (2 * h * hd, d),
        layer + "self_attn.k_proj.weight": (k * hd, d),
        layer + "self_attn.v_proj.weight": (k * hd, d),
        layer + "self_attn.o_proj.weight": (d, h * hd), layer + "self_attn.q_norm.weight": (hd,),
        layer + "self_attn.k_norm.weight": (hd,), layer + "mlp.gate_proj.weight": (i, d),
        layer + "mlp.up_proj.weight": (i, d), layer + "mlp.down_proj.weight": (d, i),
    }
    return {n: common.random_tensor(n, s, seed) for n, s in shapes.items()}


def build(config: dict, dtype: torch.dtype, seed: int):
    """All parameters at random, under the names transformers gives them, rounded to dtype."""
    model = empty_model(config)
    names = {n: p.shape for n, p in model.named_parameters()}  # a tied head appears once
    text = config.get("text_config", config)
    draw = half.initializer(dtype, text["num_hidden_layers"], text["tie_word_embeddings"])
    tensors = {n: draw(n, s, seed, zero_centered_norms=True)
               for n, s in names.items()}
    if config["model_type"] == "qwen3_5":
        tensors.update(mtp_tensors(config["text_config"], seed))
    for name in tensors:
        keep = dtype == torch.bfloat16 and name.endswith(FLOAT32_IN_BF16)
        tensors[name] = tensors[name].to(torch.float32 if keep else dtype)
    return config, tensors


def reference(config: dict, tensors: common.Tensors):
    model = empty_model(config)
    own = {n: t.float() for n, t in tensors.items() if not n.startswith("mtp.")}
    missing, extra = model.load_state_dict(own, strict=False)
    missing = [n for n in missing if n != "lm_head.weight"]
    tied = config.get("text_config", config)["tie_word_embeddings"]
    if missing or extra or (tied == ("lm_head.weight" in own)):
        raise AssertionError(f"names differ from transformers': missing {missing}, extra {extra}")
    model.tie_weights()

    @torch.no_grad()
    def forward(ids):
        return model(input_ids=ids[None], use_cache=False).logits[0]

    return forward


def save_pretrained(folder: str, config: dict, tensors: common.Tensors, shards: int) -> None:
    """As transformers itself writes it: names, config keys and all."""
    model = empty_model(config)
    model.load_state_dict({n: t.float() for n, t in tensors.items()}, strict=False)
    model.tie_weights()
    model.save_pretrained(folder)
    extra = os.path.join(folder, "generation_config.json")
    if os.path.exists(extra):
        os.remove(extra)
    with open(os.path.join(folder, "config.json")) as f:
        written = json.load(f)
    if "layer_types" not in written:
        raise AssertionError("transformers did not write layer_types")


def golden(name: str, covers: str, config: dict, dtype=torch.float32, **given) -> common.Golden:
    if config["model_type"] == "qwen3_5":
        given.setdefault("skipped", ("visual.", "mtp."))
    return common.Golden(
        name=name, family=config["model_type"], covers=covers,
        build=functools.partial(build, config, dtype), reference=reference, single=reference,
        second=plain.qwen3_5, source=SOURCE, **given)


def goldens() -> list[common.Golden]:
    rope = lambda theta, factor: {"rope_type": "default", "rope_theta": theta,
                                  "partial_rotary_factor": factor}
    bf16 = dict(dtype=torch.bfloat16, min_gap=0.04, max_bf16=half.MAX_BF16)
    fp16 = dict(dtype=torch.float16, min_gap=0.01, max_bf16=half.MAX_BF16)
    return [
        golden("qwen3_5_text_tied",
               "tied head, HV = HK = 3, K 20 > V 12, interval 3, saved by save_pretrained",
               text_config(tie_word_embeddings=True, linear_num_key_heads=3,
                           linear_num_value_heads=3, linear_key_head_dim=20,
                           linear_value_head_dim=12),
               save=save_pretrained),
        golden("qwen3_5_text_bias",
               "HV = 2 HK, K 12 < V 20, attention_bias, rotary half of head_dim 20, conv of 3, "
               "interval 2, GQA 4/2, theta 1e4, eps 1e-5",
               text_config(attention_bias=True, num_attention_heads=4, num_key_value_heads=2,
                           head_dim=20, linear_conv_kernel_dim=3, full_attention_interval=2,
                           hidden_size=40, intermediate_size=52, vocab_size=127,
                           rms_norm_eps=1e-5, rope_parameters=rope(10000.0, 0.5))),
        golden("qwen3_5_text_sharded",
               "3 shards with an index, HV = 3 HK, layer_types full/linear/linear, no interval",
               text_config(linear_num_value_heads=6, linear_value_head_dim=12,
                           full_attention_interval=None,
                           layer_types=["full_attention", "linear_attention", "linear_attention"],
                           rope_parameters=rope(1000000.0, 0.25)),
               shards=3),
        golden("qwen3_5_multimodal",
               "text_config, model.language_model. prefix, visual and mtp tensors to skip, untied, "
               "one key head for 3 value heads",
               multimodal_config(text_config(linear_num_key_heads=1, linear_num_value_heads=3,
                                             linear_key_head_dim=28, vocab_size=131))),
        golden("qwen3_5_multimodal_tied_bf16",
               "as published: tied, bfloat16 with A_log and linear_attn.norm in float32, 2 shards",
               multimodal_config(text_config(
                   tie_word_embeddings=True, dtype="bfloat16", hidden_size=48, vocab_size=191,
                   num_attention_heads=4, num_key_value_heads=2, head_dim=24, num_hidden_layers=4,
                   full_attention_interval=4, linear_num_key_heads=2, linear_num_value_heads=2,
                   linear_key_head_dim=24, linear_value_head_dim=16, intermediate_size=76)),
               shards=2, **bf16),
        golden("qwen3_5_text_bf16", "bfloat16 weights, untied, HV = 2 HK",
               text_config(dtype="bfloat16", hidden_size=52, vocab_size=163), **bf16),
        golden("qwen3_5_text_fp16",
               "float16 weights, untied, HV = 3 HK, all of head_dim 12 rotated",
               text_config(dtype="float16", hidden_size=52, vocab_size=163, head_dim=12,
                           num_attention_heads=4, num_key_value_heads=4, linear_num_key_heads=2,
                           linear_num_value_heads=6, rope_parameters=rope(10000.0, 1.0)), **fp16),
    ]
