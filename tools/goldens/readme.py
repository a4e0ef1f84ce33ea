"""tests/golden/README.md, written from the facts that make_goldens.py keeps in goldens.json."""

import json
import os

TEXT = """# Reference outputs

Tiny checkpoints with random weights, each with the logits and greedy tokens that it must give.
Written by `tools/make_goldens.py` (this file too); `weir check FOLDER` compares.

`expected.safetensors` holds for prompt i `prompt_<i>` (int64 [T]), `logits_<i>` (float32
[T, vocab]) and `greedy_<i>` (int64 [16], the argmax continuation; each step recomputed from the
whole sequence). Prompts have 1, 5, 61 and 203 tokens. All parameters are random, norm weights,
biases, `A_log` and `dt_bias` too; the seed is in the file's metadata.

How each was checked when it was made:

* **agreement**: relative difference, over the worst prompt, between the stored logits and a second
  forward in float64, token by token, written apart from the reference (`tools/goldens/plain.py`).
* **float32**: relative error of the reference in plain float32, over the worst prompt.
* **gap**: least distance between the two best logits over all greedy steps, in standard deviations
  of the logits. Greedy tokens do not hang on rounding.
* **weakest**: each tensor was shuffled in turn; this is the least relative change that made in the
  logits of a 61-token prompt. A loader that misreads any tensor is far outside the tolerance of
  float32, in which every golden is compared.
* **bf16**: relative error of the reference itself, over the worst prompt, with both operands of
  every linear layer rounded to bf16 and all else in its own precision. Goldens stored in 16 bits
  only, which are also served in bf16 (tolerance 2e-2): their weights are conditioned as in
  trained networks (`tools/goldens/half.py`) and prompts drawn until it is at most 8e-3.
* Tokens of routed layers choose their mixers with a margin of at least 2e-4 in probability.
* **FLA** (`make_goldens.py --fla`): worst relative difference between the stored logits and
  flash-linear-attention's own `gla` model in float32 with its recurrent kernels, all greedy tokens
  being equal; and below, its layers against the mixers of the hybrid goldens.
* **transformers** (`make_goldens.py --hf`): its layers against the mixers of the hybrid goldens.

"""


def path(root: str, name: str) -> str:
    return os.path.join(root, name)


def load(root: str) -> dict:
    try:
        with open(path(root, "goldens.json")) as f:
            return json.load(f)
    except FileNotFoundError:
        return {}


def layer_table(facts: dict) -> list[str]:
    """Layers of the hybrid goldens against published code: the worst difference of each mixer."""
    worst: dict[tuple, list[float]] = {}
    for fact in facts.values():
        for library, layers in fact.get("layers", {}).items():
            for key, difference in layers.items():
                worst.setdefault((key.split(" ")[1], library), []).append(difference)
    if not worst:
        return []
    lines = ["| mixer | compared with | layers | worst difference |", "|---|---|---|---|"]
    for (mixer, library), found in sorted(worst.items()):
        lines.append(f"| {mixer} | {library} | {len(found)} | {max(found):.1e} |")
    return lines


def record(root: str, library: str, models: dict, layers: dict) -> None:
    """Adds the differences that fla_check and hf_check measured: by golden, and by its layers."""
    facts = load(root)
    for name, difference in models.items():
        facts[name]["fla"] = difference
    by_golden: dict[str, dict] = {}
    for key, difference in layers.items():
        golden, layer = key.split("/")
        by_golden.setdefault(golden, {})[layer] = difference
    for golden, found in by_golden.items():
        facts[golden].setdefault("layers", {})[library] = found
    store(root, facts)


def store(root: str, facts: dict) -> None:
    os.makedirs(root, exist_ok=True)
    facts = {n: facts[n] for n in sorted(facts) if os.path.isdir(path(root, n))}
    with open(path(root, "goldens.json"), "w") as f:
        json.dump(facts, f, indent=1, sort_keys=True)
        f.write("\n")
    columns = ("folder", "family", "covers", "agreement", "float32", "bf16", "FLA", "gap",
               "weakest", "KiB")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    sources: dict[str, list[str]] = {}
    for name, f in facts.items():
        fla = f"{f['fla']:.1e}" if "fla" in f else ""
        bf16 = f"{f['bf16']:.1e}" if "bf16" in f else ""
        noise = f"{f['noise']:.1e}" if f.get("noise") else ""
        lines.append(f"| {name} | {f['family']} | {f['covers']} | {f['agreement']:.1e} | "
                     f"{noise} | {bf16} | {fla} | "
                     f"{f['gap']:.3f} | {f['sensitivity']:.1e} | {f['bytes'] / 1024:.0f} |")
        sources.setdefault(f["source"], []).append(f["family"])
    total = sum(f["bytes"] for f in facts.values()) / 2**20
    body = [TEXT, "Where the logits come from:\n\n"]
    for source, families in sorted(sources.items()):
        body.append(f"* `{'`, `'.join(sorted(set(families)))}`: {source}\n")
    body.append("\n" + "\n".join(lines) + f"\n\n{len(facts)} folders, {total:.1f} MiB.\n")
    body += ["\n" + "\n".join(layer_table(facts)) + "\n"] if layer_table(facts) else []
    with open(path(root, "README.md"), "w") as f:
        f.write("".join(body))
