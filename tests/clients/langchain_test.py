"""LangChain's ChatOpenAI against the real server and weir-tiny."""

from __future__ import annotations

import sys

import pytest
from langchain_core.messages import AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

from server import Server


@pytest.fixture(scope="module")
def chat():
    with Server() as server:
        yield ChatOpenAI(
            base_url=server.base_url, api_key="unused", model="weir-tiny", temperature=0,
            max_retries=0, timeout=30, stream_usage=True)


@tool
def get_weather(city: str) -> dict[str, object]:
    """Get the current weather."""
    assert city == "Paris"
    return {"temperature": 12, "sky": "rainy"}


def test_a_streamed_tool_call_and_its_result(chat):
    with_tools = chat.bind_tools([get_weather])
    messages = [HumanMessage("What is the weather in Paris?")]
    chunks = list(with_tools.stream(messages))
    assert sum(bool(chunk.tool_call_chunks) for chunk in chunks) > 1  # it came in pieces
    whole = sum(chunks[1:], chunks[0])
    assert isinstance(whole, AIMessageChunk)
    (call,) = whole.tool_calls
    assert call["name"] == "get_weather" and call["args"] == {"city": "Paris"}
    assert whole.response_metadata["finish_reason"] == "tool_calls"
    assert whole.usage_metadata["output_tokens"] > 10
    result = get_weather.invoke(call)
    assert isinstance(result, ToolMessage)
    answer = sum_of(with_tools.stream([*messages, whole, result]))
    assert answer == "It is 12 degrees and rainy in Paris."


def sum_of(chunks) -> str:
    return "".join(chunk.text if isinstance(chunk.text, str) else chunk.text() for chunk in chunks)


class Person(BaseModel):
    """A person."""

    name: str
    age: int


def test_structured_output(chat):
    prompt = ("Fill in this JSON object from the text. Answer with JSON only.\n"
              'Text: This is about Anna. Anna is 34 years old.\nJSON: {"name": "", "age": 0}')
    for method in ("json_schema", "json_mode"):
        person = chat.with_structured_output(Person, method=method).invoke(prompt)
        assert person == Person(name="Anna", age=34), method
    person = chat.with_structured_output(Person, method="function_calling").invoke(prompt)
    assert isinstance(person, Person)


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-q", "-p", "no:cacheprovider", *sys.argv[1:]]))
