"""Makes the reference outputs under tests/golden.

    make_goldens.py --list
    make_goldens.py                          # every golden
    make_goldens.py --only qwen3_5_text_tied # one or several, separated by commas
    make_goldens.py --family hybrid          # one family

Each golden is a tiny checkpoint with random weights and expected.safetensors, in the format that
`weir check` reads. Everything follows from seeds; tests/golden/README.md is written from the facts
of each run, kept in tests/golden/goldens.json. Needs torch, numpy and safetensors; transformers
5.17 for the qwen3_5 families; flash-linear-attention only for `--fla`, which compares what is there
with FLA's own code.
"""

import argparse
import os
import sys
import time

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)

import torch  # noqa: E402

from goldens import common, readme  # noqa: E402

FAMILIES = {"qwen3_5": "qwen3_5", "qwen3_5_text": "qwen3_5", "gla": "gla", "hybrid": "hybrid"}


def collect(family: str | None, only: list[str]) -> list[common.Golden]:
    """The goldens asked for; a family's module is imported only when it is needed."""
    modules = sorted({m for f, m in FAMILIES.items() if family in (None, f)})
    found = []
    for module in modules:
        found += __import__(f"goldens.{module}", fromlist=["goldens"]).goldens()
    found = [g for g in found if family in (None, g.family)]
    unknown = set(only) - {g.name for g in found}
    if unknown:
        sys.exit(f"no golden named {', '.join(sorted(unknown))}; --list shows all")
    return [g for g in found if not only or g.name in only]


def expected_bytes(root: str, name: str) -> bytes | None:
    """What the folder holds of a golden's logits now."""
    try:
        with open(os.path.join(root, name, "expected.safetensors"), "rb") as f:
            return f.read()
    except FileNotFoundError:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", default=os.path.join(HERE, "..", "tests", "golden"))
    parser.add_argument("--list", action="store_true", help="print names and what each covers")
    parser.add_argument("--only", default="", help="names, separated by commas")
    parser.add_argument("--family", choices=sorted(FAMILIES))
    parser.add_argument("--fla", action="store_true",
                        help="instead run the goldens in --out through flash-linear-attention and "
                             "record the differences")
    parser.add_argument("--fla-seconds", type=float, default=1800,
                        help="stop --fla after this long")
    parser.add_argument("--hf", action="store_true",
                        help="instead compare layers of the hybrid goldens with transformers'")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.fla:
        from goldens import fla_check
        readme.record(args.out, *fla_check.compare(args.out, args.fla_seconds))
        return
    if args.hf:
        from goldens import hf_check
        readme.record(args.out, *hf_check.compare(args.out))
        return
    goldens = collect(args.family, [n for n in args.only.split(",") if n])
    if args.list:
        for g in goldens:
            print(f"{g.name:32} {g.family:14} {g.covers}")
        return
    facts = readme.load(args.out)
    for g in goldens:
        start = time.time()
        before = expected_bytes(args.out, g.name)
        fact = common.make(g, args.out)
        # What --fla and --hf found holds only for the same weights.
        same = expected_bytes(args.out, g.name) == before
        facts[g.name] = (facts.get(g.name, {}) if same else {}) | fact
        print(f"{g.name:32} seed {fact['seed']:2}  agreement {fact['agreement']:.1e}  "
              f"gap {fact['gap']:.3f}  least sensitive {fact['sensitivity']:.1e} "
              f"({fact['sensitivity_tensor']})  {fact['distinct']} distinct  "
              f"{fact['bytes'] / 1024:.0f} KiB  {time.time() - start:.0f} s", flush=True)
        readme.store(args.out, facts)


if __name__ == "__main__":
    main()
