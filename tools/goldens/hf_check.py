"""Compares mixers of the `hybrid` goldens with transformers' layers.

mamba2 with FalconH1Mixer, short_conv with Lfm2ShortConv, attn and local_attn with the attention of
Llama or Qwen3 (the rotary tables too), on a CPU in float32.
"""

import json
import math
import os

import torch
import transformers
from safetensors.torch import load_file

import hybrid_format
from goldens import plain


def mamba2(p: dict, d: int, x):
    from transformers import FalconH1Config
    from transformers.models.falcon_h1.modeling_falcon_h1 import FalconH1Mixer

    low, high = p["time_step_limit"]
    config = FalconH1Config(
        hidden_size=d, num_hidden_layers=1, mamba_n_heads=p["num_heads"],
        mamba_d_head=p["head_dim"], mamba_d_ssm=p["num_heads"] * p["head_dim"],
        mamba_d_state=p["state_size"],
        mamba_n_groups=p["n_groups"], mamba_d_conv=p["conv_size"], mamba_proj_bias=p["use_bias"],
        projectors_bias=p["use_bias"], mamba_conv_bias=p["use_conv_bias"], mamba_chunk_size=16,
        mamba_rms_norm=p["rms_norm"], mamba_norm_before_gate=p["norm_before_gate"],
        rms_norm_eps=p["norm_eps"], time_step_limit=(low, math.inf if high is None else high))
    module = FalconH1Mixer(config, 0)
    module.register_buffer("mup_vector", torch.ones(()), persistent=False)
    return module, lambda: module(x[None])[0]


def short_conv(p: dict, d: int, x):
    from transformers import Lfm2Config
    from transformers.models.lfm2.modeling_lfm2 import Lfm2ShortConv

    config = Lfm2Config(hidden_size=d, num_hidden_layers=1, layer_types=["conv"],
                        conv_L_cache=p["conv_size"], conv_bias=p["bias"])
    module = Lfm2ShortConv(config, 0)
    return module, lambda: module(x[None])[0]


def attn(p: dict, d: int, x):
    """None where Llama and Qwen3 (for qk_norm) have no such option."""
    from transformers import LlamaConfig, Qwen3Config
    from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding
    from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention

    special = p["partial_rotary_factor"] != 1 or p["output_gate"] or p["qkv_bias"]
    if special or p["rope_theta"] is None:
        return None
    scaling = p["rope_scaling"] or {"rope_type": "default"}
    kind = Qwen3Config if p["qk_norm"] else LlamaConfig
    config = kind(
        hidden_size=p["num_heads"] * p["head_dim"], num_attention_heads=p["num_heads"],
        num_key_value_heads=p["num_kv_heads"], head_dim=p["head_dim"],
        num_hidden_layers=1, max_position_embeddings=4096,
        rope_parameters=scaling | {"rope_theta": p["rope_theta"]})
    config.hidden_size, config.rms_norm_eps = d, p["norm_eps"]
    config._attn_implementation = "eager"
    module = (Qwen3Attention if p["qk_norm"] else LlamaAttention)(config, 0)
    if p["scale"] is not None:
        module.scaling = p["scale"]
    index = torch.arange(x.shape[0])
    seen = index[None] <= index[:, None]
    if p.get("window"):
        seen &= index[None] > index[:, None] - p["window"]
    mask = torch.zeros(x.shape[0], x.shape[0]).masked_fill(~seen, float("-inf"))[None, None]
    return module, lambda: module(
        x[None], LlamaRotaryEmbedding(config)(x[None], index[None]), mask)[0][0]


LAYERS = {"mamba2": mamba2, "short_conv": short_conv, "attn": attn, "local_attn": attn}


def compare(root: str) -> tuple[str, dict, dict]:
    """Relative difference to plain.py for every layer that transformers has too."""
    report = {}
    for name in sorted(os.listdir(root)):
        folder = os.path.join(root, name)
        if not name.startswith("hybrid_") or not os.path.isdir(folder):
            continue
        with open(os.path.join(folder, "config.json")) as f:
            config = hybrid_format.read_config(json.load(f))
        d = config["hidden_size"]
        tensors = load_file(os.path.join(folder, "model.safetensors"))
        for n, layer in enumerate(config["layers"]):
            for m, mixer in enumerate(hybrid_format.layer_mixers(layer)):
                p = hybrid_format.mixer_params(mixer, config, "")
                x = torch.randn(150, d, generator=torch.Generator().manual_seed(n))
                made = LAYERS[mixer["type"]](p, d, x) if mixer["type"] in LAYERS else None
                if made is None:
                    continue
                module, run = made
                prefix = hybrid_format.mixer_prefix(n, m, layer)
                own = {k[len(prefix):]: t.float() for k, t in tensors.items()
                       if k.startswith(prefix)}
                module.eval().load_state_dict(own)
                want = plain.MIXERS[mixer["type"]](
                    plain.Weights(tensors, prefix), x.double(), mixer.get("params", {}), d,
                    config["norm_eps"], torch.arange(len(x)))
                with torch.no_grad():
                    difference = float((run().double() - want).norm() / want.norm())
                report[f"{name}/{n}.{m} {mixer['type']}"] = difference
                print(f"{name}/{n}.{m} {mixer['type']}: {difference:.1e}", flush=True)
    return f"transformers {transformers.__version__}", {}, report
