"""What every golden shares: seeded weights, prompts, greedy continuations, files.

A golden is a folder with a checkpoint (config.json, *.safetensors) and expected.safetensors, which
holds for prompt i: `prompt_<i>` int64 [T], `logits_<i>` float32 [T, vocab] and `greedy_<i>` int64 [16].
"""

import dataclasses
import json
import math
import os
import shutil
from typing import Callable

import numpy as np
import torch
from safetensors.torch import save_file

PROMPT_LENGTHS = (1, 5, 61, 203)
GREEDY_STEPS = 16

Tensors = dict[str, torch.Tensor]


@dataclasses.dataclass
class Golden:
    """One folder under tests/golden.

    build(seed) gives (config, tensors): the config as it is written, and the tensors as they are
    stored. reference(config, tensors) gives a function ids -> float32 logits [T, vocab].
    second(config, tensors) is the independent float64 forward of plain.py, used the same way.
    """

    name: str
    family: str
    covers: str
    build: Callable[[int], tuple[dict, Tensors]]
    reference: Callable[[dict, Tensors], Callable[[torch.Tensor], torch.Tensor]]
    second: Callable[[dict, Tensors], Callable[[torch.Tensor], torch.Tensor]]
    source: str  # what the expected logits come from, with its version
    shards: int = 1
    # Least distance between the two best logits at every greedy step, in units of the logits'
    # standard deviation; seeds are tried in order until it holds.
    min_gap: float = 4e-3
    prompt_lengths: tuple = PROMPT_LENGTHS
    # Tensors that must not influence the result (vision, MTP).
    skipped: tuple = ()
    # Least relative change of the logits when one tensor is replaced by other values.
    min_sensitivity: float = 1e-3
    save: Callable | None = None  # writes the checkpoint itself (config, tensors, folder)


def rng_for(seed: int, name: str) -> np.random.Generator:
    """A stream for each tensor, so that adding a tensor does not change the others."""
    return np.random.default_rng([seed, *name.encode()])


def normal(rng, shape, scale=1.0) -> torch.Tensor:
    return torch.from_numpy((rng.standard_normal(shape) * scale).astype(np.float32))


def uniform(rng, shape, low, high) -> torch.Tensor:
    return torch.from_numpy(rng.uniform(low, high, shape).astype(np.float32))


def random_tensor(name: str, shape, seed: int, zero_centered_norms: bool = False) -> torch.Tensor:
    """Values by the tensor's role: large enough that every tensor shows in the logits."""
    rng = rng_for(seed, name)
    shape = tuple(shape)
    leaf = name.split(".")
    parent = leaf[-2] if len(leaf) > 1 else ""
    if leaf[-1] == "A_log":
        return uniform(rng, shape, math.log(0.05), math.log(2.0))
    if leaf[-1] == "dt_bias":
        return uniform(rng, shape, -4.0, 1.0)
    if name.endswith("gk_proj.1.bias"):
        return uniform(rng, shape, -4.0, 4.0)
    if leaf[-1] == "bias":
        return normal(rng, shape, 0.25)
    if "norm" in parent:
        # The mixers' own gated norms are plain even where the block norms are zero-centred.
        if zero_centered_norms and not name.endswith("linear_attn.norm.weight"):
            return uniform(rng, shape, -0.5, 0.5)
        return uniform(rng, shape, 0.5, 1.5)
    if "conv1d" in parent:
        return normal(rng, shape, 0.6)
    if parent in ("embed_tokens", "embeddings"):
        return normal(rng, shape, 0.6)
    if parent == "lm_head":
        # Rows of different lengths: the best logit stands out, so that greedy tokens are stable.
        rows = np.exp(rng.standard_normal((shape[0], 1)) * 0.4).astype(np.float32)
        return normal(rng, shape, 1.0 / math.sqrt(shape[1])) * torch.from_numpy(rows)
    fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else shape[0]
    return normal(rng, shape, 1.4 / math.sqrt(fan_in))


def prompts(vocab: int, seed: int, lengths=PROMPT_LENGTHS) -> list[torch.Tensor]:
    rng = rng_for(seed, "prompts")
    return [torch.from_numpy(rng.integers(0, vocab, n)) for n in lengths]


def greedy(forward, prompt: torch.Tensor, steps: int = GREEDY_STEPS) -> tuple[torch.Tensor, float]:
    """The argmax continuation, each step from the whole sequence, and the least gap met.

    The gap is between the two best logits, in units of the logits' standard deviation.
    """
    ids, least = prompt.clone(), math.inf
    for _ in range(steps):
        row = forward(ids)[-1].double()
        best = row.topk(2).values
        least = min(least, float((best[0] - best[1]) / row.std()))
        ids = torch.cat([ids, row.argmax()[None]])
    return ids[len(prompt):], least


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def expected(forward, vocab: int, seed: int, lengths) -> tuple[Tensors, float]:
    """The contents of expected.safetensors and the least gap over all greedy steps."""
    out, least = {}, math.inf
    for i, prompt in enumerate(prompts(vocab, seed, lengths)):
        tokens, gap = greedy(forward, prompt)
        out[f"prompt_{i}"] = prompt.to(torch.int64).contiguous()
        out[f"logits_{i}"] = forward(prompt).to(torch.float32).contiguous()
        out[f"greedy_{i}"] = tokens.to(torch.int64).contiguous()
        least = min(least, gap)
    return out, least


