#!/usr/bin/env python3
"""Renders the chat templates of tests/text/data/chat with transformers' apply_chat_template and writes
what the tests compare with: tests/text/data/chat_cases.json and tests/text/data/jinja_cases.json.

Needs transformers, tokenizers and jinja2. Usage: make_chat_goldens.py [--check]
"""

import argparse
import datetime
import json
import os
import pathlib
import time

import transformers.utils.chat_template_utils as chat_template_utils
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

DATA = pathlib.Path(__file__).resolve().parent.parent / "tests" / "text" / "data"
NOW = 1_718_109_296  # 2024-06-11 12:34:56 UTC
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather at a place, e.g. \"Zürich\" <now> & later.",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "description": "  City 🏙 or station's id "},
                "days": {"type": ["integer", "null"], "minimum": 0.5, "maximum": 1e20, "default": None},
                "items": {"type": "array", "items": {"type": "string", "enum": ["rain", "wind's"]}},
                "units": {"type": "object", "additionalProperties": {"type": "number"}},
            },
            "required": ["place"],
        },
        "return": {"type": "object"},
    },
}
NO_ARGUMENTS = {
    "type": "function",
    "function": {"name": "noop", "description": "Nothing.", "parameters": {"type": "object", "properties": {}}},
}
CALL = {
    "type": "function",
    "id": "abc123XYZ",
    "function": {"name": "get_weather", "arguments": {"place": "Zürich", "days": 2, "deep": {"a": [1.0, True, None, "é\n\"'"]}}},
}
SYSTEM = {"role": "system", "content": "  Be brief.\nAnd kind. "}
USER = {"role": "user", "content": "Was wird das Wetter? 👩‍👩‍👧\n\n"}
ANSWER = {"role": "assistant", "content": "  Sunny.  "}
THOUGHT = {"role": "assistant", "content": "<think>\nSumming: 1 < 2\n</think>\n\nIt is 3."}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "abc123XYZ", "name": "get_weather", "content": '{"temp": 21.5, "sky": "klar"}'}
MORE = {"role": "user", "content": "And <|im_start|> tomorrow?"}
TOOLS = {"weather": WEATHER, "noop": NO_ARGUMENTS}
DOCUMENTS = {"alps": {"title": "Alps", "text": "High – very high."}, "untitled": {"title": "", "text": "No title\nhere."}}

CHATS = {
    "one": [USER],
    "system": [SYSTEM, USER],
    "turns": [SYSTEM, USER, ANSWER, MORE],
    "thought": [USER, THOUGHT, MORE],
    "thought_last": [USER, THOUGHT],
    "two_users": [USER, MORE],
    "calls": [SYSTEM, USER, CALLING, RESULT, ANSWER, MORE],
    "two_results": [USER, CALLING, RESULT, RESULT],
    "parts": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": " What is it? "}]}],
    "bad_role": [{"role": "oracle", "content": "?"}],
    "structured_result": [USER, CALLING, {**RESULT, "content": {"temp": 21.5, "list": [1, False, None, "x'y"]}}],
    "null_content": [USER, {"role": "assistant", "content": None, "tool_calls": [CALL, CALL]}, RESULT],
    "late_system": [USER, SYSTEM],
}


def template_of(name):
    if name == "named":
        return {
            "default": (DATA / "chat" / "named_default.jinja").read_text(),
            "tool_use": (DATA / "chat" / "named_tool_use.jinja").read_text(),
        }
    return (DATA / "chat" / f"{name}.jinja").read_text()


def cases():
    """Every template on every chat, and what is special to each."""
    templates = sorted(p.stem for p in (DATA / "chat").glob("*.jinja") if not p.stem.startswith("named_"))
    for template in [*templates, "named"]:
        for chat in CHATS:
            for tools in (None, ["weather"], ["weather", "noop"]):
                if tools and chat not in ("system", "calls", "one"):
                    continue
                yield template, chat, {"tools": tools, "add_generation_prompt": True}
        yield template, "turns", {"add_generation_prompt": False}
        yield template, "one", {"tools": [], "add_generation_prompt": True}
        yield template, "thought_last", {"continue_final_message": True}
        yield template, "turns", {"continue_final_message": True}
    for documents in (list(DOCUMENTS), []):
        yield "documents", "one", {"documents": documents, "add_generation_prompt": True}
    extra = {"thinking": True, "controls": {"citations": True, "length": "short", "n": 3}}
    yield "documents", "one", {"documents": list(DOCUMENTS), "tools": ["weather"], "add_generation_prompt": True, **extra}
    yield "chatml_tools", "turns", {"enable_thinking": False, "add_generation_prompt": True}
    yield "chatml_tools", "turns", {"enable_thinking": True, "add_generation_prompt": True}
    yield "header_tools", "system", {"tools": ["weather"], "tools_in_question": False, "add_generation_prompt": True}
    yield "header_tools", "one", {"date": "7 Apr", "add_generation_prompt": True, "bos_token": "<other>"}
    yield "namespaces", "one", {"thinking": False, "add_generation_prompt": True}


def render_cases():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"<unk>": 0}, "<unk>")), **SPECIAL)
    out = []
    for template, chat, options in cases():
        tokenizer.chat_template = template_of(template)
        case = {"template": template, "chat": chat, "options": options}
        try:
            case["expected"] = tokenizer.apply_chat_template(CHATS[chat], tokenize=False, **expand(options))
        except Exception as error:  # what a template may raise is any of Python's errors
            case["error"] = type(error).__name__
            if case["error"] == "TemplateError":
                case["raised"] = str(error)
        out.append(case)
    return out


def expand(options):
    """Tools and documents stand in the file by name."""
    named = {"tools": TOOLS, "documents": DOCUMENTS}
    return {k: [named[k][n] for n in v] if k in named and v else v for k, v in options.items()}


def render_jinja():
    """Small templates: what the language and Python's methods give. New ones go into the file by hand,
    with a "source" only; "differs" says what is known to be otherwise in Weir."""
    file = json.loads((DATA / "jinja_cases.json").read_text())
    out = []
    for old in file["cases"]:
        case = {k: v for k, v in old.items() if k in ("source", "differs")}
        try:
            compiled = chat_template_utils._compile_jinja_template(case["source"])
            case["expected"] = compiled.render(**SPECIAL, **file["context"])
        except Exception as error:
            case["error"] = type(error).__name__
        out.append(case)
    return file["context"], out


class FixedClock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(NOW)


def write(name, head, cases, check):
    lines = ",\n".join(json.dumps(c, ensure_ascii=True) for c in cases)
    head = {"now": NOW, "special": SPECIAL, **head}
    text = json.dumps(head, ensure_ascii=True)[:-1] + f', "cases": [\n{lines}\n]}}\n'
    path = DATA / name
    if check:
        assert path.read_text() == text, f"{path} is not what this script makes"
    else:
        path.write_text(text)
    errors = sum("error" in c for c in cases)
    print(f"{name}: {len(cases)} cases, {errors} of them errors, {len(text)} bytes")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare with the committed files instead of writing")
    args = parser.parse_args()
    os.environ["TZ"] = "UTC"
    time.tzset()
    chat_template_utils.datetime = FixedClock
    named = {"chats": CHATS, "tools": TOOLS, "documents": DOCUMENTS}
    write("chat_cases.json", named, render_cases(), args.check)
    context, cases_ = render_jinja()
    write("jinja_cases.json", {"context": context}, cases_, args.check)


if __name__ == "__main__":
    main()
