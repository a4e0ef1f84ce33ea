#!/usr/bin/env python3
"""vLLM on the shapes of `weir bench step` and `weir bench serve`: random weights, the same JSON lines.

  vllm_bench.py step  CONFIG.json [--batch 1,16,64,256] [--context 512,...]
  vllm_bench.py serve CONFIG.json [--clients 64,256] [--prompt-tokens 128] [--output-tokens 256]

Exit 3 with a sentence when vLLM or a GPU is not here.
"""

import argparse
import json
import pathlib
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request


def leave(sentence: str) -> None:
    print(f"vllm_bench.py: {sentence}", file=sys.stderr)
    sys.exit(3)


def need_vllm() -> str:
    try:
        import torch
        import vllm
    except ImportError as error:
        leave(f"vLLM is not installed ({error}); pip install vllm")
    if not torch.cuda.is_available():
        leave("torch finds no GPU")
    return f"vllm {vllm.__version__}"


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def model_folder(config: pathlib.Path, to: pathlib.Path) -> pathlib.Path:
    """vLLM wants a folder; a config.json alone is enough with dummy weights and without a tokenizer."""
    if config.is_dir():
        return config
    shutil.copyfile(config, to / "config.json")
    return to


def emit(**line) -> None:
    print(json.dumps(line), flush=True)


def run_step(arguments, engine: str, folder: pathlib.Path) -> None:
    from vllm import LLM, SamplingParams

    room = arguments.steps + 8
    begin = time.monotonic()
    llm = LLM(model=str(folder), load_format="dummy", skip_tokenizer_init=True, dtype="bfloat16",
              enable_prefix_caching=False, max_model_len=max(arguments.context) + room,
              max_num_seqs=max(arguments.batch), gpu_memory_utilization=arguments.memory)
    emit(phase="load", engine=engine, model=arguments.config.stem, seconds=round(time.monotonic() - begin, 2))
    vocab = llm.llm_engine.model_config.get_vocab_size()
    draw = random.Random(7)

    def seconds(batch: int, context: int, tokens: int) -> float:
        prompts = [{"prompt_token_ids": [draw.randrange(vocab) for _ in range(context)]} for _ in range(batch)]
        sampling = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        start = time.monotonic()
        llm.generate(prompts, sampling, use_tqdm=False)
        return time.monotonic() - start

    for context in arguments.context:
        seconds(1, context, 1)
        once = min(seconds(1, context, 1) for _ in range(3))
        emit(phase="prefill", engine=engine, tokens=context, seconds=round(once, 5),
             tokens_per_second=round(context / once, 1))
        for batch in arguments.batch:
            # The same prompts with few and with many tokens: the difference is decode alone.
            few, many = 8, arguments.steps
            seconds(batch, context, few)
            short = statistics.median(seconds(batch, context, few) for _ in range(3))
            long = statistics.median(seconds(batch, context, many) for _ in range(3))
            step = (long - short) / (many - few)
            emit(phase="decode", engine=engine, batch=batch, context_tokens=context, step_ms=round(step * 1e3, 4),
                 tokens_per_second=round(batch / step, 1))


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def wait_until_healthy(server: subprocess.Popen, port: int, limit_s: float) -> float:
    begin = time.monotonic()
    while time.monotonic() - begin < limit_s:
        if server.poll() is not None:
            leave(f"vllm serve ended with exit code {server.returncode}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                return time.monotonic() - begin
        except OSError:
            time.sleep(0.1)
    leave(f"vllm serve was not ready after {limit_s:.0f} s")
    return 0


def run_serve(arguments, engine: str, folder: pathlib.Path, work: pathlib.Path) -> None:
    port = free_port()
    length = arguments.prompt_tokens + arguments.output_tokens + 16
    log = open(work / "server.log", "w")
    server = subprocess.Popen(
        ["vllm", "serve", str(folder), "--load-format", "dummy", "--skip-tokenizer-init", "--dtype", "bfloat16",
         "--no-enable-prefix-caching", "--max-model-len", str(length), "--max-num-seqs", str(max(arguments.clients)),
         "--gpu-memory-utilization", str(arguments.memory), "--port", str(port)], stdout=log, stderr=log)
    try:
        ready = wait_until_healthy(server, port, 600)
        emit(phase="load", engine=engine, model=arguments.config.stem, seconds=round(ready, 2))
        for clients in arguments.clients:
            for count, name in ((clients, "warm-up"), (clients * 4, "measured")):
                result = work / f"{name}-{clients}.json"
                subprocess.run(
                    ["vllm", "bench", "serve", "--backend", "vllm", "--model", str(folder), "--skip-tokenizer-init",
                     "--port", str(port), "--dataset-name", "random", "--random-input-len", str(arguments.prompt_tokens),
                     "--random-output-len", str(arguments.output_tokens), "--ignore-eos", "--num-prompts", str(count),
                     "--max-concurrency", str(clients), "--percentile-metrics", "ttft,itl,e2el",
                     "--metric-percentiles", "50,90,95,99", "--save-result", "--result-dir", str(work),
                     "--result-filename", result.name], check=True, stdout=log, stderr=log)
            found = json.loads(result.read_text())

            def summary(name: str) -> dict:
                return {f"p{p}": round(found[f"p{p}_{name}_ms"], 3) for p in (50, 90, 95, 99)}

            emit(phase="serve", engine=engine, loop="closed", clients=clients, prompt_tokens=arguments.prompt_tokens,
                 output_tokens=arguments.output_tokens, seconds=round(found["duration"], 3),
                 completed=found["completed"], output_tokens_per_second=round(found["output_throughput"], 1),
                 first_token_ms=summary("ttft"), inter_token_ms=summary("itl"), whole_ms=summary("e2el"))
    except subprocess.CalledProcessError as error:
        leave(f"{' '.join(error.cmd[:3])} failed; its output ends with: {(work / 'server.log').read_text()[-1000:]}")
    finally:
        server.terminate()
        server.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("step", "serve"))
    parser.add_argument("config", type=pathlib.Path, help="config.json or model folder")
    parser.add_argument("--batch", type=numbers, default=[1, 16, 64, 256])
    parser.add_argument("--context", type=numbers, default=[512])
    parser.add_argument("--steps", type=int, default=136, help="tokens decoded per measurement")
    parser.add_argument("--clients", type=numbers, default=[64, 256])
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--output-tokens", type=int, default=256)
    parser.add_argument("--memory", type=float, default=0.9, help="share of the GPU's memory")
    arguments = parser.parse_args()
    if not arguments.config.exists():
        parser.error(f"{arguments.config} does not exist")
    engine = need_vllm()
    with tempfile.TemporaryDirectory() as work:
        folder = model_folder(arguments.config, pathlib.Path(work))
        if arguments.what == "step":
            run_step(arguments, engine, folder)
        else:
            run_serve(arguments, engine, folder, pathlib.Path(work))
    return 0


if __name__ == "__main__":
    sys.exit(main())
