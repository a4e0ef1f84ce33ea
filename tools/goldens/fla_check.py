"""Runs goldens through FLA's own code and reports the differences.

The `gla` goldens go through FLA's model, single layers of the `hybrid` goldens through its layers.
On a GPU the kernels run compiled, without TF32; elsewhere Triton interprets them, which needs
numpy < 2.3. FLA's attention layer needs flash_attn; a plain causal softmax (with window) stands in.
"""

import json
import os
import time

import torch
from safetensors.torch import load_file


# FLA in float32 against float64: rounding alone stays below this.
TOLERANCE = 2e-5


def plain_attention(q, k, v, causal=True, window_size=(-1, -1)):
    """flash_attn_func's contract for [B, T, H, d], computed in float64."""
    assert causal
    times = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(times, 2).double(), v.repeat_interleave(times, 2).double()
    scores = torch.einsum("bthd,bshd->bhts", q.double(), k) * q.shape[-1] ** -0.5
    t, s = torch.arange(q.shape[1])[:, None], torch.arange(k.shape[1])[None]
    seen = s <= t
    if window_size[0] >= 0:
        seen &= s >= t - window_size[0]
    scores = scores.masked_fill(~seen.to(q.device), float("-inf"))
    return torch.einsum("bhts,bshd->bthd", scores.softmax(-1), v).to(q.dtype)


def load(folder: str):
    with open(os.path.join(folder, "config.json")) as f:
        config = json.load(f)
    tensors = load_file(os.path.join(folder, "model.safetensors"))
    tensors = {n: t.float() for n, t in tensors.items()}
    for name in [n for n in tensors if n.endswith("mlp.gate_proj.weight")]:
        up = name.replace("gate_proj", "up_proj")
        if up not in tensors:  # the packed form, which today's FLA no longer reads itself
            tensors[name], tensors[up] = (t.contiguous() for t in tensors[name].chunk(2))
    return config, tensors


def model_of(config: dict, tensors: dict, mode: str):
    import fla.layers.attn
    from fla.models.gla import GLAConfig, GLAForCausalLM

    fla.layers.attn.flash_attn_func = plain_attention
    # FLA writes a list; transformers 5 wants to know which tensor the head is tied to.
    GLAForCausalLM._tied_weights_keys = {"lm_head.weight": "model.embeddings.weight"}
    given = {k: v for k, v in config.items() if k not in ("architectures", "model_type", "dtype")}
    given |= {"attn_mode": mode, "use_cache": False}
    model = GLAForCausalLM(GLAConfig(**given)).float().eval()
    missing, extra = model.load_state_dict(tensors, strict=False)
    if config["tie_word_embeddings"]:
        missing = [n for n in missing if n != "lm_head.weight"]
        model.lm_head.weight = model.model.embeddings.weight
    if missing or extra:
        raise AssertionError(f"names differ from FLA's: missing {missing}, extra {extra}")
    return model


# --- FLA's layers against the mixers of the hybrid format ----------------------------------------


def fla_layer(kind: str, p: dict, config: dict):
    """FLA's layer for one mixer of a hybrid golden; None where FLA has no such layer or option.

    p is complete (hybrid_format.mixer_params).
    """
    from fla import layers

    d, heads = config["hidden_size"], p.get("num_heads")
    common = {"hidden_size": d, "num_heads": heads, "norm_eps": p.get("norm_eps"), "layer_idx": 0,
              "mode": "chunk"}
    if "expand_k" in p:
        # A hair more than the ratio, since FLA rounds hidden_size * expand down.
        common["expand_k"] = (p["head_k_dim"] * heads + 1e-6) / d
        common["expand_v"] = (p["head_v_dim"] * heads + 1e-6) / d
    take = lambda *keys: {k: p[k] for k in keys}
    conv = ("use_short_conv", "conv_size", "conv_bias")
    if kind == "gla":
        return layers.GatedLinearAttention(**common, **take(
            *conv, "num_kv_heads", "use_output_gate", "gate_logit_normalizer", "gate_low_rank_dim",
            "clamp_min"))
    if kind == "simple_gla":
        if p["clamp_min"] is not None or not p["use_output_gate"]:
            return None
        from fla.layers.simple_gla import SimpleGatedLinearAttention

        return SimpleGatedLinearAttention(**common, **take(
            *conv, "num_kv_heads", "gate_logit_normalizer"))
    if kind == "retnet":
        if p["rope_theta"] != 10000.0:
            return None
        return layers.MultiScaleRetention(
            **common, **take(*conv, "num_kv_heads", "use_output_gate"))
    if kind == "linear_attn":
        return layers.LinearAttention(**common, **take(
            "num_kv_heads", "feature_map", "norm_q", "norm_k"),
            do_feature_map_norm=p["norm_feature_map"])
    if kind == "delta_net":
        return layers.DeltaNet(**common, **take(
            *conv, "use_beta", "use_gate", "allow_neg_eigval", "qk_norm", "qk_activation"))
    if kind == "gated_deltanet":
        return layers.GatedDeltaNet(**common, **take(
            *conv, "num_v_heads", "head_dim", "expand_v", "use_gate", "allow_neg_eigval"))
    if kind == "kda":
        return layers.KimiDeltaAttention(**common, **take(
            *conv, "num_v_heads", "head_dim", "expand_v", "allow_neg_eigval", "lower_bound"),
            safe_gate=p["lower_bound"] is not None)
    return None


