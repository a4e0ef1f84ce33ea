"""Generated tasks: their own answers are right, others are not, and sums are kept apart.

Run with `python3 -m pytest tests/tools`.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from tiny import arithmetic, recall, tool_calls  # noqa: E402
from tiny.chat import ASSISTANT, END, render  # noqa: E402
from tiny.corpus import Book, Passages, split_books  # noqa: E402
from tiny.fill_json import fill_json  # noqa: E402
from tiny.lexicon import Lexicon  # noqa: E402
from tiny.task import Source, Task, parse_json, same_json  # noqa: E402

SENTENCE = "Then old Rebecca went down to the river and saw the little boat, and Rebecca was glad. "
MAKERS = [arithmetic.arithmetic, recall.recall, tool_calls.tool_call, tool_calls.tool_result, fill_json]


def source(seed: int, held_out: bool = False) -> Source:
    books = [Book("Boats", [SENTENCE * 4] * 40)]
    passages = Passages(books)
    return Source(random.Random(seed), passages, Lexicon(books, passages), held_out)


def own_answer(task: Task) -> str:
    pytest.importorskip("jinja2")
    return render(task.messages[-1:])[len(ASSISTANT):-len(END)]


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_own_answer_is_right_and_another_is_wrong(make) -> None:
    draw = source(1)
    tasks = [make(draw) for _ in range(200)]
    assert all(t.right(own_answer(t)) for t in tasks)
    assert not any(t.right("I do not know.") for t in tasks)


def test_worked_sums_end_in_the_result() -> None:
    for a in (0, 7, 47, 99, 100, 302, 999):
        for b in (0, 5, 38, 99, 100, 305, 999):
            assert arithmetic.work_sum(a, b).endswith(f"; {a + b}")
            assert arithmetic.work_difference(a, b).endswith(f"; {a - b}")


def test_held_out_sums_are_not_trained_on() -> None:
    def questions(held_out: bool) -> set[str]:
        draw = source(2, held_out)
        answers = (arithmetic.arithmetic(draw, (2, 2)).messages[-1]["content"] for _ in range(3000))
        return {a for a in answers if "=" in a}

    assert not questions(True) & questions(False)


def test_last_number_reads_a_minus_only_as_a_sign() -> None:
    assert arithmetic.last_number("<think>\n1\n</think>\n\n8 - 47 = -39") == -39
    assert arithmetic.last_number("47 - 8") == 8
    assert arithmetic.last_number("none") is None


def test_calls_that_are_not_well_formed_are_none() -> None:
    good = '<tool_call>\n{"name": "a", "arguments": {}}\n</tool_call>'
    assert tool_calls.call_of(good) == {"name": "a", "arguments": {}}
    for bad in ("", good + good, good.replace("}\n", "\n"), good.replace("{}", "1"),
                good.replace('"name"', '"title"')):
        assert tool_calls.call_of(bad) is None


def test_json_values_are_compared_by_type() -> None:
    assert same_json({"a": 1, "b": 2}, {"b": 2, "a": 1})
    assert not same_json({"a": 1}, {"a": True})
    assert not same_json({"a": 1}, {"a": "1"})
    assert parse_json("{") is None


def test_books_are_split_at_their_titles() -> None:
    text = "=== One — A (1900; id 1) ===\n\na b\n\nc\n=== Two — B (1901; id 2) ===\n\nd\n"
    assert split_books(text) == [Book("One", ["a b", "c"]), Book("Two", ["d"])]
