"""Filling a small JSON object, as asked, from a short text."""

from __future__ import annotations

import random
from typing import Any

from tiny import words
from tiny.chat import to_json
from tiny.task import Source, Task, after_thinking, assistant, parse_json, same_json, user, with_system

# field -> (names of the key, draw, sentence)
Field = tuple[tuple[str, ...], Any, str]


def choose(values: list[str]) -> Any:
    return lambda source: source.pick(values)


def number(low: int, high: int) -> Any:
    return lambda source: source.rng.randrange(low, high)


def weekday(source: Source) -> str:
    return source.rng.choice(words.DAYS)


RECORDS: dict[str, tuple[str, dict[str, Field]]] = {
    "person": ("This is about {name}.", {
        "name": (("name", "person", "first_name"), choose(words.NAMES), ""),
        "age": (("age", "years"), number(5, 90), "{name} is {age} years old."),
        "city": (("city", "home", "town"), choose(words.CITIES), "{name} lives in {city}."),
        "job": (("job", "work", "profession"), choose(words.JOBS), "{name} is a {job}."),
        "pet": (("pet", "animal"), choose(words.ANIMALS), "{name} has a {pet}."),
    }),
    "order": ("{customer} orders something.", {
        "customer": (("customer", "name", "buyer"), choose(words.NAMES), ""),
        "item": (("item", "product", "what"), choose(words.FOODS), "{customer} wants {item}."),
        "count": (("count", "quantity", "amount"), number(1, 99), "The number is {count}."),
        "price": (("price", "cost", "total"), number(1, 500), "The price is {price}."),
        "day": (("day", "date", "delivery"), weekday, "It comes on {day}."),
    }),
    "pet": ("Here is a pet called {name}.", {
        "name": (("name", "pet", "called"), choose(words.PET_NAMES), ""),
        "kind": (("kind", "animal", "species"), choose(words.ANIMALS), "{name} is a {kind}."),
        "colour": (("colour", "color", "fur"), choose(words.COLOURS), "The colour is {colour}."),
        "age": (("age", "years"), number(1, 20), "{name} is {age} years old."),
        "owner": (("owner", "keeper"), choose(words.NAMES), "{owner} takes care of {name}."),
    }),
    "journey": ("{traveller} goes on a journey.", {
        "traveller": (("traveller", "name", "who"), choose(words.NAMES), ""),
        "start": (("from", "start", "origin"), choose(words.CITIES), "The journey begins in {start}."),
        "goal": (("to", "goal", "destination"), choose(words.CITIES), "It ends in {goal}."),
        "day": (("day", "date", "weekday"), weekday, "{traveller} leaves on {day}."),
        "days": (("days", "length", "duration"), number(1, 30), "It takes {days} days."),
    }),
    "book": ('There is a book called "{title}".', {
        "title": (("title", "book", "name"), choose(words.TITLES), ""),
        "author": (("author", "writer", "by"), choose(words.AUTHORS), "{author} wrote it."),
        "year": (("year", "published"), number(1800, 1928), "It is from {year}."),
        "pages": (("pages", "length"), number(40, 900), "It has {pages} pages."),
    }),
}

ASK = ("Fill in this JSON object from the text.", "Fill the JSON from the text.",
       "Read the text and fill in the object.", "Complete this JSON with what the text says.")
ONLY = ("", " Answer with JSON only.", " Give only the JSON.")


def blank(value: Any) -> Any:
    return 0 if isinstance(value, int) else ""


def describe(rng: random.Random, record: str, values: dict[str, Any], told: list[str]) -> str:
    opening, fields = RECORDS[record]
    rng.shuffle(told)
    return " ".join([opening.format(**values)] + [fields[f][2].format(**values) for f in told])


def fill_json(source: Source) -> Task:
    rng = source.rng
    record = rng.choice(list(RECORDS))
    _, fields = RECORDS[record]
    first, *others = fields
    values = {f: draw(source) for f, (_, draw, _) in fields.items()}
    asked = [first, *rng.sample(others, rng.randrange(1, len(others) + 1))]
    rng.shuffle(asked)
    unknown = {rng.choice(asked)} - {first} if rng.random() < 0.15 else set()
    keys: dict[str, str] = {}
    for f in asked:
        keys[f] = rng.choice([k for k in fields[f][0] if k not in keys.values()])
    told = [f for f in others if f not in unknown and (f in asked or rng.random() < 0.5)]
    text = describe(rng, record, values, told)
    form = to_json({keys[f]: blank(values[f]) for f in asked})
    filled = {keys[f]: None if f in unknown else values[f] for f in asked}
    request = rng.choice(ASK) + rng.choice(ONLY)
    if unknown or rng.random() < 0.2:
        request += " Use null for what is not said."
    parts = [f"Text: {text}", f"JSON: {form}"]
    rng.shuffle(parts)
    question = "\n".join([request, *parts])
    return Task("fill_json", with_system(source, [user(question), assistant(to_json(filled))]),
                lambda answer: same_json(parse_json(after_thinking(answer)), filled))
