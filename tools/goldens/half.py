"""Weights of the goldens stored in 16 bits: random, and conditioned as in trained networks.

A network with all weights drawn alike amplifies rounding: short convolutions whose taps cancel
before a normalisation, small outputs that a norm blows up, branches far larger than the residual
stream. In bf16 its logits are 2 to 6 percent off whoever computes them, which hides mistakes of
that size. Here every parameter is random too, around values that training arrives at.
"""

import functools
import math

import numpy as np
import torch

from goldens import common

# Most relative error that bf16 operands alone may make in the logits: far below the tolerance of
# 2e-2, so that a server in bf16 has room for an order of summation of its own.
MAX_BF16 = 8e-3


def random_tensor(name: str, shape, seed: int, zero_centered_norms: bool = False, *, layers: int,
                  tied: bool) -> torch.Tensor:
    """As common.random_tensor, for a model of `layers` layers that does not amplify rounding."""
    rng = common.rng_for(seed, name)
    shape = tuple(shape)
    leaf = name.split(".")
    parent = leaf[-2] if len(leaf) > 1 else ""
    if leaf[-1] == "A_log":
        return common.uniform(rng, shape, math.log(0.1), math.log(1.0))
    if leaf[-1] == "dt_bias":
        return common.uniform(rng, shape, -3.0, 0.0)
    if "gk_proj" in name and leaf[-1] == "bias":
        return common.uniform(rng, shape, -2.0, 3.0)
    if leaf[-1] == "D":
        return common.uniform(rng, shape, 0.7, 1.3)
    if leaf[-1] == "bias":
        return common.normal(rng, shape, 0.2)
    if "norm" in parent:
        middle = 0.0 if zero_centered_norms and not common.PLAIN_NORM.search(name) else 1.0
        weight = common.uniform(rng, shape, middle - 0.35, middle + 0.35)
        # A tied head would name the current token again and again: half of the channels are turned.
        if tied and name.endswith("model.norm.weight"):
            flip = torch.from_numpy(rng.random(shape) < 0.5)
            weight = torch.where(flip, weight - 2 if middle == 0 else -weight, weight)
        return weight
    if "conv" in parent:  # the current token's tap leads, the others blur
        taps = common.normal(rng, shape, 0.2)
        taps[..., -1] = common.uniform(rng, shape[:-1], 0.7, 1.3)
        return taps
    if parent in ("embed_tokens", "embeddings"):
        return common.normal(rng, shape, 0.6 if tied else 1.0)
    if parent == "lm_head":
        rows = np.exp(rng.standard_normal((shape[0], 1)) * 0.4).astype(np.float32)
        return common.normal(rng, shape, 1.0 / math.sqrt(shape[1])) * torch.from_numpy(rows)
    fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else shape[0]
    # A residual branch is 1 / sqrt(2 layers) of the stream; what enters down_proj is half as large.
    scale = {"o_proj": 1.0, "out_proj": 1.0, "down_proj": 2.0}.get(parent)
    scale = 1.0 if scale is None else scale / math.sqrt(2 * layers)
    return common.normal(rng, shape, scale / math.sqrt(fan_in))


def initializer(dtype: torch.dtype, layers: int, tied: bool):
    """The random_tensor for a golden whose weights are stored in dtype."""
    if dtype == torch.float32:
        return common.random_tensor
    return functools.partial(random_tensor, layers=layers, tied=tied)
