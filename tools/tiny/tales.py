"""Continuing and inventing tales, and a little small talk."""

from __future__ import annotations

import re

from tiny.task import Source, Task, assistant, user, with_system
from tiny.words import TALE_WORDS, with_article

CONTINUE = ("Continue this tale: {t}", "Go on with this tale.\n\n{t}", "What happens next?\n\n{t}",
            "Please continue:\n\n{t}")
INVENT = ("Tell me a tale about {w}.", "Tell a tale about {w}.", "Write a story about {w}.",
          "Invent a tale with {w}.", "Can you tell me a story about {w}?")
OPEN = ("Tell me a tale.", "Tell me a story.", "I want to hear a story.", "Invent a tale.")

TALK = (
    (("Hello!", "Hi!", "Good morning!", "Hello, who is there?", "Hi there."),
     ("Hello! What can I do for you?", "Hello! Shall I tell you a tale?")),
    (("Who are you?", "What are you?", "What is your name?"),
     ("I am weir-tiny, a small language model. I tell tales, add and subtract, remember what you tell "
      "me, fill in JSON and call tools.",)),
    (("What can you do?", "How can you help me?", "Help"),
     ("I can tell and continue tales, add and subtract, answer from what you told me, fill in JSON "
      "and call tools.",)),
    (("Thank you!", "Thanks.", "Thank you, that is all."), ("You are welcome.", "Gladly.")),
    (("Goodbye.", "Bye!", "Good night."), ("Goodbye!", "Farewell, and come again.")),
    (("How are you?", "Are you well?"), ("I am well, thank you. What can I do for you?",)),
)


def subjects(source: Source, text: str) -> list[str]:
    """Up to three words of the passage that a tale can be about."""
    found = sorted(set(re.findall(r"[a-z]+", text)) & TALE_WORDS)
    return source.rng.sample(found, min(len(found), source.rng.choice((1, 2, 2, 3))))


def join_words(words: list[str]) -> str:
    articled = [with_article(w) for w in words]
    return articled[0] if len(articled) == 1 else ", ".join(articled[:-1]) + " and " + articled[-1]


def continue_tale(source: Source) -> Task:
    rng = source.rng
    paragraphs: list[str] = []
    while len(paragraphs) < 2:
        paragraphs = source.passages.take(rng, rng.randrange(800, 4500))
    at = rng.randrange(1, max(2, len(paragraphs) * 2 // 3))
    question = rng.choice(CONTINUE).format(t="\n\n".join(paragraphs[:at]))
    answer = "\n\n".join(paragraphs[at:])
    return Task("tale", with_system(source, [user(question), assistant(answer)]), lambda text: True)


def invent_tale(source: Source) -> Task:
    rng = source.rng
    paragraphs = source.passages.take(rng, rng.randrange(400, 3000))
    chosen = subjects(source, " ".join(paragraphs))
    question = rng.choice(INVENT).format(w=join_words(chosen)) if chosen else rng.choice(OPEN)
    messages = [user(question), assistant("\n\n".join(paragraphs))]
    return Task("tale", with_system(source, messages), lambda text: True)


def talk(source: Source) -> Task:
    messages = []
    for questions, answers in source.rng.sample(TALK, source.rng.choice((1, 1, 2, 3))):
        messages += [user(source.rng.choice(questions)), assistant(source.rng.choice(answers))]
    return Task("talk", with_system(source, messages), lambda text: True)
