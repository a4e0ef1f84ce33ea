"""The story corpus: books as lists of paragraphs, with a part of each book held out."""

from __future__ import annotations

import lzma
import random
import re
from dataclasses import dataclass
from pathlib import Path

FILES = ("stories.txt.xz", "prose.txt.xz")
HELD_OUT = (0.90, 0.92)  # this part of every book is never trained on


@dataclass(frozen=True)
class Book:
    title: str
    paragraphs: list[str]


@dataclass(frozen=True)
class Corpus:
    train: list[Book]
    held_out: list[Book]


def split_books(text: str) -> list[Book]:
    """`=== Title — Author (year; id N) ===` opens a book; a blank line ends a paragraph."""
    parts = re.split(r"^=== (.+?) — .+? ===$", text, flags=re.M)
    books = []
    for title, body in zip(parts[1::2], parts[2::2], strict=True):
        paragraphs = [p.strip() for p in re.split(r"\n\s*\n", body)]
        books.append(Book(title, [p for p in paragraphs if p]))
    return books


def read_corpus(folder: Path) -> Corpus:
    """All books of the corpus folder, each cut in a trained and a held-out part."""
    train, held_out = [], []
    for name in FILES:
        with lzma.open(folder / name, "rt", encoding="utf-8") as f:
            books = split_books(f.read())
        for book in books:
            n = len(book.paragraphs)
            start, end = (int(n * part) for part in HELD_OUT)
            train.append(Book(book.title, book.paragraphs[:start]))
            train.append(Book(book.title, book.paragraphs[end:]))
            held_out.append(Book(book.title, book.paragraphs[start:end]))
    return Corpus(train, held_out)


class Passages:
    """Random runs of paragraphs, long books as likely as their length."""

    def __init__(self, books: list[Book]) -> None:
        self.books = [b for b in books if len(b.paragraphs) >= 2]
        self.weights = [sum(map(len, b.paragraphs)) for b in self.books]

    def start(self, rng: random.Random) -> tuple[Book, int]:
        book = rng.choices(self.books, self.weights)[0]
        return book, rng.randrange(len(book.paragraphs))

    def take(self, rng: random.Random, characters: int) -> list[str]:
        """Whole paragraphs from a random place, in all at least `characters` long."""
        out: list[str] = []
        length = 0
        while length < characters:
            book, at = self.start(rng)
            while at < len(book.paragraphs) and length < characters:
                out.append(book.paragraphs[at])
                length += len(book.paragraphs[at]) + 2
                at += 1
        return out

    def cut(self, rng: random.Random, characters: int) -> list[str]:
        """Like take, but the last paragraph ends at a sentence near `characters`."""
        out = self.take(rng, characters)
        excess = sum(len(p) + 2 for p in out) - characters
        last = out[-1]
        if excess > 0 and excess < len(last):
            stop = last.rfind(". ", 0, len(last) - excess)
            out[-1] = last[: stop + 1] if stop > 0 else last[: len(last) - excess].rsplit(" ", 1)[0]
        return [p for p in out if p]
