"""Writes models/weir-tiny/expected.safetensors, against which `weir check` holds the server.

    tiny_expected.py --corpus ../shared/corpus models/weir-tiny

Four prompts of 1, 5, 13 and 16 tokens (a row of logits is 32 kB, and the file is in the repository);
logits of tools/hybrid_reference.py in float32 from the bf16 weights, and 56 tokens of greedy continuation
of the first three. The last prompt is the beginning of a longer one: its logits are as good alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from safetensors.torch import save_file
from tokenizers import Tokenizer

from hybrid_reference import expected_outputs, load_checkpoint
from tiny.chat import USER, render
from tiny.corpus import Corpus, read_corpus
from tiny.vocabulary import load_tokenizer

LONG_PROMPT = 84  # tokens
KEPT_TOKENS = 16  # of it and of its logits
GREEDY_TOKENS = 56
FACT, QUESTION = "The code of the red gate is 4821. ", " What is the code of the red gate?"


def question(text: str) -> str:
    return render([{"role": "user", "content": text}], add_generation_prompt=True)


def make_prompts(tokenizer: Tokenizer, corpus: Corpus) -> list[list[int]]:
    """A lone token, plain text, a sum, and a fact to recall across held-out text."""
    filler = tokenizer.encode(" ".join(corpus.held_out[0].paragraphs)).ids
    room = LONG_PROMPT - len(tokenizer.encode(question(FACT + QUESTION)).ids)
    texts = [USER, "Once upon a time there", question("What is 47 + 38?"),
             question(FACT + tokenizer.decode(filler[:room]) + QUESTION)]
    return [tokenizer.encode(text).ids for text in texts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("--corpus", type=Path, required=True)
    args = parser.parse_args()
    tokenizer = load_tokenizer(args.model_dir / "tokenizer.json")
    config, tensors = load_checkpoint(args.model_dir)
    expected = expected_outputs(config, tensors, make_prompts(tokenizer, read_corpus(args.corpus)),
                                GREEDY_TOKENS)
    for i in range(4):
        print(repr(tokenizer.decode(expected[f"greedy_{i}"].tolist(), skip_special_tokens=False)))
    for name in ("prompt_3", "logits_3"):
        expected[name] = expected[name][:KEPT_TOKENS].contiguous()
    del expected["greedy_3"]
    save_file(expected, args.model_dir / "expected.safetensors")


if __name__ == "__main__":
    main()