def compare_layers(root: str, device: str, deadline: float) -> dict:
    import hybrid_format
    from goldens import plain

    report = {}
    for name in sorted(os.listdir(root)):
        folder = os.path.join(root, name)
        if not name.startswith("hybrid_") or not os.path.isdir(folder):
            continue
        with open(os.path.join(folder, "config.json")) as f:
            config = hybrid_format.read_config(json.load(f))
        tensors = load_file(os.path.join(folder, "model.safetensors"))
        for n, layer in enumerate(config["layers"]):
            for m, mixer in enumerate(hybrid_format.layer_mixers(layer)):
                key = f"{name}/{n}.{m} {mixer['type']}"
                if time.time() > deadline:
                    report[key] = "not reached"
                    continue
                try:
                    report[key] = one_layer(config, layer, mixer, n, m, tensors, device, plain)
                except Exception as error:  # one layer FLA cannot run must not hide the others
                    report[key] = f"{type(error).__name__}: {str(error)[:300]}"
                if report[key] is not None:
                    print(key, report[key], flush=True)
    return {k: v for k, v in report.items() if v is not None}


def one_layer(config, layer, mixer, n, m, tensors, device, plain):
    import hybrid_format

    p = hybrid_format.mixer_params(mixer, config, "")
    module = fla_layer(mixer["type"], p, config)
    if module is None:
        return None
    prefix = hybrid_format.mixer_prefix(n, m, layer)
    own = {k[len(prefix):]: t.float() for k, t in tensors.items() if k.startswith(prefix)}
    have = module.state_dict()
    for k in have:  # FLA's feature maps carry a bias, which this format leaves out
        if "feature_map" in k and k.endswith("bias"):
            own[k] = torch.zeros_like(have[k])
    own = {k: t.reshape(have[k].shape) if k in have else t for k, t in own.items()}
    module.load_state_dict(own)
    x = torch.randn(61, config["hidden_size"], generator=torch.Generator().manual_seed(n))
    want = plain.MIXERS[mixer["type"]](
        plain.Weights(tensors, prefix), x.double(), mixer.get("params", {}), config["hidden_size"],
        config["norm_eps"], torch.arange(61))
    module = module.float().eval().to(device)
    for _ in range(3):  # an interpreted kernel now and then reads padding that nobody has set
        with torch.no_grad():
            got = module(x[None].to(device))[0][0].cpu().double()
        if got.isfinite().all():
            break
    return float((got - want).norm() / want.norm())


def one_model(folder: str, mode: str, device: str) -> dict:
    """The worst relative difference over the prompts, and whether all greedy tokens agree."""
    config, tensors = load(folder)
    expected = load_file(os.path.join(folder, "expected.safetensors"))
    model = model_of(config, tensors, mode).to(device)
    worst, greedy, i = 0.0, True, 0
    while f"prompt_{i}" in expected:
        ids, tokens = expected[f"prompt_{i}"], expected[f"greedy_{i}"]
        with torch.no_grad():
            whole = torch.cat([ids, tokens])[None, :-1].to(device)
            logits = model(input_ids=whole, use_cache=False, output_attentions=False,
                           output_hidden_states=False, return_dict=True).logits[0].cpu()
        want, got = expected[f"logits_{i}"].double(), logits[:len(ids)].double()
        worst = max(worst, float((got - want).norm() / want.norm()))
        greedy = greedy and torch.equal(logits[len(ids) - 1:].argmax(-1), tokens)
        i += 1
    return {"difference": worst, "greedy": greedy}


def prepare() -> str:
    """The device to run on. To be called before FLA and Triton are imported."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
    os.environ["FLA_CACHE_MODE"] = "disabled"
    import triton.runtime.autotuner as autotuner

    # One configuration of each kernel: trying all of them takes minutes and changes no result.
    original = autotuner.Autotuner.__init__

    def with_one(self, fn, arg_names, configs, *args, **kwargs):
        original(self, fn, arg_names, configs[:1], *args, **kwargs)

    autotuner.Autotuner.__init__ = with_one
    return device


def compare(root: str, seconds: float) -> tuple[str, dict, dict]:
    """Differences by golden (worst prompt) and by layer. An error where FLA disagrees."""
    device = prepare()
    import fla

    deadline = time.time() + seconds
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    models = {}
    for name in sorted(os.listdir(root)):
        if not name.startswith("gla") or not os.path.isdir(os.path.join(root, name)):
            continue
        if time.time() > deadline:
            raise TimeoutError(f"{name} not reached within {seconds:.0f} s")
        facts = one_model(os.path.join(root, name), "fused_recurrent", device)
        print(name, facts, flush=True)
        if facts["difference"] > TOLERANCE or not facts["greedy"]:
            raise AssertionError(f"FLA disagrees on {name}: {facts}")
        models[name] = facts["difference"]
    layers = compare_layers(root, device, deadline)
    wrong = {k: d for k, d in layers.items() if not isinstance(d, float) or d > TOLERANCE}
    if wrong:
        raise AssertionError(f"FLA disagrees or cannot run: {wrong}")
    return f"flash-linear-attention {fla.__version__}", models, layers
