"""openai-python, unchanged but for its base_url, against the real server and weir-tiny."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import time
from typing import Literal

import openai
import pytest
from openai.types import completion_create_params as text_params
from openai.types.chat import completion_create_params as chat_params
from pydantic import BaseModel

from server import BUILD, ROOT, Server

MODEL = "weir-tiny"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the current weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "name of the city"}},
            "required": ["city"],
        },
    },
}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


HELLO = [user("Hello!")]
ASK_WEATHER = [user("What is the weather in Paris?")]
ANNA = [user(
    "Fill in this JSON object from the text. Answer with JSON only.\n"
    "Text: This is about Anna. Anna is 34 years old. Anna lives in Paris.\n"
    'JSON: {"name": "", "age": 0, "city": ""}')]


@pytest.fixture(scope="module")
def server():
    with Server() as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=server.base_url, api_key="unused", max_retries=0, timeout=30)


# Answers


def test_models(client):
    (model,) = client.models.list().data
    assert (model.id, model.object) == (MODEL, "model")
    assert client.models.retrieve(MODEL) == model


def test_chat(client):
    answer = client.chat.completions.create(model=MODEL, messages=HELLO, temperature=0)
    assert answer.id.startswith("chatcmpl-") and answer.object == "chat.completion"
    assert answer.model == MODEL and answer.system_fingerprint.startswith("fp_")
    assert abs(answer.created - time.time()) < 60
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content == "Hello! What can I do for you?"
    assert choice.finish_reason == "stop" and choice.logprobs is None
    usage = answer.usage
    assert usage.prompt_tokens > 0 and usage.completion_tokens > 5
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_a_system_prompt_parts_and_a_conversation(client):
    answer = client.chat.completions.create(model=MODEL, temperature=0, messages=[
        {"role": "developer", "content": "You are a helpful assistant."},
        {"role": "user", "content": [{"type": "text", "text": "My name is Anna."}]},
        {"role": "assistant", "content": "Hello Anna!"},
        user("What is 27 + 48?"),
    ])
    assert "75" in answer.choices[0].message.content


def test_reasoning_is_apart(client):
    messages = [user("What is 27 + 48?")]
    answer = client.chat.completions.create(model=MODEL, messages=messages, temperature=0)
    message = answer.choices[0].message
    assert message.content.strip() == "27 + 48 = 75"
    assert "write 7" in message.reasoning_content and "<think>" not in message.reasoning_content
    assert answer.usage.completion_tokens_details.reasoning_tokens > 10
    streamed = list(client.chat.completions.create(
        model=MODEL, messages=messages, temperature=0, stream=True))
    deltas = [chunk.choices[0].delta for chunk in streamed]
    assert "".join(d.content or "" for d in deltas) == message.content
    assert "".join(getattr(d, "reasoning_content", "") or "" for d in deltas) == message.reasoning_content


def test_a_stream_adds_up_to_the_answer(client):
    arguments = dict(model=MODEL, messages=[user("Tell me a tale.")], temperature=0, max_tokens=40)
    whole = client.chat.completions.create(**arguments)
    chunks = list(client.chat.completions.create(
        **arguments, stream=True, stream_options={"include_usage": True}))
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-2].choices[0].finish_reason == "length"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert text == whole.choices[0].message.content
    assert whole.usage.completion_tokens == 40
    plain = client.chat.completions.create(**arguments, stream=True)
    assert all(chunk.usage is None for chunk in plain)


def test_the_stream_helper(client):
    with client.chat.completions.stream(model=MODEL, messages=HELLO, temperature=0) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert "content.delta" in kinds and "content.done" in kinds
    assert final.choices[0].message.content == "Hello! What can I do for you?"


def test_completions(client):
    arguments = dict(model=MODEL, prompt="Once upon a time", temperature=0, max_tokens=12)
    answer = client.completions.create(**arguments)
    assert answer.object == "text_completion" and answer.id.startswith("cmpl-")
    (choice,) = answer.choices
    assert choice.text.startswith(", there lived") and choice.finish_reason == "length"
    assert answer.usage.completion_tokens == 12
    chunks = list(client.completions.create(**arguments, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == choice.text
    assert chunks[-1].choices[0].finish_reason == "length"

    several = client.completions.create(
        **(arguments | {"prompt": ["Once upon a time", "The king"]}), n=1, echo=True)
    assert [c.index for c in several.choices] == [0, 1]
    assert several.choices[0].text == "Once upon a time" + choice.text
    assert several.choices[1].text.startswith("The king")
    scored = client.completions.create(**(arguments | {"max_tokens": 1}), echo=True, logprobs=2)
    logprobs = scored.choices[0].logprobs
    assert "".join(logprobs.tokens).startswith("Once upon a time")
    assert logprobs.token_logprobs[0] is None and all(p <= 0 for p in logprobs.token_logprobs[1:])
    assert logprobs.text_offset[:2] == [0, len(logprobs.tokens[0])]
    ids = client.post("/../tokenize", cast_to=object, body={"prompt": "Once upon a time"})["tokens"]
    by_ids = client.completions.create(**(arguments | {"prompt": ids}))
    assert by_ids.choices[0].text == choice.text


def test_logprobs(client):
    answer = client.chat.completions.create(
        model=MODEL, messages=HELLO, temperature=0, logprobs=True, top_logprobs=3)
    choice = answer.choices[0]
    tokens = choice.logprobs.content
    assert b"".join(bytes(t.bytes) for t in tokens).decode() == choice.message.content
    for token in tokens:
        assert token.token == bytes(token.bytes).decode() and token.logprob <= 0
        best = [t.logprob for t in token.top_logprobs]
        assert len(best) == 3 and best == sorted(best, reverse=True)
        assert sum(map(math.exp, best)) < 1.001
        assert token.top_logprobs[0].token == token.token  # at temperature 0
    streamed = client.chat.completions.create(
        model=MODEL, messages=HELLO, temperature=0, logprobs=True, top_logprobs=3, stream=True)
    parts = [part for chunk in streamed if (lp := chunk.choices[0].logprobs) for part in lp.content]
    assert parts == tokens


def test_n_choices_and_seed(client):
    def tales(seed: int) -> list[str]:
        answer = client.chat.completions.create(
            model=MODEL, messages=[user("Tell me a tale.")], n=3, seed=seed, max_tokens=16)
        assert [c.index for c in answer.choices] == [0, 1, 2]
        return [c.message.content for c in answer.choices]

    first = tales(7)
    assert len(set(first)) == 3
    assert tales(7) == first
    assert tales(8) != first
    texts = ["", "", ""]
    for chunk in client.chat.completions.create(
            model=MODEL, messages=[user("Tell me a tale.")], n=3, seed=7, max_tokens=16, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == first


def test_stop_bias_and_limits(client):
    def ask(**arguments):
        return client.chat.completions.create(
            model=MODEL, messages=HELLO, temperature=0, **arguments).choices[0]

    assert ask(stop="What").message.content == "Hello! "
    assert ask(stop=["zzz", "can"]).message.content == "Hello! What "
    short = ask(max_completion_tokens=2)
    assert short.finish_reason == "length" and len(short.message.content) < 10
    first = ask(extra_body={"return_token_ids": True}, max_tokens=1)
    token = first.model_extra["token_ids"][0]
    other = ask(logit_bias={token: -100}, max_tokens=1)
    assert other.message.content != first.message.content
    kept = ask(stop="What", extra_body={"include_stop_str_in_output": True})
    assert kept.message.content == "Hello! What"


# Tools


def weather_of(city: str) -> str:
    assert city == "Paris"
    return json.dumps({"temperature": 12, "sky": "rainy"})


def test_a_tool_is_called_and_its_result_used(client):
    messages = list(ASK_WEATHER)
    answer = client.chat.completions.create(
        model=MODEL, messages=messages, tools=[WEATHER], temperature=0)
    assert answer.choices[0].finish_reason == "tool_calls"
    message = answer.choices[0].message
    assert message.content is None
    (call,) = message.tool_calls
    assert call.type == "function" and call.id and call.function.name == "get_weather"
    result = weather_of(**json.loads(call.function.arguments))
    messages += [message, {"role": "tool", "tool_call_id": call.id, "content": result}]
    final = client.chat.completions.create(
        model=MODEL, messages=messages, tools=[WEATHER], temperature=0)
    assert final.choices[0].message.content == "It is 12 degrees and rainy in Paris."
    assert final.choices[0].finish_reason == "stop"


def test_a_streamed_tool_call(client):
    name = arguments = ""
    ids, reasons = [], []
    for chunk in client.chat.completions.create(
            model=MODEL, messages=ASK_WEATHER, tools=[WEATHER], temperature=0, stream=True):
        choice = chunk.choices[0]
        reasons.append(choice.finish_reason)
        for call in choice.delta.tool_calls or []:
            assert call.index == 0
            ids += [call.id] if call.id else []
            name += call.function.name or ""
            arguments += call.function.arguments or ""
    assert name == "get_weather" and len(ids) == 1
    assert json.loads(arguments) == {"city": "Paris"}
    assert reasons[-1] == "tool_calls"


class GetWeather(BaseModel):
    """Get the current weather."""

    city: str


def test_tool_choice(client):
    def ask(messages, choice, **arguments):
        return client.chat.completions.create(
            model=MODEL, messages=messages, tools=[WEATHER], temperature=0, tool_choice=choice,
            **arguments).choices[0].message

    assert ask(ASK_WEATHER, "none").tool_calls is None
    for choice in ("required", {"type": "function", "function": {"name": "get_weather"}}):
        (call,) = ask(HELLO, choice, parallel_tool_calls=False).tool_calls
        assert call.function.name == "get_weather"
        assert list(json.loads(call.function.arguments)) == ["city"]
    # A pydantic model as the tool, and its arguments as an object of it.
    parsed = client.chat.completions.parse(
        model=MODEL, messages=ASK_WEATHER, temperature=0, tool_choice="required",
        tools=[openai.pydantic_function_tool(GetWeather, name="get_weather")])
    assert isinstance(parsed.choices[0].message.tool_calls[0].function.parsed_arguments, GetWeather)


# Structured output


class Person(BaseModel):
    name: str
    age: int
    city: Literal["Paris", "London"]


def test_a_typed_object(client):
    answer = client.chat.completions.parse(
        model=MODEL, messages=ANNA, response_format=Person, temperature=0)
    assert answer.choices[0].message.parsed == Person(name="Anna", age=34, city="Paris")
    # Also where the model has no idea what to say, and its words are drawn at random.
    format = {"type": "json_schema", "json_schema": {
        "name": "person", "strict": True, "schema": Person.model_json_schema()}}
    wild = client.chat.completions.create(
        model=MODEL, messages=HELLO, response_format=format, temperature=1.5, seed=3, n=8,
        max_tokens=200)
    ended = [choice for choice in wild.choices if choice.finish_reason == "stop"]
    assert ended
    for choice in ended:
        assert Person.model_validate_json(choice.message.content).city in ("Paris", "London")


def test_json_object_and_extensions(client):
    def ask(messages, **arguments) -> str:
        return client.chat.completions.create(
            model=MODEL, messages=messages, temperature=0, max_tokens=60, **arguments
        ).choices[0].message.content

    assert isinstance(json.loads(ask(ANNA, response_format={"type": "json_object"})), dict)
    assert ask(HELLO, extra_body={"guided_choice": ["red", "blue"]}) in ("red", "blue")
    assert len(ask(HELLO, extra_body={"guided_regex": "[0-9]{4}"})) == 4
    assert ask(HELLO, extra_body={"structured_outputs": {"grammar": 'start: "yes" | "no"'}}) in ("yes", "no")


def test_a_schema_that_cannot_be_compiled_is_refused(client):
    schema = {"type": "object", "properties": {"a": {"type": "no-such-type"}}}
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(
            model=MODEL, messages=HELLO,
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})
    assert error.value.param == "response_format.json_schema.schema"


# Errors


def test_bad_requests_name_their_field(client):
    for field, value in [("temperature", -1), ("top_logprobs", 3), ("n", 0), ("logit_bias", {"-7": 1}),
                         ("max_tokens", 0), ("stop", [""])]:
        with pytest.raises(openai.BadRequestError) as error:
            client.chat.completions.create(model=MODEL, messages=HELLO, **{field: value})
        assert error.value.status_code == 400 and error.value.param.startswith(field)
        assert error.value.type == "invalid_request_error" and field in error.value.message
    for field in ("functions", "web_search_options", "made_up"):
        with pytest.raises(openai.BadRequestError, match=field):
            client.chat.completions.create(model=MODEL, messages=HELLO, extra_body={field: [1]})
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model=MODEL, messages=[user("word " * 9000)])
    assert error.value.code == "context_length_exceeded" and error.value.param == "messages"


@pytest.mark.parametrize("path, params", [
    ("/chat/completions", chat_params.CompletionCreateParamsBase),
    ("/completions", text_params.CompletionCreateParamsBase)])
def test_every_published_field_is_known_and_documented(client, path, params):
    """Also fields that a newer client brings: each is to be honoured or refused, by name."""
    fields = set(params.__annotations__) | {"stream"}
    assert len(fields) > 15
    documented = (ROOT / "docs/openai-api.md").read_text()
    for field in fields:
        assert f"`{field}`" in documented, field
        with pytest.raises(openai.BadRequestError) as error:
            client.post(path, cast_to=object, body={field: {"wrong": "kind"}})
        assert f"{field} is no field that this server knows" not in error.value.message


def test_unknown_models_and_paths(client):
    with pytest.raises(openai.NotFoundError) as error:
        client.chat.completions.create(model="gpt-4o", messages=HELLO)
    assert error.value.code == "model_not_found" and MODEL in error.value.message
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4o")
    with pytest.raises(openai.NotFoundError, match="embeddings"):
        client.embeddings.create(model=MODEL, input="x")
    with pytest.raises(openai.NotFoundError, match="responses"):
        client.responses.create(model=MODEL, input="x")


def test_a_stream_that_is_closed_frees_its_slot(client, server):
    server.wait_until_idle()
    stream = client.chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=7000, stream=True, extra_body={"ignore_eos": True})
    for _, chunk in zip(range(4), stream):
        assert chunk.choices
    assert server.metric('weir_slots{state="used"}') == 1
    stream.close()
    server.wait_until_idle(2)


def hold(client, number: int) -> list[openai.Stream]:
    """Streams that go on until they are closed."""
    return [client.chat.completions.create(
        model=MODEL, messages=HELLO, max_tokens=7000, stream=True, extra_body={"ignore_eos": True})
        for _ in range(number)]


def test_a_full_server_answers_429_and_a_draining_one_503():
    with Server("--slots", "1", "--max-queued-requests", "1", "--drain-time", "20s") as small:
        client = openai.OpenAI(base_url=small.base_url, api_key="unused", max_retries=0, timeout=30)
        (running,) = hold(client, 1)
        next(running)
        held = []
        with pytest.raises(openai.RateLimitError) as error:
            for _ in range(3):
                held += hold(client, 1)
        assert error.value.code == "rate_limit_exceeded"
        assert int(error.value.response.headers["retry-after"]) >= 1
        small.terminate()
        with pytest.raises(openai.InternalServerError) as error:
            while True:  # each on a connection of its own: idle ones are closed
                with openai.OpenAI(base_url=small.base_url, api_key="unused", max_retries=0) as other:
                    other.models.retrieve(MODEL)
                    other.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=1)
        assert error.value.status_code == 503 and error.value.code == "service_unavailable"
        assert next(running).choices  # what runs goes on
        for stream in [running, *held]:
            stream.close()


def test_keys_and_their_limits(tmp_path):
    keys = tmp_path / "keys"
    add = [BUILD / "weir", "keys", "add", keys, "anna", "--concurrent", "1"]
    said = subprocess.run(add, check=True, stdout=subprocess.PIPE, text=True).stdout
    key = re.search(r"\S{20,}", said).group()
    with Server("--api-keys", str(keys)) as server:
        def client_with(key: str) -> openai.OpenAI:
            return openai.OpenAI(base_url=server.base_url, api_key=key, max_retries=0, timeout=30)

        with pytest.raises(openai.AuthenticationError) as error:
            client_with("sk-wrong").models.list()
        assert error.value.status_code == 401 and error.value.code == "invalid_api_key"
        client = client_with(key)
        assert client.models.list().data[0].id == MODEL
        (stream,) = hold(client, 1)
        next(stream)
        with pytest.raises(openai.RateLimitError):
            client.chat.completions.create(model=MODEL, messages=HELLO)
        stream.close()


def test_a_timeout_is_the_clients_own(client, server):
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.2).chat.completions.create(
            model=MODEL, messages=HELLO, max_tokens=7000, extra_body={"ignore_eos": True})
    server.wait_until_idle(2)


def test_async_calls_at_once(server):
    import asyncio

    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=server.base_url, api_key="unused") as client:
            answers = await asyncio.gather(*(
                client.chat.completions.create(
                    model=MODEL, messages=[user(f"What is {i} + 5?")], temperature=0)
                for i in range(20, 28)))
        return [answer.choices[0].message.content for answer in answers]

    for i, text in zip(range(20, 28), asyncio.run(ask_all())):
        assert text.strip().endswith(f"= {i + 5}")


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-q", "-p", "no:cacheprovider", *sys.argv[1:]]))
