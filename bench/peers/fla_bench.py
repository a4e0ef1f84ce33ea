#!/usr/bin/env python3
"""Flash-linear-attention on the recurrences of `weir bench kernels`: the same shapes, the same JSON lines.

Exit 3 with a sentence when torch, a GPU or the library is not here. Usage: fla_bench.py [--filter TEXT] [--seconds S]
"""

import argparse
import json
import statistics
import sys

# (op, variant, batch, tokens, heads, heads_qk), dim 128: AddSequenceCases of server/commands/kernel_cases_sequence.cc.
CASES = [
    ("recurrence_chunk", "gated_delta", 1, 4096, 32, 16),
    ("recurrence_chunk", "gated_delta", 1, 16384, 32, 16),
    ("recurrence_chunk", "gated_delta", 8, 2048, 32, 16),
    ("recurrence_chunk", "gated_delta", 4, 8192, 64, 32),
    ("recurrence_chunk", "kda", 1, 16384, 32, 32),
    ("recurrence_chunk", "gla", 1, 16384, 32, 32),
    ("recurrence_chunk", "mamba2", 1, 16384, 32, 32),
    *(("recurrence_step", "gated_delta", batch, 1, 32, 16) for batch in (1, 16, 64, 256)),
    *(("recurrence_step", variant, 256, 1, 32, 32) for variant in ("kda", "gla", "mamba2")),
]
DIM = 128
CACHE_TIMES = 2.5
MOST_COPIES = 64
LAUNCHES = 20


def leave(sentence: str) -> None:
    print(f"fla_bench.py: {sentence}", file=sys.stderr)
    sys.exit(3)


def load():
    try:
        import torch
    except ImportError:
        leave("torch is not installed")
    if not torch.cuda.is_available():
        leave("torch finds no GPU")
    try:
        import fla
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule, fused_recurrent_gated_delta_rule
        from fla.ops.gla import chunk_gla, fused_recurrent_gla
        from fla.ops.kda import chunk_kda, fused_recurrent_kda
        from fla.ops.simple_gla import chunk_simple_gla, fused_recurrent_simple_gla
    except ImportError as error:
        leave(f"flash-linear-attention is not installed ({error}); pip install flash-linear-attention")
    ops = {
        ("recurrence_chunk", "gated_delta"): chunk_gated_delta_rule,
        ("recurrence_step", "gated_delta"): fused_recurrent_gated_delta_rule,
        ("recurrence_chunk", "kda"): chunk_kda,
        ("recurrence_step", "kda"): fused_recurrent_kda,
        ("recurrence_chunk", "gla"): chunk_gla,
        ("recurrence_step", "gla"): fused_recurrent_gla,
        ("recurrence_chunk", "mamba2"): chunk_simple_gla,
        ("recurrence_step", "mamba2"): fused_recurrent_simple_gla,
    }
    return torch, f"fla {getattr(fla, '__version__', '')}".strip(), ops


def case_bytes(variant: str, batch: int, tokens: int, heads: int, heads_qk: int) -> int:
    state = 2 * 4 * batch * heads * DIM * DIM
    gate = 4 * heads * (DIM if variant in ("kda", "gla") else 1)
    beta = 4 * heads if variant in ("kda", "gated_delta") else 0
    return state + batch * tokens * (2 * DIM * (2 * heads_qk + 2 * heads) + gate + beta)


def make_inputs(torch, variant: str, batch: int, tokens: int, heads: int, heads_qk: int) -> dict:
    def normal(*shape, dtype=torch.bfloat16, scale=1.0):
        return (torch.randn(*shape, device="cuda", dtype=torch.float32) * scale).to(dtype)

    inputs = {
        "q": normal(batch, tokens, heads_qk, DIM, scale=DIM**-0.5),
        "k": normal(batch, tokens, heads_qk, DIM, scale=DIM**-0.5),
        "v": normal(batch, tokens, heads, DIM),
        "scale": DIM**-0.5,
        "initial_state": normal(batch, heads, DIM, DIM, dtype=torch.float32, scale=0.1),
        "output_final_state": True,
    }
    vector = variant in ("kda", "gla")
    gate = -normal(batch, tokens, heads, *([DIM] if vector else []), dtype=torch.float32, scale=0.1).abs()
    inputs["gk" if variant == "gla" and tokens == 1 else "g"] = gate
    if variant in ("kda", "gated_delta"):
        inputs["beta"] = torch.rand(batch, tokens, heads, device="cuda", dtype=torch.float32)
    return inputs


def seconds_of(torch, enqueue) -> float:
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    enqueue()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) * 1e-3


def measure(torch, run, copies: int, seconds: float) -> tuple[float, bool]:
    """Median seconds of one run, and whether a graph could be captured."""
    with torch.no_grad():
        for i in range(copies):  # tunes and compiles
            run(i)
        torch.cuda.synchronize()
        once = seconds_of(torch, lambda: run(0))
        launches = max(copies, LAUNCHES)
        if once * launches > seconds:
            launches = max(1, int(seconds / once))
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                for i in range(launches):
                    run(i % copies)
            replay, graphed = graph.replay, True
        except Exception:  # some ops synchronise: then eagerly
            torch.cuda.synchronize()
            replay, graphed = lambda: [run(i % copies) for i in range(launches)], False
        replay()
        each, total = [], 0.0
        while len(each) < 5 or total < seconds:
            took = seconds_of(torch, replay)
            each.append(took / launches)
            total += took
        return statistics.median(each), graphed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--filter", default="", help="only lines that hold this text")
    parser.add_argument("--seconds", type=float, default=0.1, help="to spend on each case")
    arguments = parser.parse_args()
    torch, engine, ops = load()
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    print(json.dumps({"phase": "machine", "device": torch.cuda.get_device_name(0), "engine": engine,
                      "torch": torch.__version__}), flush=True)
    for op, variant, batch, tokens, heads, heads_qk in CASES:
        line = {"op": op, "variant": variant, "batch": batch, "tokens": tokens, "heads": heads,
                "heads_qk": heads_qk, "dim": DIM}
        if arguments.filter not in json.dumps(line):
            continue
        line |= {"device": "cuda", "engine": engine}
        moved = case_bytes(variant, batch, tokens, heads, heads_qk)
        copies = min(MOST_COPIES, int(CACHE_TIMES * cache / moved) + 1)
        try:
            data = [make_inputs(torch, variant, batch, tokens, heads, heads_qk) for _ in range(copies)]
            call = ops[op, variant]
            took, graphed = measure(torch, lambda i: call(**data[i]), copies, arguments.seconds)
            line |= {"us": round(took * 1e6, 3), "gigabytes_per_second": round(moved / took / 1e9, 1),
                     "data_sets": copies, "graph": graphed}
        except Exception as error:  # one op that this version lacks or refuses
            line["skipped"] = f"{type(error).__name__}: {error}"[:300]
        data = None
        torch.cuda.empty_cache()
        print(json.dumps(line), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
