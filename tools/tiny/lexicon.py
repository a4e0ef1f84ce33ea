"""Words beyond the lists: names and words of the corpus, made-up names, short phrases.

So that what is asked for must be read from the prompt and cannot be one of a few known answers.
"""

from __future__ import annotations

import random
import re
from collections import Counter

from tiny.corpus import Book, Passages

OPENINGS = """b br c ch cl d dr f fl g gr h j k kr l m n p pl r s sh st t tr v w z""".split()
VOWELS = """a e i o u ai ea oo""".split()
CLOSINGS = """ n r l m s x ck nd th rt""".split(" ")


class Lexicon:
    """Drawn from training text alone."""

    def __init__(self, books: list[Book], passages: Passages) -> None:
        self.passages = passages
        small: Counter[str] = Counter()
        capital: Counter[str] = Counter()
        for book in books:
            for paragraph in book.paragraphs:
                small.update(re.findall(r"(?<=[a-z,] )[a-z]{3,10}\b", paragraph))
                capital.update(re.findall(r"(?<=[a-z,] )[A-Z][a-z]{2,9}\b", paragraph))
        self.words = sorted(w for w, n in small.items() if n >= 30)
        self.names = sorted(w for w, n in capital.items() if n >= 25 and small[w.lower()] < n)

    def name(self, rng: random.Random) -> str:
        return rng.choice(self.names)

    def made_up_name(self, rng: random.Random) -> str:
        syllables = rng.choice((1, 2, 2, 3))
        parts = [rng.choice(OPENINGS) + rng.choice(VOWELS) for _ in range(syllables)]
        return ("".join(parts) + rng.choice(CLOSINGS)).capitalize()

    def word(self, rng: random.Random) -> str:
        return rng.choice(self.words)

    def phrase(self, rng: random.Random) -> str:
        """Three to six words that follow each other somewhere."""
        while True:
            book, at = self.passages.start(rng)
            runs = re.findall(r"[a-z]+(?: [a-z]+){2,5}", book.paragraphs[at])
            if runs:
                return rng.choice(runs)
