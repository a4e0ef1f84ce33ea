"""What every golden shares: seeded weights, prompts, greedy continuations, files.

A golden is a folder with a checkpoint (config.json, *.safetensors) and expected.safetensors, which
holds for prompt i `prompt_<i>` (int64 [T]), `logits_<i>` (float32 [T, vocab]) and `greedy_<i>`
(int64 [16]).
"""

import dataclasses
import json
import math
import os
import re
import shutil
from typing import Callable

import numpy as np
import torch
from safetensors.torch import save_file

from goldens import plain, rounding

PROMPT_LENGTHS = (1, 5, 61, 203)
GREEDY_STEPS = 16
MAX_ATTEMPTS = 300
# Least difference in probability between the last mixer picked and the first not picked.
MIN_ROUTE_MARGIN = 2e-4
# Most relative error that plain float32 arithmetic may make on a prompt.
MAX_NOISE = 4e-6

Tensors = dict[str, torch.Tensor]

# Norms inside mixers that are plain even where the block norms are zero-centred.
PLAIN_NORM = re.compile(r"linear_attn\.norm\.weight$|\.mixers?\.")


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
    # The reference in float32; None where it has no such form. Shows how much rounding matters.
    single: Callable[[dict, Tensors], Callable[[torch.Tensor], torch.Tensor]] | None = None
    shards: int = 1
    # Least distance between the two best logits at every greedy step, in units of the logits'
    # standard deviation; prompts are drawn until it holds.
    min_gap: float = 4e-3
    seed: int = 1
    prompt_lengths: tuple = PROMPT_LENGTHS
    # Tensors that must not influence the result (vision, MTP).
    skipped: tuple = ()
    # Tensors that cannot influence the result by the format's own rules.
    without_effect: tuple = ()
    # Least relative change of the logits when one tensor is replaced by other values.
    min_sensitivity: float = 1e-3
    # Most relative error that rounding to bf16 may make in the reference; None where a golden is
    # not meant for bf16. Prompts are drawn until it holds.
    max_bf16: float | None = None
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
    if "gk_proj" in name and leaf[-1] == "bias":  # gates between forgetting at once and keeping all
        return uniform(rng, shape, -4.0, 4.0)
    if leaf[-1] == "D":
        return uniform(rng, shape, 0.5, 1.5)
    if leaf[-1] == "bias":
        return normal(rng, shape, 0.25)
    if "norm" in parent:
        if zero_centered_norms and not PLAIN_NORM.search(name):
            return uniform(rng, shape, -0.5, 0.5)
        return uniform(rng, shape, 0.5, 1.5)
    if "conv" in parent:
        return normal(rng, shape, 0.6)
    if parent in ("embed_tokens", "embeddings"):
        return normal(rng, shape, 0.6)
    if parent == "lm_head":
        # Rows of different lengths: the best logit stands out, so that greedy tokens are stable.
        rows = np.exp(rng.standard_normal((shape[0], 1)) * 0.4).astype(np.float32)
        return normal(rng, shape, 1.0 / math.sqrt(shape[1])) * torch.from_numpy(rows)
    if parent == "router":
        return normal(rng, shape, 2.0 / math.sqrt(shape[1]))
    fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else shape[0]
    return normal(rng, shape, 1.4 / math.sqrt(fan_in))


def prompt(vocab: int, seed: int, length: int, attempt: int = 0) -> torch.Tensor:
    rng = rng_for(seed, f"prompt {length} {attempt}")
    return torch.from_numpy(rng.integers(0, vocab, length))


def greedy(forward, start: torch.Tensor, stop_below: float) -> tuple[torch.Tensor, float]:
    """The argmax continuation, each step from the whole sequence, and the least gap met.

    The gap is between the two best logits, in units of the logits' standard deviation. Gives up
    where it falls below stop_below.
    """
    ids, least = start.clone(), math.inf
    for _ in range(GREEDY_STEPS):
        row = forward(ids)[-1].double()
        best = row.topk(2).values
        least = min(least, float((best[0] - best[1]) / row.std()))
        if least < stop_below:
            break
        ids = torch.cat([ids, row.argmax()[None]])
    return ids[len(start):], least


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.double() - b.double()).norm() / b.double().norm())


def bf16_error(forward, ids: torch.Tensor) -> float:
    """What rounding the operands of linear layers to bf16 changes in the logits of one prompt."""
    exact = forward(ids)
    with rounding.Bf16Products():
        return relative(forward(ids), exact)


