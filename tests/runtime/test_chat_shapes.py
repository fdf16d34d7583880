# ruff: noqa: E501  # lines of templates are as long as they are
"""Twelve shapes of public chat templates render as transformers renders them, and long conversations are not too much.

The templates are written here, after the structure of the published ones.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from edge.runtime.chat import ChatTemplate
from edge.runtime.errors import PromptError

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SHAPES = {
    "ChatML": CHATML,
    "SmolLM2": "{% for m in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a small model.<|im_end|>\n' }}{% endif %}" + CHATML[CHATML.index("}") + 1 :],
    "Llama 2": "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}"
    "{% set system = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}{% else %}{% set rest = messages %}"
    "{% set system = '' %}{% endif %}{% for m in rest %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% set text = system + m['content'] if loop.index0 == 0 else m['content'] %}"
    "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + text.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + text.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
    "Llama 3": "{% set loop_messages = messages %}{% for m in loop_messages %}"
    "{% set text = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set text = bos_token + text %}{% endif %}{{ text }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    "Mistral": "{%- set ns = namespace(index=0) -%}\n{{- bos_token }}\n{%- for m in messages %}\n"
    "    {%- if m.role == 'user' %}\n        {%- if loop.last and system_message is defined %}{{ system_message }}{% endif %}\n"
    "        {{- '[INST] ' + m.content + '[/INST]' }}\n    {%- elif m.role == 'assistant' %}\n"
    "        {{- ' ' + m.content + eos_token }}\n    {%- else %}\n        {{- '[SYSTEM]' ~ m.content }}\n    {%- endif %}\n"
    "    {%- set ns.index = ns.index + 1 %}\n{%- endfor %}\n",
    "Gemma": "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}",
    "Phi-3": "{% for m in messages %}{% if m['role'] == 'system' and m['content'] %}"
    "{{'<|system|>\n' + m['content'] + '<|end|>\n'}}{% elif m['role'] == 'user' %}"
    "{{'<|user|>\n' + m['content'] + '<|end|>\n'}}{% elif m['role'] == 'assistant' %}"
    "{{'<|assistant|>\n' + m['content'] + '<|end|>\n'}}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}",
    "Zephyr": "{% for m in messages %}\n{% if m['role'] == 'user' %}\n{{ '<|user|>\n' + m['content'] + eos_token }}\n"
    "{% elif m['role'] == 'system' %}\n{{ '<|system|>\n' + m['content'] + eos_token }}\n{% else %}\n"
    "{{ '<|assistant|>\n'  + m['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}",
    "Vicuna": "{% if messages[0].role == 'system' %}{{ messages[0].content ~ ' ' }}{% set messages = messages[1:] %}"
    "{% else %}{{ 'A chat between a user and an assistant. ' }}{% endif %}"
    "{% for m in messages %}{% if m.role == 'user' %}USER: {{ m.content | trim }} {% else %}"
    "{% generation %}ASSISTANT: {{ m.content | trim }}{% endgeneration %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}",
    "Alpaca": "{% for m in messages %}\n  {%- if m['role'] == 'system' %}{{ m['content'] }}\n\n"
    "  {%- elif m['role'] == 'user' %}{{ '### Instruction:\n' + m['content'].strip() + '\n\n' }}\n"
    "  {%- else %}{{ '### Response:\n' + m['content'] | replace('\n\n\n', '\n\n') + '\n\n' }}{% endif %}\n{% endfor %}\n"
    "{{- '### Response:\n' if add_generation_prompt }}",
    "DeepSeek": "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
    "{% set ns = namespace(is_first=true, system='') %}{%- for m in messages %}{%- if m['role'] == 'system' %}"
    "{% if ns.is_first %}{% set ns.system = m['content'] %}{% set ns.is_first = false %}{% endif %}{%- endif %}{%- endfor %}"
    "{{ bos_token }}{{ ns.system }}{%- for m in messages %}{%- if m['role'] == 'user' %}{{ '<｜User｜>' + m['content'] }}"
    "{%- endif %}{%- if m['role'] == 'assistant' and m['content'] is not none %}{% set content = m['content'] %}"
    "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{ '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}{%- endif %}{%- endfor -%}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}",
    "Qwen 2.5 with tools": "{%- if tools %}\n    {{- '<|im_start|>system\\n' }}\n"
    "    {%- if messages[0]['role'] == 'system' %}{{- messages[0]['content'] }}{%- else %}{{- 'You help.' }}{%- endif %}\n"
    "    {{- '\\n\\n# Tools\\n<tools>' }}\n    {%- for tool in tools %}\n        {{- '\\n' }}\n        {{- tool | tojson }}\n"
    "    {%- endfor %}\n    {{- '\\n</tools><|im_end|>\\n' }}\n{%- endif %}\n{%- for message in messages %}\n"
    "    {%- if (message.role == 'user') or (message.role == 'system' and not loop.first) or (message.role == 'assistant' "
    "and not message.tool_calls) %}\n        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}\n"
    "    {%- elif message.role == 'assistant' %}\n        {{- '<|im_start|>' + message.role }}\n"
    "        {%- for tool_call in message.tool_calls %}\n            {%- if tool_call.function is defined %}\n"
    "                {%- set tool_call = tool_call.function %}\n            {%- endif %}\n"
    '            {{- \'\\n<tool_call>\\n{"name": "\' }}{{- tool_call.name }}{{- \'", "arguments": \' }}\n'
    "            {{- tool_call.arguments | tojson }}{{- '}\\n</tool_call>' }}\n        {%- endfor %}\n"
    "        {{- '<|im_end|>\\n' }}\n    {%- elif message.role == 'tool' %}\n"
    "        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != 'tool') %}{{- '<|im_start|>user' }}{%- endif %}\n"
    "        {{- '\\n<tool_response>\\n' }}{{- message.content }}{{- '\\n</tool_response>' }}\n"
    "        {%- if loop.last or (messages[loop.index0 + 1].role != 'tool') %}{{- '<|im_end|>\\n' }}{%- endif %}\n"
    "    {%- endif %}\n{%- endfor %}\n{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}\n",
    "a thinking switch": "{%- for m in messages[::-1] %}{% if m.role == 'user' %}{% set last = loop.revindex0 %}{% break %}"
    "{% endif %}{%- endfor %}{{- messages | map(attribute='content') | map('length') | sum }}\r\n"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>' }}{%- endif %}"
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ (documents or []) | length }}"
    "{{ messages | tojson(indent=2) }}{{ messages | map(attribute='role') | join(', ') | upper | indent(4) }}",
}
NAMED: dict[str, str | list[str]] = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "additional_special_tokens": ["<a>", "<b>"],
}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one": [{"role": "user", "content": "Hi"}],
    "system": [{"role": "system", "content": "Be brief. "}, {"role": "user", "content": "<&>'\"\n\n x 你好 "}],
    "turns": [
        {"role": "user", "content": " a"},
        {"role": "assistant", "content": "<think>b</think>\n\n\nc"},
        {"role": "user", "content": "d\r\ne"},
    ],
}
TOOL = {"type": "function", "function": {"name": "f", "description": "é", "parameters": {"type": "object"}}}
CALLED: list[dict[str, Any]] = [
    {"role": "user", "content": "Hi"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "id": "1", "function": {"name": "f", "arguments": {"a": [1, "é"]}}}],
    },
    {"role": "tool", "content": "42", "tool_call_id": "1"},
]


def theirs(source: str, messages: list[dict[str, Any]], **values: Any) -> str | None:
    """What transformers renders; None where the template refuses."""
    import jinja2
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        rendered, _ = render_jinja_template([messages], chat_template=source, **NAMED, **values)
    except jinja2.TemplateError:
        return None
    return str(rendered[0])


def ours(source: str, messages: list[dict[str, Any]], **values: Any) -> str | None:
    tools, prompt = values.pop("tools", None), values.pop("add_generation_prompt")
    try:
        return ChatTemplate(source, named_tokens=NAMED).render(
            messages, tools=tools, add_generation_prompt=prompt, variables=values
        )
    except PromptError:
        return None


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_renders_as_transformers_does(shape: str, conversation: str) -> None:
    messages = CONVERSATIONS[conversation]
    for prompt in (True, False):
        for more in ({}, {"enable_thinking": False}, {"system_message": "S", "documents": [{"title": "t"}]}):
            expected = theirs(SHAPES[shape], messages, add_generation_prompt=prompt, **more)
            assert ours(SHAPES[shape], messages, add_generation_prompt=prompt, **more) == expected
    assert expected is not None or (shape, conversation) == ("Gemma", "system")


def test_tools_render_as_transformers_does() -> None:
    source = SHAPES["Qwen 2.5 with tools"]
    for messages in (CONVERSATIONS["system"], CALLED):
        expected = theirs(source, messages, add_generation_prompt=True, tools=[TOOL])
        assert expected is not None
        assert "é" in expected
        assert ours(source, messages, add_generation_prompt=True, tools=[TOOL]) == expected


def test_glm4_renders_as_transformers_does(shared: Path) -> None:
    source = (shared / "chat-templates" / "glm-4-9b-chat.jinja").read_text(encoding="utf-8")
    golden = json.loads((shared / "chat-templates" / "golden_renders.json").read_text(encoding="utf-8"))
    for case in golden.values():
        for prompt in (True, False):
            expected = theirs(source, case["messages"], add_generation_prompt=prompt)
            assert ours(source, case["messages"], add_generation_prompt=prompt) == expected


@pytest.mark.parametrize("shape", SHAPES)
def test_long_conversations_are_not_too_much(shape: str) -> None:
    """Two thousand messages with four million characters: more than any context of today."""
    roles = ("user", "assistant") * 1000
    messages = [{"role": role, "content": f"{i} " + "word " * 400} for i, role in enumerate(roles)]
    started = time.perf_counter()
    text = ours(SHAPES[shape], messages, add_generation_prompt=True)
    assert text is not None
    assert len(text) > 3_000_000 or shape == "a thinking switch"
    assert time.perf_counter() - started < 60
