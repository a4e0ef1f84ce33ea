"""Trains weir-tiny: tokenizer, model, scores. One command, one GPU, under ten minutes.

    train_tiny.py --corpus ../shared/corpus --out models/weir-tiny

Writes config.json, model.safetensors (bf16), tokenizer.json, tokenizer_config.json,
generation_config.json, curve.csv and scores.json into --out. Needs torch, safetensors, tokenizers, jinja2.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from hybrid_format import Json, Weights, read_config, tensor_shapes
from tiny import chat, evaluation, model
from tiny.corpus import Corpus, read_corpus
from tiny.feed import Feed
from tiny.mixture import RowMaker, Rows, sample_texts
from tiny.optimizer import Optimizer
from tiny.vocabulary import load_tokenizer, train_tokenizer

CONFIG = Path(__file__).parent / "tiny" / "config.json"
MATRIX_RATE, OTHER_RATE, WEIGHT_DECAY = 4e-3, 2e-3, 0.1
WARM_UP_STEPS, DECAY_SHARE = 100, 0.5  # the rate falls to nothing over the last half of the time
BALANCE_WEIGHT = 0.01
DROPOUT = 0.1  # of what each block adds; the text is seen some ten times


def log(text: str) -> None:
    print(f"[{time.perf_counter() - START:6.1f}s] {text}", flush=True)


START = time.perf_counter()


def get_tokenizer(path: Path, corpus: Corpus, vocab_size: int) -> Tokenizer:
    """The tokenizer at `path`, trained and saved there when there is none."""
    if not path.exists():
        paragraphs = (p for b in corpus.train for p in b.paragraphs)
        tasks = sample_texts(corpus.train, seed=1, count=60_000)
        tokenizer = train_tokenizer(itertools.chain(paragraphs, tasks), vocab_size)
        tokenizer.save(str(path))
        log(f"tokenizer trained: {tokenizer.get_vocab_size()} tokens")
    return load_tokenizer(path)


def write_side_files(out: Path, config: Json) -> None:
    """Everything of the folder that is not learned."""
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tokens = {str(i): {"content": t, "special": t in chat.CONTROL, "normalized": False, "lstrip": False,
                       "rstrip": False, "single_word": False}
              for i, t in enumerate(chat.CONTROL + chat.MARKUP)}
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": config["max_position_embeddings"],
        "bos_token": None, "eos_token": chat.END, "pad_token": chat.END_OF_TEXT,
        "clean_up_tokenization_spaces": False, "added_tokens_decoder": tokens,
        "chat_template": chat.TEMPLATE,
    }
    generation = {"eos_token_id": config["eos_token_id"], "pad_token_id": 0, "do_sample": True,
                  "temperature": 0.8, "top_p": 0.9}
    for name, value in (("tokenizer_config", tokenizer_config), ("generation_config", generation)):
        (out / f"{name}.json").write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def save_model(out: Path, weights: Weights) -> None:
    tensors = {n: t.detach().to("cpu", torch.bfloat16).contiguous() for n, t in weights.items()}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})


def rate_at(step: int, progress: float) -> float:
    """Share of the peak learning rate; progress from 0 to 1 is time, not steps."""
    return min((step + 1) / WARM_UP_STEPS, (1 - progress) / DECAY_SHARE, 1.0)


@dataclass
class StepResult:
    loss: Tensor  # mean over all weighted tokens
    text_loss: Tensor  # over tokens of weight 1
    shares: list[Tensor]


def train_step(ids: Tensor, token_weights: Tensor, weights: Weights, config: Json) -> StepResult:
    """Forward and backward. ids, token_weights [B, T + 1]."""
    cast = model.cast_weights(weights, torch.bfloat16)
    routing = model.Routing([], [])
    x = model.hidden_states(ids[:, :-1], config, cast, routing, DROPOUT).flatten(0, 1)
    losses = model.PIECES["cross_entropy"](x, cast["model.embeddings.weight"], ids[:, 1:].flatten())
    wanted = token_weights[:, 1:].flatten()
    loss = (losses * wanted).sum() / wanted.sum()
    (loss + BALANCE_WEIGHT * sum(routing.balance)).backward()
    with torch.no_grad():
        text = (wanted == 1).float()
        text_loss = (losses * text).sum() / text.sum()
    return StepResult(loss.detach(), text_loss, routing.shares)


class RecordedStep:
    """train_step recorded once and replayed, so that the GPU does not wait for Python."""

    def __init__(self, ids: Tensor, token_weights: Tensor, weights: Weights, config: Json) -> None:
        self.ids, self.token_weights = ids.clone(), token_weights.clone()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                train_step(self.ids, self.token_weights, weights, config)
                clear_gradients(weights)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.result = train_step(self.ids, self.token_weights, weights, config)

    def __call__(self, ids: Tensor, token_weights: Tensor) -> StepResult:
        self.ids.copy_(ids)
        self.token_weights.copy_(token_weights)
        self.graph.replay()
        return self.result


class PlainStep:
    """train_step as it is."""

    def __init__(self, weights: Weights, config: Json) -> None:
        self.weights, self.config = weights, config

    def __call__(self, ids: Tensor, token_weights: Tensor) -> StepResult:
        clear_gradients(self.weights)
        return train_step(ids, token_weights, self.weights, self.config)


def clear_gradients(weights: Weights) -> None:
    for t in weights.values():
        t.grad = None


def make_step(ids: Tensor, token_weights: Tensor, weights: Weights,
              config: Json) -> RecordedStep | PlainStep:
    if not ids.is_cuda:
        return PlainStep(weights, config)
    try:
        return RecordedStep(ids, token_weights, weights, config)
    except RuntimeError as error:
        log(f"the step cannot be recorded and runs plainly: {error}")
        torch.cuda.synchronize()
        return PlainStep(weights, config)


@torch.no_grad()
def held_out_loss(windows: list[list[int]], weights: Weights, config: Json, device: str) -> float:
    """Mean loss per token of held-out text, each window from an empty state."""
    total, count = 0.0, 0
    for i in range(0, len(windows), 32):
        ids = torch.tensor(windows[i : i + 32], device=device)
        with model.plain_pieces():
            x = model.hidden_states(ids, config, weights, model.Routing([], []))
        losses = model.cross_entropy(x[:, :-1].flatten(0, 1), weights["model.embeddings.weight"],
                                     ids[:, 1:].flatten())
        total, count = total + float(losses.sum()), count + losses.numel()
    return total / count


@torch.no_grad()
def continue_greedily(prompts: list[list[int]], new_tokens: int, weights: Weights, config: Json,
                      device: str, stops: list[int]) -> list[list[int]]:
    """The likeliest continuations, by whole forwards: causal, so padding behind does not matter."""
    longest = -(-(max(map(len, prompts)) + new_tokens) // 64) * 64
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt)
    ids = ids.to(device)
    ends = torch.tensor([len(p) for p in prompts], device=device)
    rows = torch.arange(len(prompts), device=device)
    done = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    stop_ids = torch.tensor(stops, device=device)
    for _ in range(new_tokens):
        used = -(-int(ends.max()) // 64) * 64
        x = model.hidden_states(ids[:, :used], config, weights, model.Routing([], []))
        token = (x[rows, ends - 1] @ weights["model.embeddings.weight"].T).argmax(-1)
        done |= torch.isin(token, stop_ids)
        ids[rows, ends] = torch.where(done, ids[rows, ends], token)
        ends = ends + (~done).long()
        if bool(done.all()):
            break
    return [ids[r, len(p) : int(ends[r])].tolist() for r, p in enumerate(prompts)]


def measure(tokenizer: Tokenizer, corpus: Corpus, weights: Weights, config: Json, device: str,
            count: int) -> tuple[dict[str, float], dict[str, list[str]]]:
    """Scores by name and, for each trial, some wrong answers."""
    scores, wrong = {}, {}
    for trial, tasks in evaluation.held_out_tasks(corpus, count):
        prompts = [tokenizer.encode(evaluation.prompt_text(t)).ids for t in tasks]
        order = sorted(range(count), key=lambda i: len(prompts[i]))
        answers = [""] * count
        for at in range(0, count, 200):
            part = order[at : at + 200]
            made = continue_greedily([prompts[i] for i in part], trial.new_tokens, weights, config,
                                     device, config["eos_token_id"])
            for i, ids in zip(part, made, strict=True):
                answers[i] = tokenizer.decode(ids, skip_special_tokens=False)
        scores |= evaluation.score(trial, tasks, answers)
        misses = [(t, a) for t, a in zip(tasks, answers, strict=True) if not t.right(a)]
        wrong[trial.name] = [f"{evaluation.prompt_text(t)[-300:]} => {a}" for t, a in misses[:12]]
        log(f"{trial.name}: {scores[trial.name]:.3f}")
    return scores, wrong


def bf16_weights(weights: Weights) -> Weights:
    """The weights as the checkpoint holds them: all rounded to bf16, then cast as in training."""
    rounded = {n: t.detach().bfloat16().float() for n, t in weights.items()}
    return model.cast_weights(rounded, torch.bfloat16)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=5.3, help="of training steps (default 5.3)")
    parser.add_argument("--rows", type=int, default=24, help="rows of a batch (default 24)")
    parser.add_argument("--length", type=int, default=2048, help="tokens of a row (default 2048)")
    parser.add_argument("--workers", type=int, default=12, help="processes making data (default 12)")
    parser.add_argument("--trials", type=int, default=400, help="held-out tasks a kind (default 400)")
    parser.add_argument("--steps", type=int, default=1_000_000, help="stop early")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--no-compile", action="store_true", help="do not fuse elementwise pieces")
    return parser.parse_args()


def train(args: argparse.Namespace, feed: Feed, weights: Weights, config: Json,
          windows: list[list[int]]) -> list[Json]:
    """Trains `weights` in place for the given time. Returns the curve."""
    optimizer = Optimizer(weights, WEIGHT_DECAY)
    curve: list[Json] = []
    few = windows[:: max(1, len(windows) // 32)]
    run = make_step(*to_device(feed.next(), args.device), weights, config)
    log("ready to train")
    begin = time.perf_counter()
    for step in range(args.steps):
        progress = (time.perf_counter() - begin) / (args.minutes * 60)
        if progress >= 1.0:
            break
        result = run(*to_device(feed.next(), args.device))
        rate = rate_at(step, progress)
        optimizer.step(rate * MATRIX_RATE, rate * OTHER_RATE)
        if step % 50 == 0:
            curve.append({"step": step, "seconds": round(time.perf_counter() - begin, 1),
                          "tokens": (step + 1) * args.rows * args.length,
                          "loss": round(float(result.loss), 4), "text_loss": round(float(result.text_loss), 4),
                          "rate": round(rate, 4), "held_out_loss": ""})
        if step % 500 == 0:
            if step % 1000 == 0:
                loss = held_out_loss(few, model.cast_weights(weights, torch.bfloat16), config, args.device)
                curve[-1]["held_out_loss"] = round(loss, 4)
            shares = ", ".join(f"{s:.2f}" for t in result.shares for s in t.tolist())
            log(f"step {step}: {json.dumps(curve[-1])} routed {shares}")
    return curve


def to_device(batch: Rows, device: str) -> tuple[Tensor, Tensor]:
    """Ids and token weights, [B, T + 1]."""
    ids = torch.from_numpy(batch.ids.astype("int64")).to(device)
    return ids, torch.from_numpy(batch.weights).to(device).float()


def main() -> None:
    args = parse_arguments()
    args.out.mkdir(parents=True, exist_ok=True)
    given = json.loads(CONFIG.read_text())
    config = read_config(given)
    corpus = read_corpus(args.corpus)
    tokenizer = get_tokenizer(args.out / "tokenizer.json", corpus, config["vocab_size"])
    maker = RowMaker(tokenizer, corpus.train, args.length)
    log(f"{len(maker.text)} tokens of text")
    feed = Feed(maker, args.rows, args.workers, args.seed)
    windows = evaluation.held_out_windows(lambda text: tokenizer.encode(text).ids,
                                          evaluation.held_out_text(corpus.held_out), 1024)
    write_side_files(args.out, given | {"torch_dtype": "bfloat16"})

    torch.set_float32_matmul_precision("high")
    if not args.no_compile:
        model.compile_pieces()
    weights = {n: t.to(args.device).requires_grad_()
               for n, t in model.initial_weights(config, tensor_shapes(config), args.seed).items()}
    curve = train(args, feed, weights, config, windows)
    feed.stop()
    save_model(args.out, weights)
    with (args.out / "curve.csv").open("w", newline="") as f:
        writer = csv.DictWriter(f, curve[0].keys())
        writer.writeheader()
        writer.writerows(curve)
    log(f"{curve[-1]['step']} steps, model saved")

    model.PIECES.update(model.PLAIN_PIECES)
    final = bf16_weights(weights)
    scores: Json = {"held_out_loss": held_out_loss(windows, final, config, args.device)}
    log(f"held-out loss {scores['held_out_loss']:.4f}")
    measured, wrong = measure(tokenizer, corpus, final, config, args.device, args.trials)
    scores |= measured | {"trials": args.trials, "seconds": round(time.perf_counter() - START, 1)}
    (args.out / "scores.json").write_text(json.dumps(scores, indent=2) + "\n")
    for name, lines in wrong.items():
        for line in lines:
            print(f"  wrong {name}: {line!r}")
    print(json.dumps(scores, indent=2))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
