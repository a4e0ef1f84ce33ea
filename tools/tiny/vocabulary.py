"""The byte-level BPE tokenizer of weir-tiny."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from tiny.chat import CONTROL, MARKUP

# Words carry the space before them, digits stand alone, line ends stand alone.
PATTERN = (r"'(?:[sdmt]|ll|ve|re)(?!\p{L})| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s*[\r\n]+"
           r"|\s+(?!\S)|\s+")


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(PATTERN), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, min_frequency=2, show_progress=False,
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in CONTROL + MARKUP],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(texts, trainer)
    return with_visible_markup(tokenizer)


def with_visible_markup(tokenizer: Tokenizer) -> Tokenizer:
    """The trainer marks all its tokens special; those of MARKUP are part of the text."""
    data = json.loads(tokenizer.to_str())
    for token in data["added_tokens"]:
        token["special"] = token["content"] not in MARKUP
    return Tokenizer.from_str(json.dumps(data, ensure_ascii=False))


def load_tokenizer(path: Path) -> Tokenizer:
    return Tokenizer.from_file(str(path))
