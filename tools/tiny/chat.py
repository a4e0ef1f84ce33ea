"""The chat format of weir-tiny: special tokens, template, rendering, and which tokens are learned."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the evaluation through a server needs neither
    import jinja2
    from tokenizers import Tokenizer

Message = dict[str, Any]

END_OF_TEXT, END = "<|endoftext|>", "<|end|>"
SYSTEM, USER, ASSISTANT, TOOL = "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"
CONTROL = (END_OF_TEXT, END, SYSTEM, USER, ASSISTANT, TOOL)  # ids 0-5, never shown as text
MARKUP = ("<think>", "</think>", "<tool_call>", "</tool_call>")  # ids 6-9, shown as text

# Roles are single tokens, so that a message's text is tokenised the same wherever it stands.
TEMPLATE = """\
{%- set ns = namespace(system='') -%}
{%- if messages and messages[0].role == 'system' -%}
{%- set ns.system = messages[0].content -%}
{%- endif -%}
{%- if tools or ns.system -%}
{{- '<|system|>' + ns.system -}}
{%- if tools -%}
{{- ('\\n\\n' if ns.system else '') + 'You can call these tools:' -}}
{%- for tool in tools -%}
{{- '\\n' + (tool.function if tool.function is defined else tool) | tojson -}}
{%- endfor -%}
{%- endif -%}
{{- '<|end|>' -}}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'system' -%}
{%- if not loop.first -%}
{{- raise_exception('a system message must come first') -}}
{%- endif -%}
{%- elif message.role == 'user' -%}
{{- '<|user|>' + message.content + '<|end|>' -}}
{%- elif message.role == 'tool' -%}
{{- '<|tool|>' + message.content + '<|end|>' -}}
{%- elif message.role == 'assistant' -%}
{{- '<|assistant|>' -}}
{%- if message.reasoning_content -%}
{{- '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' -}}
{%- endif -%}
{%- if message.content -%}
{{- message.content -}}
{%- endif -%}
{%- for call in message.tool_calls or [] -%}
{%- set function = call.function if call.function is defined else call -%}
{{- '<tool_call>\\n{"name": ' + function.name | tojson + ', "arguments": ' -}}
{%- if function.arguments is string -%}
{{- function.arguments -}}
{%- else -%}
{{- function.arguments | tojson -}}
{%- endif -%}
{{- '}\\n</tool_call>' -}}
{%- endfor -%}
{{- '<|end|>' -}}
{%- else -%}
{{- raise_exception('unknown role ' + message.role) -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|assistant|>' -}}
{%- endif -%}
"""


def to_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


@lru_cache(maxsize=1)
def template() -> jinja2.Template:
    import jinja2

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    env = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    env.filters["tojson"] = to_json
    env.globals["raise_exception"] = refuse
    return env.from_string(TEMPLATE)


def render(messages: list[Message], tools: list[Message] | None = None,
           add_generation_prompt: bool = False) -> str:
    return template().render(messages=messages, tools=tools,
                             add_generation_prompt=add_generation_prompt)


def learned(ids: list[int]) -> list[bool]:
    """True for the tokens the assistant writes: after its role token, up to its end token."""
    end, assistant = CONTROL.index(END), CONTROL.index(ASSISTANT)
    out, inside = [], False
    for token in ids:
        out.append(inside)
        inside = token == assistant or (inside and token != end)
    return out


def encode_chat(tokenizer: Tokenizer, messages: list[Message],
                tools: list[Message] | None = None) -> tuple[list[int], list[bool]]:
    """Ids of a finished conversation and which of them are learned."""
    ids = tokenizer.encode(render(messages, tools)).ids
    return ids, learned(ids)
