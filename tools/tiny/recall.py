"""Answering from facts given earlier in the prompt, a few words or more than a thousand tokens before."""

from __future__ import annotations

from dataclasses import dataclass

from tiny.chat import Message
from tiny.task import Source, Task, assistant, says, user, with_system
from tiny.words import (ADJECTIVES, ANIMALS, CITIES, COLOURS, CONTAINERS, FOODS, JOBS, NAMES, OBJECTS,
                        PET_NAMES, PLACES)

CHARACTERS_PER_TOKEN = 4.0


@dataclass(frozen=True)
class Fact:
    key: str  # two facts of one prompt never share it
    text: str
    questions: tuple[str, ...]
    answer: str
    needed: str


def code_fact(source: Source) -> Fact:
    rng = source.rng
    code = "".join(rng.choice("0123456789") for _ in range(rng.choice((3, 4, 4, 5))))
    lock = rng.choice(("gate", "safe", "door", "chest", "cellar", "tower", "vault", "office"))
    thing = f"the {source.pick(COLOURS)} {lock}"
    return Fact(f"code {thing}", f"The code of {thing} is {code}.",
                (f"What is the code of {thing}?", f"Which code opens {thing}?"),
                f"The code of {thing} is {code}.", code)


def number_fact(source: Source) -> Fact:
    name, number = source.free_name(NAMES), str(source.rng.randrange(100, 10000))
    return Fact(f"number {name}", f"The number of {name} is {number}.",
                (f"What is the number of {name}?", f"Which number has {name}?"),
                f"The number of {name} is {number}.", number)


def keeping_fact(source: Source) -> Fact:
    name, thing = source.free_name(NAMES), f"{source.pick(ADJECTIVES)} {source.pick(OBJECTS)}"
    where = f"in the {source.pick(CONTAINERS)} in the {source.pick(PLACES)}"
    return Fact(f"keep {name} {thing}", f"{name} keeps the {thing} {where}.",
                (f"Where does {name} keep the {thing}?", f"Where is the {thing} of {name}?"),
                f"{name} keeps the {thing} {where}.", where)


def colour_fact(source: Source) -> Fact:
    name, colour = source.free_name(NAMES), source.pick(COLOURS)
    return Fact(f"colour {name}", f"The favourite colour of {name} is {colour}.",
                (f"What is the favourite colour of {name}?", f"Which colour does {name} like best?"),
                f"The favourite colour of {name} is {colour}.", colour)


def city_fact(source: Source) -> Fact:
    name, city = source.free_name(NAMES), source.free_name(CITIES)
    return Fact(f"city {name}", f"{name} lives in {city}.",
                (f"Where does {name} live?", f"In which city does {name} live?"),
                f"{name} lives in {city}.", city)


def pet_fact(source: Source) -> Fact:
    name, animal, pet = source.free_name(NAMES), source.pick(ANIMALS), source.free_name(PET_NAMES)
    return Fact(f"pet {name} {animal}", f"{name} has a {animal} called {pet}.",
                (f"What is the {animal} of {name} called?", f"How does {name} call the {animal}?"),
                f"The {animal} of {name} is called {pet}.", pet)


def word_fact(source: Source) -> Fact:
    word, owner = source.pick(OBJECTS + ANIMALS + PLACES), f"the {source.pick(JOBS)}"
    return Fact(f"word {owner}", f"The secret word of {owner} is {word}.",
                (f"What is the secret word of {owner}?", f"Which word must I say to {owner}?"),
                f"The secret word of {owner} is {word}.", word)


def job_fact(source: Source) -> Fact:
    name, job = source.free_name(NAMES), source.pick(JOBS)
    return Fact(f"job {name}", f"{name} works as a {job}.",
                (f"What does {name} work as?", f"What is the work of {name}?"),
                f"{name} works as a {job}.", job)


def hidden_fact(source: Source) -> Fact:
    thing, place = f"{source.pick(ADJECTIVES)} {source.pick(OBJECTS)}", source.pick(PLACES)
    return Fact(f"hidden {thing}", f"The {thing} is hidden in the {place}.",
                (f"Where is the {thing} hidden?", f"Where can I find the {thing}?"),
                f"The {thing} is hidden in the {place}.", f"in the {place}")


def own_name_fact(source: Source) -> Fact:
    name = source.free_name(NAMES)
    return Fact("own name", source.rng.choice((f"My name is {name}.", f"I am called {name}.")),
                ("What is my name?", "What am I called?"), f"Your name is {name}.", name)


def own_thing_fact(source: Source) -> Fact:
    whose = source.rng.choice((*ANIMALS, *RELATIONS, source.lexicon.word(source.rng)))
    name = source.free_name(PET_NAMES + NAMES)
    told = (f"My {whose} is called {name}.", f"The name of my {whose} is {name}.")
    return Fact(f"own {whose}", source.rng.choice(told),
                (f"What is my {whose} called?", f"What is the name of my {whose}?"),
                f"Your {whose} is called {name}.", name)


def own_city_fact(source: Source) -> Fact:
    city = source.free_name(CITIES)
    return Fact("own city", f"I live in {city}.", ("Where do I live?", "In which city do I live?"),
                f"You live in {city}.", city)


def own_favourite_fact(source: Source) -> Fact:
    values = source.rng.choice((COLOURS, ANIMALS, FOODS, PLACES))
    kind = {id(COLOURS): "colour", id(ANIMALS): "animal", id(FOODS): "food", id(PLACES): "place"}
    what, value = kind[id(values)], source.pick(values)
    return Fact(f"own favourite {what}", f"My favourite {what} is {value}.",
                (f"What is my favourite {what}?", f"Which {what} do I like best?"),
                f"Your favourite {what} is {value}.", value)


FACTS = (code_fact, number_fact, keeping_fact, colour_fact, city_fact, pet_fact, word_fact, job_fact,
         hidden_fact, own_name_fact, own_thing_fact, own_thing_fact, own_city_fact, own_favourite_fact)
RELATIONS = ("sister", "brother", "mother", "father", "friend", "teacher", "aunt", "uncle", "cousin",
             "village", "street", "boat", "school", "doll")


def facts(source: Source, count: int) -> list[Fact]:
    out: dict[str, Fact] = {}
    while len(out) < count:
        new = source.rng.choice(FACTS)(source)
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
