"""What a generated task is."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tiny.chat import Message
from tiny.corpus import Passages


@dataclass(frozen=True)
class Task:
    """A finished conversation. `right` judges another answer to all but the last message."""

    kind: str
    messages: list[Message]
    right: Callable[[str], bool]
    tools: list[Message] | None = None

    @property
    def prompt(self) -> list[Message]:
        return self.messages[:-1]


@dataclass(frozen=True)
class Source:
    """What generators draw from. Held-out tasks use sums and passages that training never sees."""

    rng: random.Random
    passages: Passages
    held_out: bool = False


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str, reasoning: str = "") -> Message:
    message: Message = {"role": "assistant", "content": text}
    return message | ({"reasoning_content": reasoning} if reasoning else {})


def after_thinking(answer: str) -> str:
    return answer.rsplit("</think>", 1)[-1].strip()


def says(*needed: str) -> Callable[[str], bool]:
    """Right when the answer holds every needed piece."""
    return lambda answer: all(piece in after_thinking(answer) for piece in needed)


def parse_json(text: str) -> Any:
    """The value, or None when it is not JSON."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def same_json(a: Any, b: Any) -> bool:
    """Equal as JSON values: 1 is not true and keys may stand in any order."""
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)


SYSTEMS = ("You are a helpful assistant.", "You are Weir, a small helpful model.", "Answer briefly.",
           "You help with small things and tell tales.", "Be kind and exact.")


def with_system(source: Source, messages: list[Message]) -> list[Message]:
    """Sometimes puts a system message first."""
    if source.rng.random() < 0.3:
        return [{"role": "system", "content": source.rng.choice(SYSTEMS)}, *messages]
    return messages