def expected(golden: Golden, config: dict, tensors: Tensors,
             seed: int) -> tuple[Tensors, float, float]:
    """The contents of expected.safetensors, the least gap over all greedy steps, the most noise.

    Prompts are drawn until no greedy token and no choice of mixers hangs on rounding, and float32
    itself is far more exact than the tolerance. Noise: float32 against float64.
    """
    forward, second = golden.reference(config, tensors), golden.second(config, tensors)
    single = golden.single(config, tensors) if golden.single else None
    out, least, noise = {}, math.inf, 0.0
    for i, length in enumerate(golden.prompt_lengths):
        for attempt in range(MAX_ATTEMPTS):
            start = prompt(vocab_of(config), seed, length, attempt)
            tokens, gap = greedy(forward, start, golden.min_gap)
            if gap < golden.min_gap:
                continue
            plain.route_margins.clear()
            whole = torch.cat([start, tokens])
            exact = second(whole)
            if min(plain.route_margins, default=1.0) < MIN_ROUTE_MARGIN:
                continue
            inexact = relative(single(start), exact[:length]) if single else 0.0
            if inexact > MAX_NOISE:
                continue
            if golden.max_bf16 is None or bf16_error(single or forward, start) <= golden.max_bf16:
                break
        else:
            raise RuntimeError(f"{golden.name}: no prompt of {length} tokens is clear of rounding")
        out[f"prompt_{i}"] = start.to(torch.int64).contiguous()
        out[f"logits_{i}"] = forward(start).to(torch.float32).contiguous()
        out[f"greedy_{i}"] = tokens.to(torch.int64).contiguous()
        least, noise = min(least, gap), max(noise, inexact)
    return out, least, noise


def sensitivity(golden: Golden, config: dict, tensors: Tensors, seed: int) -> tuple[float, str]:
    """The tensor that shows least in the logits: each is shuffled in turn (or redrawn when short).

    Those that should change nothing are checked to do so. Uses the float64 forward on a prompt of
    61 tokens.
    """
    ids = prompt(vocab_of(config), seed, 61)
    base = golden.second(config, tensors)(ids)
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
        change = relative(golden.second(config, other)(ids), base)
        if any(part in name for part in golden.skipped + golden.without_effect):
            if change != 0:
                raise AssertionError(f"{golden.name}: {name} should not change the logits but does")
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
        json.dump({"metadata": {"total_size": total},
                   "weight_map": dict(sorted(weight_map.items()))}, f, indent=1)
        f.write("\n")


def make(golden: Golden, root: str) -> dict:
    """Writes one golden; returns the facts for the README table."""
    seed = golden.seed
    config, tensors = golden.build(seed)
    result, gap, noise = expected(golden, config, tensors, seed)
    logits = torch.cat([v for k, v in result.items() if k.startswith("logits_")])
    if not torch.isfinite(logits).all() or not 0.3 < float(logits.std()) < 50:
        raise AssertionError(f"{golden.name}: logits are dead or saturated (std {logits.std()})")
    second = golden.second(config, tensors)
    agreement = 0.0
    for i in range(len(golden.prompt_lengths)):
        ours = second(result[f"prompt_{i}"])
        agreement = max(agreement, relative(result[f"logits_{i}"], ours))
    bf16 = {}
    if golden.max_bf16 is not None:
        forward = (golden.single or golden.reference)(config, tensors)
        bf16["bf16"] = max(bf16_error(forward, result[f"prompt_{i}"])
                           for i in range(len(golden.prompt_lengths)))
    least, which = sensitivity(golden, config, tensors, seed)
    if least < golden.min_sensitivity:
        raise AssertionError(f"{golden.name}: {which} hardly shows in the logits ({least:.1e})")
    continuations = torch.cat([v for k, v in result.items() if k.startswith("greedy_")])
    distinct = len(set(continuations.tolist()))

    folder = os.path.join(root, golden.name)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    (golden.save or write_checkpoint)(folder, config, tensors, golden.shards)
    save_file(result, os.path.join(folder, "expected.safetensors"),
              metadata={"reference": f"{golden.source}; seed {seed}"})
    for file in os.listdir(folder):
        os.chmod(os.path.join(folder, file), 0o644)
    size = sum(os.path.getsize(os.path.join(folder, f)) for f in os.listdir(folder))
    return {
        "name": golden.name, "family": golden.family, "covers": golden.covers,
        "source": golden.source, "seed": seed, "agreement": agreement, "gap": gap, "noise": noise,
        "sensitivity": least, "sensitivity_tensor": which, "distinct": distinct, "bytes": size,
    } | bf16
