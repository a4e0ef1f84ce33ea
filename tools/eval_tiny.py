"""Measures weir-tiny through a running server, on text and tasks it never trained on.

    weir serve models/weir-tiny
    eval_tiny.py --server 127.0.0.1:50051 --corpus ../shared/corpus

Prints a table; exits 1 when a score that must reach --floor falls short. Needs grpcio and grpcio-tools
(tools/requirements-test.txt) and the corpus, from which the held-out text comes.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import grpc

from tiny import evaluation
from tiny.chat import Message, to_json
from tiny.corpus import read_corpus
from tiny.task import Task

ROOT = Path(__file__).resolve().parents[1]
LOSS_WINDOW = 1024  # tokens, each from an empty state: the same as in training's scores.json
T = TypeVar("T")
R = TypeVar("R")


def load_stubs(folder: str) -> dict[str, ModuleType]:
    """Generates the Python client from proto/ into `folder` and imports it."""
    from grpc_tools import protoc

    proto = ROOT / "proto"
    files = sorted(str(p.relative_to(proto)) for p in (proto / "weir").rglob("*.proto"))
    code = protoc.main(["protoc", f"-I{proto}", f"--python_out={folder}",
                        f"--grpc_python_out={folder}", *files])
    if code != 0:
        sys.exit("the client could not be generated from proto/")
    sys.path.insert(0, folder)
    names = ("chat_pb2", "generate_pb2", "generate_pb2_grpc", "tokenize_pb2", "tokenize_pb2_grpc")
    return {name: importlib.import_module(f"weir.v1.{name}") for name in names}


class Client:
    """One server, many requests at a time."""

    def __init__(self, address: str, stubs: dict[str, ModuleType], parallel: int) -> None:
        self.stubs = stubs
        channel = grpc.insecure_channel(address)
        try:
            grpc.channel_ready_future(channel).result(timeout=10)
        except grpc.FutureTimeoutError:
            sys.exit(f"no server answers at {address}; start one: weir serve models/weir-tiny")
        self.generation = stubs["generate_pb2_grpc"].GenerationServiceStub(channel)
        self.tokenizer = stubs["tokenize_pb2_grpc"].TokenizerServiceStub(channel)
        self.parallel = parallel

    def map(self, run: Callable[[T], R], items: Sequence[T]) -> list[R]:
        with ThreadPoolExecutor(self.parallel) as pool:
            return list(pool.map(run, items))

    def message(self, message: Message) -> Any:
        chat = self.stubs["chat_pb2"]
        out = chat.ChatMessage(role=message["role"], content=message["content"])
        for call in message.get("tool_calls", ()):
            function = call["function"]
            out.tool_calls.append(
                chat.ToolCall(name=function["name"], arguments=to_json(function["arguments"])))
        if "reasoning_content" in message:
            out.reasoning = message["reasoning_content"]
        return out

    def answer(self, task: Task, new_tokens: int) -> str:
        """The likeliest answer to the task's prompt."""
        pb = self.stubs["generate_pb2"]
        chat = self.stubs["chat_pb2"].Chat(messages=[self.message(m) for m in task.prompt],
                                           tools=[to_json(t) for t in task.tools or ()])
        request = pb.GenerateRequest(chat=chat, sampling=pb.SamplingOptions(temperature=0.0),
                                     stopping=pb.StoppingOptions(max_tokens=new_tokens))
        return "".join(e.delta.text for e in self.generation.Generate(request) if e.HasField("delta"))

    def tokenize(self, text: str) -> list[int]:
        request = self.stubs["tokenize_pb2"].TokenizeRequest(text=text, add_special_tokens=False)
        return list(self.tokenizer.Tokenize(request).ids)

    def losses(self, ids: list[int]) -> list[float]:
        """Minus log probability of every token but the first."""
        pb = self.stubs["generate_pb2"]
        request = pb.GenerateRequest(
            token_ids=pb.TokenIds(ids=ids), stopping=pb.StoppingOptions(max_tokens=1),
            output=pb.OutputOptions(prompt_logprobs=0))
        out: list[float] = []
        for event in self.generation.Generate(request):
            if event.HasField("prompt_logprobs"):
                out += [-x for x in event.prompt_logprobs.logprobs]
        return out


def held_out_loss(client: Client, texts: list[str], count: int) -> float:
    """Mean loss per token over `count` windows spread over the held-out text."""
    windows = evaluation.held_out_windows(client.tokenize, texts, LOSS_WINDOW)
    chosen = windows[:: max(1, len(windows) // count)][:count]
    losses = [x for window in client.map(client.losses, chosen) for x in window]
    return sum(losses) / len(losses)


def parse_arguments() -> argparse.Namespace:
    shared = Path(os.environ.get("WEIR_SHARED_DIR", ROOT.parent / "shared"))
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--server", default="127.0.0.1:50051", help="gRPC address (127.0.0.1:50051)")
    parser.add_argument("--corpus", type=Path, default=shared / "corpus",
                        help="default $WEIR_SHARED_DIR/corpus, or shared/corpus beside the repository")
    parser.add_argument("--trials", type=int, default=100, help="tasks of each kind (default 100)")
    parser.add_argument("--windows", type=int, default=32,
                        help=f"windows of {LOSS_WINDOW} tokens for the loss (default 32)")
    parser.add_argument("--parallel", type=int, default=16, help="requests at a time (default 16)")
    parser.add_argument("--floor", type=float, default=0.95,
                        help="the least score of sums, recall and tool calls (default 0.95)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--show-wrong", action="store_true", help="print wrong answers to stderr")
    return parser.parse_args()


def measure(client: Client, args: argparse.Namespace) -> dict[str, float]:
    corpus = read_corpus(args.corpus)
    texts = evaluation.held_out_text(corpus.held_out)
    scores = {"held_out_loss": held_out_loss(client, texts, args.windows)}
    for trial, tasks in evaluation.held_out_tasks(corpus, args.trials):
        answers = client.map(lambda task, n=trial.new_tokens: client.answer(task, n), tasks)
        scores |= evaluation.score(trial, tasks, answers)
        for task, answer in zip(tasks, answers, strict=True):
            if args.show_wrong and not task.right(answer):
                print(f"{trial.name}: {task.prompt[-1]['content'][-200:]!r} => {answer!r}",
                      file=sys.stderr)
    return scores


def main() -> None:
    args = parse_arguments()
    if not args.corpus.is_dir():
        sys.exit(f"{args.corpus}: no such folder; give the corpus with --corpus")
    with tempfile.TemporaryDirectory() as folder:
        client = Client(args.server, load_stubs(folder), args.parallel)
        begin = time.perf_counter()
        try:
            scores = measure(client, args)
        except grpc.RpcError as error:
            sys.exit(f"the server refused: {error.code().name}: {error.details()}")
    short = [name for name in evaluation.FLOORED if scores[name] < args.floor]
    if args.json:
        print(json.dumps(scores | {"trials": args.trials, "floor": args.floor, "short": short}, indent=2))
    else:
        for name, value in scores.items():
            mark = f"  floor {args.floor}" if name in evaluation.FLOORED else ""
            print(f"{name:36}{value:7.3f}{mark}{'  FALLS SHORT' if name in short else ''}")
        print(f"{args.trials} tasks a kind in {time.perf_counter() - begin:.0f} s")
    sys.exit(1 if short else 0)


if __name__ == "__main__":
    main()
