"""Template rendering equals transformers', and a template cannot do harm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge.runtime.chat import ChatTemplate
from edge.runtime.errors import PromptError, TokenizerError

HI = [{"role": "user", "content": "hi"}]


def test_renders_equal_the_golden_ones(shared: Path) -> None:
    folder = shared / "chat-templates"
    template = ChatTemplate((folder / "glm-4-9b-chat.jinja").read_text(encoding="utf-8"))
    golden = json.loads((folder / "golden_renders.json").read_text(encoding="utf-8"))
    assert golden
    for name, case in golden.items():
        assert template.render(case["messages"]) == case["prompt"], name


def test_rendering_equals_transformers(demo_bundle: Path) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    source = (demo_bundle / "chat_template.jinja").read_text(encoding="utf-8")
    conversations = [
        [{"role": "user", "content": "Hi"}],
        [{"role": "system", "content": "S"}, {"role": "user", "content": "<&>'\"\n\n x "}],
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}],
    ]
    for messages in conversations:
        for prompt in (True, False):
            theirs, _ = render_jinja_template([messages], chat_template=source, add_generation_prompt=prompt)
            assert ChatTemplate(source).render(messages, add_generation_prompt=prompt) == theirs[0]


def test_tojson_leaves_characters_alone() -> None:
    template = ChatTemplate("{{ value | tojson(indent=4) }}")
    assert template.render(HI, variables={"value": {"ü<&>": "中文"}}) == '{\n    "ü<&>": "中文"\n}'


def test_template_that_refuses() -> None:
    template = ChatTemplate("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(PromptError, match="roles must alternate"):
        template.render([{"role": "user", "content": "x"}])


@pytest.mark.parametrize("messages", [[], ["hello"], [{"content": "no role"}]], ids=str)
def test_bad_messages(messages: list[object]) -> None:
    with pytest.raises(PromptError):
        ChatTemplate("{{ messages }}").render(messages)  # type: ignore[arg-type]


def test_template_that_does_not_compile() -> None:
    with pytest.raises(TokenizerError, match="does not compile"):
        ChatTemplate("{% if %}")


@pytest.mark.parametrize("attack", ["{{ ''.__class__.__mro__ }}", "{{ messages.append(1) }}"])
def test_templates_run_in_a_sandbox(attack: str) -> None:
    with pytest.raises(PromptError):
        ChatTemplate(attack + "{{ x.y.z }}").render([{"role": "user", "content": "x"}])
