"""Answering from facts given earlier in the prompt, a few words or more than a thousand tokens before."""

from __future__ import annotations

from dataclasses import dataclass

from tiny.chat import Message
from tiny.task import Source, Task, assistant, says, user, with_system
from tiny.words import (ADJECTIVES, ANIMALS, CITIES, COLOURS, CONTAINERS, JOBS, NAMES, OBJECTS,
                        PET_NAMES, PLACES)

CHARACTERS_PER_TOKEN = 4.0


@dataclass(frozen=True)
class Fact:
    key: str  # two facts of one prompt never share it
    text: str
    questions: tuple[str, ...]
    answer: str
    needed: str


def fact(source: Source) -> Fact:
    rng = source.rng
    name, thing = rng.choice(NAMES), f"{rng.choice(ADJECTIVES)} {rng.choice(OBJECTS)}"
    place = rng.choice(PLACES)
    kind = rng.randrange(9)
    if kind == 0:
        code = "".join(rng.choice("0123456789") for _ in range(rng.choice((3, 4, 4, 5))))
        lock = rng.choice(("gate", "safe", "door", "chest", "cellar", "tower", "vault", "office"))
        colour = rng.choice(COLOURS)
        return Fact(f"code {colour} {lock}", f"The code of the {colour} {lock} is {code}.",
                    (f"What is the code of the {colour} {lock}?",
                     f"Which code opens the {colour} {lock}?"),
                    f"The code of the {colour} {lock} is {code}.", code)
    if kind == 1:
        number = str(rng.randrange(100, 10000))
        return Fact(f"number {name}", f"The number of {name} is {number}.",
                    (f"What is the number of {name}?", f"Which number has {name}?"),
                    f"The number of {name} is {number}.", number)
    if kind == 2:
        where = f"in the {rng.choice(CONTAINERS)} in the {place}"
        return Fact(f"keep {name} {thing}", f"{name} keeps the {thing} {where}.",
                    (f"Where does {name} keep the {thing}?", f"Where is the {thing} of {name}?"),
                    f"{name} keeps the {thing} {where}.", where)
    if kind == 3:
        colour = rng.choice(COLOURS)
        return Fact(f"colour {name}", f"The favourite colour of {name} is {colour}.",
                    (f"What is the favourite colour of {name}?", f"Which colour does {name} like best?"),
                    f"The favourite colour of {name} is {colour}.", colour)
    if kind == 4:
        city = rng.choice(CITIES)
        return Fact(f"city {name}", f"{name} lives in {city}.",
                    (f"Where does {name} live?", f"In which city does {name} live?"),
                    f"{name} lives in {city}.", city)
    if kind == 5:
        animal, pet = rng.choice(ANIMALS), rng.choice(PET_NAMES)
        return Fact(f"pet {name} {animal}", f"{name} has a {animal} called {pet}.",
                    (f"What is the {animal} of {name} called?", f"How does {name} call the {animal}?"),
                    f"The {animal} of {name} is called {pet}.", pet)
    if kind == 6:
        word = rng.choice(OBJECTS + ANIMALS + PLACES)
        owner = f"the {rng.choice(JOBS)}"
        return Fact(f"word {owner}", f"The secret word of {owner} is {word}.",
                    (f"What is the secret word of {owner}?", f"Which word must I say to {owner}?"),
                    f"The secret word of {owner} is {word}.", word)
    if kind == 7:
        job = rng.choice(JOBS)
        return Fact(f"job {name}", f"{name} works as a {job}.",
                    (f"What does {name} work as?", f"What is the work of {name}?"),
                    f"{name} works as a {job}.", job)
    other = rng.choice(PLACES)
    return Fact(f"hidden {thing}", f"The {thing} is hidden in the {other}.",
                (f"Where is the {thing} hidden?", f"Where can I find the {thing}?"),
                f"The {thing} is hidden in the {other}.", f"in the {other}")


def facts(source: Source, count: int) -> list[Fact]:
    out: dict[str, Fact] = {}
    while len(out) < count:
        new = fact(source)
        out.setdefault(new.key, new)
    return list(out.values())


def scatter(source: Source, given: list[Fact], filler: list[str], far: bool) -> str:
    """The facts among the filler paragraphs; `far`: all before the filler."""
    rng = source.rng
    if far or not filler:
        return "\n\n".join([" ".join(f.text for f in given), *filler])
    pieces = list(filler)
    for f in given:
        pieces.insert(rng.randrange(len(pieces) + 1), f.text)
    return "\n\n".join(pieces)


INTRODUCE = ("Remember this. ", "Read this and answer the question below.\n\n", "",
             "Here is what you need to know: ", "Keep in mind: ")
NOTED = ("I will remember that.", "Noted.", "Good to know.", "I have read it.")
READ_ON = ("Read this too.\n\n", "Here is a tale.\n\n", "Listen to this.\n\n", "")


def ask(source: Source, f: Fact) -> str:
    question = source.rng.choice(f.questions)
    return source.rng.choice((question, question, f"Question: {question}", f"Tell me: {question}"))


def recall(source: Source, tokens: int | None = None, room: int = 1700) -> Task:
    """`tokens`: filler between all facts and the question; else drawn, near or far, up to `room`."""
    rng = source.rng
    far = tokens is not None or rng.random() < 0.4
    if tokens is None:
        near = rng.random() < 0.35
        tokens = rng.randrange(0, 200) if near else rng.randrange(100, max(101, room - 300))
    characters = int(tokens * CHARACTERS_PER_TOKEN)
    filler = source.passages.cut(rng, characters) if characters > 60 else []
    given = facts(source, rng.choice((1, 2, 3, 4, 6)))
    asked = rng.sample(given, min(len(given), rng.choice((1, 1, 2, 3))))
    messages: list[Message] = []
    if rng.random() < 0.5:  # one message holds facts, filler and the first question
        text = rng.choice(INTRODUCE) + scatter(source, given, filler, far)
        gap = "\n\n" if filler or rng.random() < 0.5 else " "
        messages += [user(text + gap + ask(source, asked[0])), assistant(asked[0].answer)]
    else:
        messages += [user(rng.choice(INTRODUCE) + " ".join(f.text for f in given)),
                     assistant(rng.choice(NOTED))]
        if filler:
            text = rng.choice(READ_ON) + "\n\n".join(filler)
            messages += [user(text), assistant(rng.choice(NOTED))]
        messages += [user(ask(source, asked[0])), assistant(asked[0].answer)]
    for f in asked[1:]:
        messages += [user(ask(source, f)), assistant(f.answer)]
    return Task("recall", with_system(source, messages), says(asked[-1].needed))
