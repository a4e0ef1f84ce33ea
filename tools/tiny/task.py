"""What a generated task is."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tiny.chat import Message
from tiny.corpus import Passages
from tiny.lexicon import Lexicon


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
    lexicon: Lexicon
    held_out: bool = False

    def pick(self, values: Sequence[str]) -> str:
        """One of the values or, one time in four, something like them from outside the list."""
        value = self.rng.choice(values)
        if self.rng.random() > 0.25:
            return value
        if " " in value:
            phrase = self.lexicon.phrase(self.rng)
            return phrase.title() if value.istitle() else phrase
        return self.lexicon.name(self.rng) if value[0].isupper() else self.lexicon.word(self.rng)

    def free_name(self, values: Sequence[str]) -> str:
        """A name: of the values, of the corpus, or made up."""
        if self.rng.random() < 0.2:
            return self.lexicon.made_up_name(self.rng)
        return self.pick(values)


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
