"""Sums and differences of one to three digits, worked digit by digit in a `<think>` part."""

from __future__ import annotations

import re
import zlib

from tiny.task import Source, Task, after_thinking, assistant, user, with_system
from tiny.words import FOODS, NAMES

ASK_SUM = ("What is {a} + {b}?", "{a} + {b}", "{a}+{b}=", "Add {a} and {b}.", "How much is {a} plus {b}?",
           "What is the sum of {a} and {b}?", "What do {a} and {b} make together?", "{a} plus {b}")
ASK_DIFFERENCE = ("What is {a} - {b}?", "{a} - {b}", "{a}-{b}=", "Take {b} away from {a}.",
                  "How much is {a} minus {b}?", "Subtract {b} from {a}.",
                  "What is the difference of {a} and {b}?", "{a} minus {b}")
STORY_SUM = ("{n} has {a} {f} and gets {b} more. How many {f} does {n} have now?",
             "There are {a} {f} in one basket and {b} in another. How many {f} are there?",
             "{n} picks {a} {f} in the morning and {b} in the evening. How many {f} is that?")
STORY_DIFFERENCE = ("{n} has {a} {f} and gives away {b}. How many {f} are left?",
                    "There were {a} {f}. {n} ate {b} of them. How many {f} are left?",
                    "Of {a} {f}, {b} are sold. How many {f} remain?")


def is_held_out(a: int, b: int, sign: str) -> bool:
    """One in ten pairs is kept out of training."""
    return zlib.crc32(f"{a}{sign}{b}".encode()) % 10 == 0


def work_sum(a: int, b: int) -> str:
    """`47+38: 7+8=15 write 5 carry 1; 4+3+1=8 write 8; 85`."""
    steps, carry = [], 0
    for i in range(max(len(str(a)), len(str(b)))):
        x, y = a // 10**i % 10, b // 10**i % 10
        total = x + y + carry
        terms = f"{x}+{y}" + ("+1" if carry else "")
        carry = total // 10
        steps.append(f"{terms}={total} write {total % 10}" + (" carry 1" if carry else ""))
    if carry:
        steps.append("write 1")
    return f"{a}+{b}: " + "; ".join(steps) + f"; {a + b}"


def work_difference(a: int, b: int) -> str:
    """`92-38: 2-8 borrow 12-8=4; 9-1-3=5; 54`; below zero the other way round first."""
    if a < b:
        return f"{a} is less than {b}. " + work_difference(b, a) + f"; -{b - a}"
    steps, borrow = [], 0
    for i in range(len(str(a))):
        x, y = a // 10**i % 10, b // 10**i % 10
        terms = f"{x}-1-{y}" if borrow else f"{x}-{y}"
        rest = x - borrow - y
        borrow = int(rest < 0)
        if borrow:
            top = f"{x}+10" + terms[1:]
            steps.append(f"{terms} borrow {top}={rest + 10}")
        else:
            steps.append(f"{terms}={rest}")
    return f"{a}-{b}: " + "; ".join(steps) + f"; {a - b}"


def number(source: Source, digits: int) -> int:
    return source.rng.randrange(10 ** (digits - 1) if digits > 1 else 0, 10**digits)


def last_number(answer: str) -> int | None:
    found = re.findall(r"-?\d+", re.sub(r"(\d) *- *(\d)", r"\1 \2", after_thinking(answer)))
    return int(found[-1]) if found else None


def arithmetic(source: Source, digits: tuple[int, int] | None = None) -> Task:
    """`digits`: how many digits the two numbers have; drawn from 1 to 3 when not given."""
    rng = source.rng
    sizes = digits or (rng.choice((1, 2, 2, 2, 3)), rng.choice((1, 2, 2, 2, 3)))
    plus = rng.random() < 0.5
    sign = "+" if plus else "-"
    close = digits is None and rng.random() < 0.2
    while True:
        a, b = number(source, sizes[0]), number(source, sizes[1])
        if close and a > 9:
            b = max(0, a + rng.randrange(-12, 13))  # which of two is less is hard when they are alike
        if is_held_out(a, b, sign) == source.held_out:
            break
    result = a + b if plus else a - b
    story = rng.random() < 0.2 and result >= 0
    food, name = rng.choice(FOODS), rng.choice(NAMES)
    asks = (STORY_SUM if plus else STORY_DIFFERENCE) if story else (ASK_SUM if plus else ASK_DIFFERENCE)
    question = rng.choice(asks).format(a=a, b=b, n=name, f=food)
    work = work_sum(a, b) if plus else work_difference(a, b)
    answer = f"{result} {food}." if story else f"{a} {sign} {b} = {result}"
    return Task("arithmetic", with_system(source, [user(question), assistant(answer, work)]),
                lambda text: last_number(text) == result)
