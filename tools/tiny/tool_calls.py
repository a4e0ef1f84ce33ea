"""Calling a tool from the schemas in the prompt, and saying its result.

Names of functions and parameters vary, so that the schema must be read to call right.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tiny import words
from tiny.chat import Message, to_json
from tiny.task import Source, Task, assistant, parse_json, same_json, says, user, with_system

Values = dict[str, Any]
Draw = Callable[[Source], Any]


def one_of(values: Sequence[str]) -> Draw:
    return lambda source: source.rng.choice(values)


def like(values: Sequence[str]) -> Draw:
    return lambda source: source.pick(values)


def between(low: int, high: int) -> Draw:
    return lambda source: source.rng.randrange(low, high)


def clock(source: Source) -> str:
    minutes = source.rng.choice((0, 5, 10, 15, 20, 30, 40, 45, 50))
    return f"{source.rng.randrange(24):02d}:{minutes:02d}"


@dataclass(frozen=True)
class Param:
    key: str  # how the questions name it
    names: tuple[str, ...]  # how a schema may name it
    about: str
    draw: Draw
    kind: str = "string"
    choices: tuple[str, ...] = ()

    def schema(self) -> Message:
        out: Message = {"type": self.kind, "description": self.about}
        return out | ({"enum": list(self.choices)} if self.choices else {})


@dataclass(frozen=True)
class Family:
    names: tuple[str, ...]
    about: tuple[str, ...]
    params: tuple[Param, ...]
    questions: tuple[str, ...]
    result: dict[str, Draw] = field(default_factory=dict)
    answers: tuple[str, ...] = ()


MONEY = ("EUR", "USD", "GBP", "JPY", "NOK", "CHF")
CITY = Param("city", ("city", "place", "location", "town"), "name of the city", like(words.CITIES))
FOOD = Param("item", ("item", "thing", "product", "name"), "what it is", like(words.FOODS))
COUNT = Param("count", ("count", "amount", "number", "quantity"), "how many", between(1, 60), "integer")
TIME = Param("time", ("time", "at", "hour", "when"), "time of day, HH:MM", clock)
ROOM = Param("room", ("room", "place", "where"), "which room", like(words.ROOMS))
PERSON = Param("name", ("name", "person", "to", "who"), "name of the person", like(words.NAMES))
TEXT = Param("text", ("text", "message", "content", "body"), "the text", like(words.ERRANDS))

FAMILIES = (
    Family(("get_weather", "weather", "current_weather", "weather_now", "lookup_weather"),
           ("Weather of a city.", "Get the current weather."), (CITY,),
           ("What is the weather in {city}?", "How warm is it in {city}?", "Is it raining in {city}?",
            "Tell me the weather in {city} today."),
           {"temperature": between(-10, 36), "sky": one_of(["sunny", "cloudy", "rainy", "snowy"])},
           ("It is {temperature} degrees and {sky} in {city}.",)),
    Family(("set_alarm", "alarm", "wake_me", "new_alarm"), ("Set an alarm.", "Wake the user."), (TIME,),
           ("Wake me at {time}.", "Set an alarm for {time}.", "I must get up at {time}."),
           {"status": one_of(["ok"])}, ("The alarm is set for {time}.",)),
    Family(("send_message", "message", "send_text", "write_to"), ("Send a message to a person.",),
           (PERSON, TEXT),
           ('Send {name} the message "{text}".', 'Write to {name}: "{text}".', 'Tell {name} "{text}".'),
           {"status": one_of(["sent", "delivered"])}, ("The message to {name} was {status}.",)),
    Family(("convert_money", "exchange", "convert_currency", "currency"), ("Convert money.",),
           (Param("amount", ("amount", "value", "sum"), "how much", between(1, 500), "integer"),
            Param("source", ("from", "source", "from_currency"), "currency to convert from",
                  one_of(list(MONEY)), "string", MONEY),
            Param("target", ("to", "target", "to_currency"), "currency to convert to",
                  one_of(list(MONEY)), "string", MONEY)),
           ("How much is {amount} {source} in {target}?", "Convert {amount} {source} to {target}.",
            "Change {amount} {source} into {target}."),
           {"result": between(1, 900)}, ("{amount} {source} is {result} {target}.",)),
    Family(("add_to_list", "shopping_list", "add_item", "put_on_list"), ("Put something on a list.",),
           (FOOD, COUNT),
           ("Put {count} {item} on my list.", "Add {count} {item} to the shopping list.",
            "I need {count} {item}, please write it down."),
           {"status": one_of(["ok", "added"])}, ("I put {count} {item} on the list.",)),
    Family(("find_book", "search_book", "library", "book_search"), ("Find a book in the library.",),
           (Param("title", ("title", "book", "name", "query"), "title of the book",
                  like(words.TITLES)),),
           ('Who wrote "{title}"?', 'Find the book "{title}".', 'Where is the book "{title}"?'),
           {"author": like(words.AUTHORS), "shelf": between(1, 99)},
           ("{title} by {author} is on shelf {shelf}.",)),
    Family(("book_table", "reserve_table", "reservation", "table"), ("Reserve a table.",),
           (Param("people", ("people", "guests", "persons", "seats"), "number of guests",
                  between(1, 12), "integer"), TIME),
           ("Book a table for {people} at {time}.", "Reserve a table at {time} for {people} people.",
            "We are {people} and want to eat at {time}."),
           {"table": between(1, 40)}, ("Table {table} is reserved for {people} at {time}.",)),
    Family(("translate", "translate_text", "translator"), ("Translate a text.",),
           (TEXT, Param("language", ("language", "to", "target"), "language to translate to",
                        like(words.LANGUAGES))),
           ('Translate "{text}" into {language}.', 'What is "{text}" in {language}?',
            'How do I say "{text}" in {language}?')),
    Family(("set_light", "light", "dim_light", "lamp"), ("Set the light of a room.",),
           (ROOM, Param("level", ("level", "brightness", "percent"), "brightness from 0 to 100",
                        between(0, 101), "integer")),
           ("Set the light in the {room} to {level}.", "Dim the {room} to {level} percent.",
            "Make the {room} light {level} percent."),
           {"status": one_of(["ok", "done"])}, ("The light in the {room} is at {level} percent.",)),
    Family(("get_price", "price", "price_of", "lookup_price"), ("Price of a thing.",), (FOOD,),
           ("What do {item} cost?", "How much are {item}?", "Tell me the price of {item}."),
           {"price": between(1, 99), "currency": one_of(list(MONEY))},
           ("The price of {item} is {price} {currency}.",)),
    Family(("calculate", "compute", "calculator", "do_sum"), ("Calculate with two numbers.",),
           (Param("a", ("a", "x", "first", "left"), "first number", between(2, 999), "integer"),
            Param("b", ("b", "y", "second", "right"), "second number", between(2, 999), "integer"),
            Param("operation", ("operation", "op", "operator"), "what to do",
                  one_of(["multiply", "divide"]), "string", ("add", "subtract", "multiply", "divide"))),
           ("Use the tool to {operation} {a} by {b}.", "Please {operation} {a} by {b}.",
            "{operation} {a} by {b}"),
           {"result": between(1, 9999)}, ("The result is {result}.",)),
    Family(("find_train", "train", "next_train", "trains"), ("Find the next train.",),
           (Param("start", ("from", "start", "origin"), "city to leave from", like(words.CITIES)),
            Param("goal", ("to", "goal", "destination"), "city to go to", like(words.CITIES))),
           ("When does the next train go from {start} to {goal}?", "Find a train from {start} to {goal}.",
            "I want to go from {start} to {goal} by train."),
           {"departure": clock, "platform": between(1, 20)},
           ("The train from {start} to {goal} leaves at {departure} from platform {platform}.",)),
    Family(("get_phone", "phone_number", "lookup_phone", "contacts"), ("Phone number of a person.",),
           (PERSON,),
           ("What is the phone number of {name}?", "How can I call {name}?", "Find the number of {name}."),
           {"phone": between(10000, 999999)}, ("The phone number of {name} is {phone}.",)),
    Family(("set_timer", "timer", "start_timer", "countdown"), ("Start a timer.",),
           (Param("minutes", ("minutes", "duration", "length"), "how many minutes", between(1, 120),
                  "integer"),),
           ("Set a timer for {minutes} minutes.", "Remind me in {minutes} minutes.",
            "Start a timer of {minutes} minutes."),
           {"status": one_of(["ok", "started"])}, ("The timer runs for {minutes} minutes.",)),
    Family(("population", "get_population", "people_in"), ("How many people live in a country.",),
           (Param("country", ("country", "land", "name"), "name of the country",
                  like(words.COUNTRIES)),),
           ("How many people live in {country}?", "What is the population of {country}?"),
           {"millions": between(1, 200)}, ("{millions} million people live in {country}.",)),
    Family(("feed", "feed_pet", "feeder", "give_food"), ("Feed an animal.",),
           (Param("animal", ("animal", "pet", "which"), "which animal", like(words.ANIMALS)),
            Param("grams", ("grams", "amount", "weight"), "grams of food", between(10, 500), "integer")),
           ("Give the {animal} {grams} grams of food.", "Feed the {animal} with {grams} grams."),
           {"status": one_of(["ok", "done"])}, ("The {animal} got {grams} grams of food.",)),
    Family(("add_event", "calendar", "new_event", "plan"), ("Put an event in the calendar.",),
           (TEXT, Param("day", ("day", "date", "weekday"), "day of the week", one_of(words.DAYS)), TIME),
           ('Put "{text}" in my calendar on {day} at {time}.', 'On {day} at {time}: "{text}".',
            'Plan "{text}" for {day}, {time}.'),
           {"status": one_of(["ok", "saved"])}, ("It is in your calendar on {day} at {time}.",)),
    Family(("is_open", "opening_hours", "shop_hours"), ("When a shop is open.",),
           (Param("shop", ("shop", "place", "store"), "which shop",
                  one_of(["bakery", "library", "market", "school", "mill", "workshop"])),
            Param("day", ("day", "weekday", "date"), "day of the week", one_of(words.DAYS))),
           ("Is the {shop} open on {day}?", "When is the {shop} open on {day}?"),
           {"opens": clock, "closes": clock},
           ("On {day} the {shop} is open from {opens} to {closes}.",)),
)


@dataclass(frozen=True)
class Tool:
    """One family with its names chosen."""

    family: Family
    name: str
    names: dict[str, str]  # parameter key -> name in the schema
    schema: Message


def make_tool(rng: random.Random, family: Family) -> Tool:
    names: dict[str, str] = {}
    for p in family.params:
        names[p.key] = rng.choice([n for n in p.names if n not in names.values()])
    required = [names[p.key] for p in family.params]
    name = rng.choice(family.names)
    parameters: Message = {
        "type": "object",
        "properties": {names[p.key]: p.schema() for p in family.params},
        "required": required,
    }
    function = {"name": name, "description": rng.choice(family.about), "parameters": parameters}
    return Tool(family, name, names, {"type": "function", "function": function})


def call_of(text: str) -> Message | None:
    """The one tool call in an answer, or None when there is none or it is not well formed."""
    if text.count("<tool_call>") != 1 or text.count("</tool_call>") != 1:
        return None
    call = parse_json(text.split("<tool_call>")[1].split("</tool_call>")[0])
    well_formed = isinstance(call, dict) and set(call) == {"name", "arguments"}
    return call if well_formed and isinstance(call["arguments"], dict) else None


def offered(source: Source) -> tuple[Tool, list[Message]]:
    """The tool that is needed and the schemas of it and up to three others."""
    rng = source.rng
    families = rng.sample(FAMILIES, rng.choice((1, 1, 2, 3, 4)))
    tools = [make_tool(rng, f) for f in families]
    schemas = [t.schema for t in tools]
    rng.shuffle(schemas)
    return tools[0], schemas


def draw_values(source: Source, family: Family) -> Values:
    while True:
        values = {p.key: p.draw(source) for p in family.params}
        if values.get("source", 0) != values.get("target", 1) or "source" not in values:
            if "start" not in values or values["start"] != values["goal"]:
                return values


def tool_call(source: Source) -> Task:
    """A question that needs a tool, answered by the right call."""
    rng = source.rng
    tool, schemas = offered(source)
    values = draw_values(source, tool.family)
    arguments = {tool.names[p.key]: values[p.key] for p in tool.family.params}
    question = rng.choice(tool.family.questions).format(**values)
    question = question[0].upper() + question[1:]
    call = {"name": tool.name, "arguments": arguments}
    message = assistant("") | {"tool_calls": [{"type": "function", "function": call}]}

    def right(answer: str) -> bool:
        made = call_of(answer)
        return made is not None and same_json(made, call)

    return Task("tool_call", with_system(source, [user(question), message]), right, schemas)


def tool_result(source: Source) -> Task:
    """The same, with the tool's result and the answer made from it."""
    rng = source.rng
    while True:
        tool, schemas = offered(source)
        if tool.family.answers:
            break
    values = draw_values(source, tool.family)
    arguments = {tool.names[p.key]: values[p.key] for p in tool.family.params}
    question = rng.choice(tool.family.questions).format(**values)
    question = question[0].upper() + question[1:]
    result = {key: draw(source) for key, draw in tool.family.result.items()}
    answer = rng.choice(tool.family.answers).format(**values, **result)
    call = {"type": "function", "function": {"name": tool.name, "arguments": arguments}}
    messages = [user(question), assistant("") | {"tool_calls": [call]},
                {"role": "tool", "content": to_json(result)}, assistant(answer)]
    return Task("tool_result", with_system(source, messages), says(answer.rstrip(".")), schemas)
