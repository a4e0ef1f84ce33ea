#!/usr/bin/env python3
"""Pairs the JSON lines of two benchmark files by what they measured and prints how many times faster the first is.

Usage: compare.py OURS.jsonl THEIRS.jsonl
"""

import json
import sys

# Fields that say what was measured; the rest is what came out.
IDENTITY = ("op", "variant", "phase", "batch", "tokens", "cached", "heads", "heads_qk", "kv_heads", "dim", "rows", "out",
            "in", "n", "vocab", "context_tokens", "loop", "clients", "prompt_tokens", "output_tokens")
# The first of these that both lines have is compared; True: more is better.
FIGURES = (("us", False), ("output_tokens_per_second", True), ("tokens_per_second", True), ("seconds", False))


def read(path: str) -> dict:
    lines = {}
    with open(path, encoding="utf-8") as file:
        for text in file:
            line = json.loads(text)
            if line.get("phase") != "machine" and "skipped" not in line:
                lines[tuple((key, line[key]) for key in IDENTITY if key in line)] = line
    return lines


def main() -> int:
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    ours, theirs = read(sys.argv[1]), read(sys.argv[2])
    both = [name for name in ours if name in theirs]
    for name in both:
        figure, more = next(((f, m) for f, m in FIGURES if f in ours[name] and f in theirs[name]), (None, False))
        if figure is None:
            continue
        a, b = ours[name][figure], theirs[name][figure]
        ratio = (a / b if more else b / a) if a and b else float("nan")
        what = " ".join(f"{value}" if key in ("op", "variant", "phase") else f"{key}={value}" for key, value in name)
        print(f"{ratio:6.2f}x  {figure} {a:.5g} and {b:.5g}  {what}")
    print(f"{len(both)} pairs; {len(ours) - len(both)} lines of the first and {len(theirs) - len(both)} of the second "
          "have no partner", file=sys.stderr)
    return 0 if both else 1


if __name__ == "__main__":
    sys.exit(main())
