"""The chunked training forward equals the plain reference, values and gradients.

Run with `python3 -m pytest tests/tools`; skipped where PyTorch is absent.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("safetensors")
pytest.importorskip("tokenizers")
TOOLS = Path(__file__).resolve().parents[2] / "tools"
sys.path.insert(0, str(TOOLS))

import hybrid_reference as reference  # noqa: E402
from hybrid_format import random_checkpoint, read_config, tensor_shapes  # noqa: E402
from tiny import chunked, model  # noqa: E402

GLA = {"type": "gla", "params": {"num_heads": 3, "head_k_dim": 8, "head_v_dim": 12, "clamp_min": -2.0}}
CONV_GLA = {"type": "gla", "params": GLA["params"] | {"use_short_conv": True, "conv_bias": True}}
DELTA = {"type": "gated_deltanet", "params": {"num_heads": 3, "head_dim": 10}}
MAMBA = {"type": "mamba2", "params": {"num_heads": 4, "head_dim": 9, "state_size": 7}}
LOCAL = {"type": "local_attn", "params": {"num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "window": 23,
                                          "qk_norm": True}}
ATTN = {"type": "attn", "params": {"num_heads": 4, "num_kv_heads": 1, "head_dim": 8, "rope_theta": None,
                                   "output_gate": True}}
LAYERS = [
    GLA, CONV_GLA, DELTA, MAMBA, LOCAL, ATTN,
    {"type": "parallel", "mixers": [ATTN, GLA]},
    {"type": "routed", "top_k": 1, "mixers": [DELTA, LOCAL]},
    {"type": "routed", "top_k": 2, "mixers": [CONV_GLA, MAMBA, LOCAL]},
]


def config_of(layers: list) -> dict:
    return read_config({"model_type": "hybrid", "vocab_size": 61, "hidden_size": 36, "layers": layers,
                        "feed_forward": {"type": "swiglu", "intermediate_size": 40},
                        "tie_word_embeddings": True, "embedding_multiplier": 3.0})


def train_logits(config: dict, weights: dict, ids: torch.Tensor) -> torch.Tensor:
    x = model.hidden_states(ids, config, weights, model.Routing([], []))
    return x @ weights["model.embeddings.weight"].T


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer["type"])
def test_forward_equals_reference(layer: dict) -> None:
    config = config_of([layer])
    weights = random_checkpoint(config, seed=3)
    ids = torch.randint(61, (2, 192), generator=torch.Generator().manual_seed(1))
    ours = train_logits(config, weights, ids)
    for row in range(2):
        assert relative(ours[row], reference.forward(config, weights, ids[row])) < 2e-5


def test_whole_model_equals_reference() -> None:
    config = config_of(LAYERS)
    weights = random_checkpoint(config, seed=5)
    ids = torch.randint(61, (1, 128), generator=torch.Generator().manual_seed(2))
    ours = train_logits(config, weights, ids)
    assert relative(ours[0], reference.forward(config, weights, ids[0])) < 1e-4


def test_chunked_gradients_equal_the_recurrence() -> None:
    rng = torch.Generator().manual_seed(4)
    q, k, v = (torch.randn(1, 128, 2, 6, generator=rng, dtype=torch.float64) for _ in range(3))
    k = k / k.norm(dim=-1, keepdim=True)
    g = -torch.rand(1, 128, 2, generator=rng, dtype=torch.float64)
    g_channel = -torch.rand(1, 128, 2, 6, generator=rng, dtype=torch.float64)
    beta = torch.rand(1, 128, 2, generator=rng, dtype=torch.float64)
    seed = torch.randn(1, 128, 2, 6, generator=rng, dtype=torch.float64)

    def gradients(run, *inputs: torch.Tensor) -> list[torch.Tensor]:
        leaves = [x.clone().requires_grad_() for x in inputs]
        (run(*leaves) * seed).sum().backward()
        return [x.grad for x in leaves]

    cases = [
        (lambda q, k, v, g: chunked.scalar_decay(q, k, v, g),
         lambda q, k, v, g: reference.recurrence(q[0], k[0], v[0], g[0, :, :, None])[None],
         (q, k, v, g)),
        (lambda q, k, v, g: chunked.channel_decay(q, k, v, g),
         lambda q, k, v, g: reference.recurrence(q[0], k[0], v[0], g[0])[None], (q, k, v, g_channel)),
        (lambda q, k, v, g, b: chunked.gated_delta(q, k, v, g, b),
         lambda q, k, v, g, b: reference.recurrence(q[0], k[0], v[0], g[0, :, :, None],
                                                    b[0, :, :, None])[None],
         (q, k, v, g, beta)),
    ]
    for fast, plain, inputs in cases:
        for ours, theirs in zip(gradients(fast, *inputs), gradients(plain, *inputs), strict=True):
            assert relative(ours, theirs) < 1e-9


def test_greedy_by_whole_forwards_equals_reference() -> None:
    import train_tiny

    config = config_of(LAYERS)
    weights = random_checkpoint(config, seed=6)
    prompts = [[3, 5, 7, 11], list(range(60))]
    ours = train_tiny.continue_greedily(prompts, 8, weights, config, "cpu", stops=[])
    assert ours == [reference.greedy(config, weights, p, 8) for p in prompts]


def test_shipped_architecture_has_every_kind_of_layer() -> None:
    config = read_config(json.loads((TOOLS / "tiny/config.json").read_text()))
    kinds = {layer["type"] for layer in config["layers"]}
    assert {"gla", "gated_deltanet", "mamba2", "local_attn", "parallel", "routed"} <= kinds
    parameters = sum(torch.Size(s).numel() for s in tensor_shapes(config).values())
    assert 9e6 < parameters < 12e6
