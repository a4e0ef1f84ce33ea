"""Held-out tasks and their scores; the answers come from whoever can continue a conversation."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tiny.arithmetic import arithmetic
from tiny.chat import render
from tiny.corpus import Book, Corpus, Passages
from tiny.fill_json import fill_json
from tiny.lexicon import Lexicon
from tiny.recall import recall
from tiny.task import Source, Task
from tiny.tool_calls import call_of, tool_call, tool_result


@dataclass(frozen=True)
class Trial:
    """One kind of task to be measured."""

    name: str
    make: Callable[[Source], Task]
    new_tokens: int  # at most
    floor: bool = False  # one of those that must reach the floor


TRIALS = (
    Trial("two_digit_sums_and_differences", lambda s: arithmetic(s, (2, 2)), 100, True),
    Trial("three_digit_sums_and_differences", lambda s: arithmetic(s, (3, 3)), 130),
    Trial("recall_near", lambda s: recall(s, tokens=60), 30),
    Trial("recall_over_1000_tokens", lambda s: recall(s, tokens=1150), 30, True),
    Trial("tool_call", tool_call, 70, True),
    Trial("tool_result", tool_result, 40),
    Trial("fill_json", fill_json, 70),
)
WELL_FORMED = "tool_call_well_formed"  # beside tool_call, from the same answers
FLOORED = tuple(t.name for t in TRIALS if t.floor) + (WELL_FORMED,)
SEED = 20_000_003


def held_out_tasks(corpus: Corpus, count: int) -> Iterator[tuple[Trial, list[Task]]]:
    """`count` tasks of every kind, always the same ones."""
    passages = Passages(corpus.held_out)
    lexicon = Lexicon(corpus.train, Passages(corpus.train))
    for trial in TRIALS:
        source = Source(random.Random(f"{SEED} {trial.name}"), passages, lexicon, held_out=True)
        yield trial, [trial.make(source) for _ in range(count)]


def prompt_text(task: Task) -> str:
    return render(task.prompt, task.tools, add_generation_prompt=True)


def score(trial: Trial, tasks: list[Task], answers: list[str]) -> dict[str, float]:
    """Share of right answers by name."""
    right = sum(t.right(a) for t, a in zip(tasks, answers, strict=True))
    out = {trial.name: right / len(tasks)}
    if trial.name == "tool_call":
        out[WELL_FORMED] = sum(call_of(a) is not None for a in answers) / len(answers)
    return out


def held_out_text(books: list[Book]) -> list[str]:
    return ["\n\n".join(b.paragraphs) for b in books if b.paragraphs]


def held_out_windows(tokenize: Callable[[str], list[int]], texts: list[str],
                     length: int) -> list[list[int]]:
    """Held-out text as windows of `length` tokens; shorter rests are left out."""
    windows = []
    for text in texts:
        ids = tokenize(text)
        windows += [ids[i : i + length] for i in range(0, len(ids) - length + 1, length)]
    return windows