def sensitivity(golden: Golden, config: dict, tensors: Tensors, seed: int) -> tuple[float, str]:
    """The tensor that shows least in the logits: each is shuffled in turn (or redrawn when short).

    Skipped tensors are checked to change nothing. Uses the float64 forward on a 61-token prompt.
    """
    prompt = prompts(vocab_of(config), seed, (61,))[0]
    base = golden.second(config, tensors)(prompt)
    least, which = math.inf, ""
    for name, value in tensors.items():
        rng = rng_for(seed, "shuffle " + name)
        flat = value.flatten()
        if flat.numel() >= 8:
            changed = flat[torch.from_numpy(rng.permutation(flat.numel()))]
        else:
            changed = flat + (uniform(rng, (flat.numel(),), 0.3, 0.6)).to(flat.dtype)
        other = dict(tensors)
        other[name] = changed.reshape(value.shape)
        change = relative(golden.second(config, other)(prompt), base)
        if any(part in name for part in golden.skipped):
            if change != 0:
                raise AssertionError(f"{golden.name}: {name} should be skipped but changes the logits")
            continue
        if change < least:
            least, which = change, name
    return least, which


def vocab_of(config: dict) -> int:
    return config["vocab_size"] if "vocab_size" in config else config["text_config"]["vocab_size"]


def write_checkpoint(folder: str, config: dict, tensors: Tensors, shards: int) -> None:
    with open(os.path.join(folder, "config.json"), "w") as f:
        json.dump(config, f, indent=2)
        f.write("\n")
    tensors = {k: v.contiguous() for k, v in tensors.items()}
    if shards == 1:
        save_file(tensors, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
        return
    # Names are dealt round robin, so that one layer's tensors lie in different files.
    names = sorted(tensors)
    weight_map = {}
    for s in range(shards):
        file = f"model-{s + 1:05d}-of-{shards:05d}.safetensors"
        part = {n: tensors[n] for n in names[s::shards]}
        weight_map.update({n: file for n in part})
        save_file(part, os.path.join(folder, file), metadata={"format": "pt"})
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    with open(os.path.join(folder, "model.safetensors.index.json"), "w") as f:
        json.dump({"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))},
                  f, indent=1)
        f.write("\n")


def make(golden: Golden, root: str, max_seeds: int = 60) -> dict:
    """Writes one golden; returns the facts for the README table."""
    for seed in range(1, max_seeds + 1):
        config, tensors = golden.build(seed)
        forward = golden.reference(config, tensors)
        vocab = vocab_of(config)
        # The long prompt's continuation alone weeds out most seeds.
        longest = prompts(vocab, seed, golden.prompt_lengths)[-1]
        if greedy(forward, longest)[1] < golden.min_gap:
            continue
        result, gap = expected(forward, vocab, seed, golden.prompt_lengths)
        if gap >= golden.min_gap:
            break
    else:
        raise RuntimeError(f"{golden.name}: no seed up to {max_seeds} keeps the greedy tokens apart")

    logits = torch.cat([v for k, v in result.items() if k.startswith("logits_")])
    if not torch.isfinite(logits).all() or not 0.3 < float(logits.std()) < 50:
        raise AssertionError(f"{golden.name}: logits are dead or saturated (std {logits.std()})")
    second = golden.second(config, tensors)
    agreement = 0.0
    for i in range(len(golden.prompt_lengths)):
        ours = second(result[f"prompt_{i}"])
        agreement = max(agreement, relative(result[f"logits_{i}"], ours))
    least, which = sensitivity(golden, config, tensors, seed)
    if least < golden.min_sensitivity:
        raise AssertionError(f"{golden.name}: {which} hardly shows in the logits ({least:.1e})")
    distinct = len(set(torch.cat([v for k, v in result.items() if k.startswith("greedy_")]).tolist()))

    folder = os.path.join(root, golden.name)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    (golden.save or write_checkpoint)(folder, config, tensors, golden.shards)
    save_file(result, os.path.join(folder, "expected.safetensors"),
              metadata={"reference": golden.source, "seed": str(seed)})
    size = sum(os.path.getsize(os.path.join(folder, f)) for f in os.listdir(folder))
    return {
        "name": golden.name, "family": golden.family, "covers": golden.covers,
        "source": golden.source, "seed": seed, "agreement": agreement, "gap": gap,
        "sensitivity": least, "sensitivity_tensor": which, "distinct": distinct, "bytes": size,
    }
