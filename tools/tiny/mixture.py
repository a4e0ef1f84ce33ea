"""The training mixture and its packing into rows of tokens."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from tiny.arithmetic import arithmetic
from tiny.chat import CONTROL, END_OF_TEXT, encode_chat, render
from tiny.corpus import Book, Passages
from tiny.fill_json import fill_json
from tiny.lexicon import Lexicon
from tiny.recall import recall
from tiny.tales import continue_tale, invent_tale, talk
from tiny.task import Source, Task
from tiny.tool_calls import tool_call, tool_result

# (generator, share of the tokens, about how many tokens one has, weight of its learned tokens).
# Text alone has weight 1. Of a recall only some twenty tokens in six hundred are learned.
MIXTURE: tuple[tuple[Callable[[Source], Task], float, float, float], ...] = (
    (continue_tale, 0.14, 740, 1.0), (invent_tale, 0.10, 520, 1.0), (recall, 0.34, 600, 5.0),
    (arithmetic, 0.08, 70, 2.0), (tool_call, 0.11, 210, 3.0), (tool_result, 0.06, 225, 3.0),
    (fill_json, 0.06, 90, 3.0), (talk, 0.01, 40, 2.0),
)
PROSE_SHARE = 0.10  # plain text, all of it learned; it also fills what the tasks leave of a row
END_OF_TEXT_ID = CONTROL.index(END_OF_TEXT)


@dataclass(frozen=True)
class Rows:
    ids: np.ndarray  # uint16 [rows, length + 1]
    weights: np.ndarray  # float16 [rows, length + 1]: of each token in the loss


def tokenize_books(tokenizer: Tokenizer, books: list[Book]) -> np.ndarray:
    """All books end to end, uint16 [tokens]."""
    texts = ["\n\n".join(b.paragraphs) for b in books if b.paragraphs]
    parts = []
    for encoding in tokenizer.encode_batch(texts):
        parts += [np.array(encoding.ids, np.uint16), np.array([END_OF_TEXT_ID], np.uint16)]
    return np.concatenate(parts)


class RowMaker:
    """Rows of conversations that follow each other, the rest of the row plain text."""

    def __init__(self, tokenizer: Tokenizer, books: list[Book], length: int) -> None:
        self.tokenizer, self.length = tokenizer, length
        self.passages = Passages(books)
        self.lexicon = Lexicon(books, self.passages)
        self.text = tokenize_books(tokenizer, books)
        self.makers = [m[0] for m in MIXTURE]
        self.odds = [share / size for _, share, size, _ in MIXTURE]
        self.weight = {m[0]: m[3] for m in MIXTURE}

    def prose(self, rng: random.Random, count: int) -> list[int]:
        at = rng.randrange(len(self.text) - count)
        return self.text[at : at + count].tolist()

    def row(self, rng: random.Random) -> tuple[list[int], list[float]]:
        size = self.length + 1
        if rng.random() < PROSE_SHARE:
            return self.prose(rng, size), [1.0] * size
        source = Source(rng, self.passages, self.lexicon)
        ids: list[int] = []
        weights: list[float] = []
        misfits = 0
        while misfits < 3 and size - len(ids) > 64:
            maker = rng.choices(self.makers, self.odds)[0]
            task = maker(source)
            new, learned = encode_chat(self.tokenizer, task.messages, task.tools)
            if len(ids) + len(new) + 1 > size:
                misfits += 1
                continue
            ids += [*new, END_OF_TEXT_ID]
            weights += [self.weight[maker] * bit for bit in learned] + [0.0]
        rest = size - len(ids)
        return ids + self.prose(rng, rest), weights + [1.0] * rest

    def rows(self, seed: int, count: int) -> Rows:
        rng = random.Random(seed)
        made = [self.row(rng) for _ in range(count)]
        return Rows(np.array([m[0] for m in made], np.uint16), np.array([m[1] for m in made], np.float16))


def sample_texts(books: list[Book], seed: int, count: int) -> Iterator[str]:
    """Conversations as text, for training the tokenizer."""
    rng = random.Random(seed)
    passages = Passages(books)
    source = Source(rng, passages, Lexicon(books, passages))
    small = [m for m in MIXTURE if m[0] not in (continue_tale, invent_tale, recall)]
    for _ in range(count):
        task = rng.choice(small)[0](source)
        yield render(task.messages, task.tools)
