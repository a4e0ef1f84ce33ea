"""200 JSON schemas of growing difficulty: every answer at temperature 1.5 validates.

The schemas are bounded (lengths, items, digits), so each answer ends by itself within max_tokens;
what cannot be bounded, recursion, may be cut: then another seed is tried.
The judge is the jsonschema package, with formats checked. The server takes no reasoning for granted,
which has no bound either.
"""

import concurrent.futures
import json
import random
import unittest
import urllib.request

import jsonschema
from server import Server

WORDS = ["alpha", "beta", "größe", "naïve", "東京", "ключ", "emoji 🙂", 'quo"te', "back\\slash", "a/b"]


def string(rng, level):
    kinds = [lambda: {"type": "string", "minLength": 1, "maxLength": rng.randint(2, 12)},
             lambda: {"type": "string", "pattern": rng.choice(["^[a-z]{2,6}$", "^[A-Z][0-9]{3}(-[0-9]{2})?$",
                                                               "^(red|green|bl[a-c]{1,3}ue)$",
                                                               "^[äöüß]{1,4}[а-я]{2}$"])},
             lambda: {"enum": rng.sample(WORDS, rng.randint(1, 5))},
             lambda: {"const": rng.choice(WORDS)},
             lambda: {"type": "string", "format": rng.choice(["uuid", "ipv4", "ipv6"])}]
    return rng.choice(kinds[:3 + min(level, 2)])()


def number(rng, level):
    low = rng.randint(-1000, 1000)
    high = low + rng.randint(1, 500)
    kinds = [lambda: {"type": "integer", "minimum": low, "maximum": high},
             lambda: {"type": "integer", "exclusiveMinimum": low, "exclusiveMaximum": high + 2},
             lambda: {"enum": [low, high, 0.5, None, True]},
             lambda: {"type": "integer", "minimum": 0, "maximum": 90, "multipleOf": rng.choice([2, 3, 7, 10])}]
    return rng.choice(kinds[:2 + min(level, 2)])()


def array(rng, level):
    least = rng.randint(0, 2)
    if level > 1 and rng.random() < 0.3:
        return {"type": "array", "prefixItems": [schema(rng, level - 1), schema(rng, level - 1)],
                "items": False, "minItems": 2}
    return {"type": "array", "items": schema(rng, level - 1), "minItems": least,
            "maxItems": least + rng.randint(0, 2)}


def obj(rng, level):
    names = rng.sample(WORDS + [f"field_{i}" for i in range(8)], rng.randint(1, 2 + level))
    made = {"type": "object", "properties": {name: schema(rng, level - 1) for name in names},
            "required": [name for name in names if rng.random() < 0.7], "additionalProperties": False}
    if level > 2 and rng.random() < 0.3:
        made["patternProperties"] = {"^x[0-9]$": {"type": "boolean"}}
        made["maxProperties"] = len(names) + 1
        del made["properties"], made["required"]
        made["minProperties"] = 1
    return made


def union(rng, level):
    if rng.random() < 0.5:
        return {"anyOf": [schema(rng, level - 1) for _ in range(rng.randint(2, 3))]}
    return {"oneOf": [{"type": "object", "properties": {"kind": {"const": kind}, "value": schema(rng, level - 1)},
                       "required": ["kind", "value"], "additionalProperties": False}
                      for kind in rng.sample(["a", "b", "c", "d"], 2)]}


def schema(rng, level):
    if level <= 0:
        return rng.choice([string, number, lambda *_: {"type": "boolean"}, lambda *_: {"type": "null"}])(rng, 1)
    return rng.choice([obj, obj, array, union, string, number])(rng, level)


def recursive(rng):
    leaf = schema(rng, 0)
    return {"$defs": {"node": {"type": "object", "properties": {
                "value": leaf, "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]},
                "kids": {"type": "array", "items": {"$ref": "#/$defs/node"}, "maxItems": 1}},
                "required": ["value"], "additionalProperties": False}},
            "type": "object", "properties": {"root": {"$ref": "#/$defs/node"}}, "required": ["root"],
            "additionalProperties": False}


def schemas():
    rng = random.Random(7)
    for i in range(200):
        yield recursive(rng) if i % 10 == 9 else obj(rng, 1 + i // 50)


class JsonSchemaTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server("--slots", "32", "--reasoning-parser", "none").__enter__()

    @classmethod
    def tearDownClass(cls):
        cls.server.__exit__()

    def answer(self, schema, seed):
        body = {"model": "weir-tiny", "messages": [{"role": "user", "content": "Say something."}],
                "temperature": 1.5, "top_p": 1, "seed": seed, "max_completion_tokens": 900,
                "response_format": {"type": "json_schema", "json_schema": {
                    "name": "answer", "strict": True, "schema": schema}}}
        request = urllib.request.Request(self.server.base_url + "/chat/completions", json.dumps(body).encode(),
                                         {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as response:
            (choice,) = json.load(response)["choices"]
        return choice["message"]["content"], choice["finish_reason"]

    def check(self, number, schema):
        """What is wrong, or None."""
        jsonschema.Draft202012Validator.check_schema(schema)
        bounded = "$defs" not in schema
        for attempt in range(4):
            text, reason = self.answer(schema, 1000 * attempt + number)
            if reason == "stop" or bounded:
                break
        if reason != "stop":
            return f"schema {number} ended with {reason}: {text!r}\n{json.dumps(schema)}"
        try:
            jsonschema.Draft202012Validator(
                schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER).validate(json.loads(text))
        except (ValueError, jsonschema.ValidationError) as error:
            return f"schema {number}: {str(error).splitlines()[0]}: {text!r}\n{json.dumps(schema)}"
        return None

    def test_every_answer_validates(self):
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            wrong = [w for w in pool.map(self.check, range(200), schemas()) if w]
        self.assertEqual(wrong[:5], [], f"{len(wrong)} of 200")
        self.server.wait_until_idle()


if __name__ == "__main__":
    unittest.main()
