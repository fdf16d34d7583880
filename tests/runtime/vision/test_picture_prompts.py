"""Messages with pictures as prompts: where the special tokens stand, and what is refused in words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from edge.api import scripted_llm
from edge.runtime.chat import ChatTemplate
from edge.runtime.chat_prompts import ChatPrompts
from edge.runtime.engines.scripted import ASSISTANT, TEMPLATE, USER, noise
from edge.runtime.errors import PictureError, PromptError
from edge.runtime.markup import plain_text
from edge.runtime.messages import ImagePart, Message, TextPart, messages_from
from edge.runtime.produced_ids import ProducedIds
from edge.runtime.tokenizer import Tokenizer
from tests.runtime.vision.seeing import (
    BEGIN_ID,
    END_ID,
    IMAGE_ID,
    PARTS_TEMPLATE,
    FakePictures,
    seeing_llm,
    spec_with_ids,
    tokenizer_with_pictures,
)

SHARED = Path("/work/shared/data")
ANSWER = {"role": "assistant", "content": "C"}
BYTES = {"type": "image", "data": b"some file"}
# GLM-4.1V-9B-Thinking's own (Hugging Face zai-org/GLM-4.1V-9B-Thinking, chat_template.jinja).
GLM_4_1V = """[gMASK]<sop>
{%- for msg in messages %}
    {%- if msg.role == 'system' %}
<|system|>
{{ msg.content }}
    {%- elif msg.role == 'user' %}
<|user|>{{ '\\n' }}

        {%- if msg.content is string %}
{{ msg.content }}
        {%- else %}
            {%- for item in msg.content %}
                {%- if item.type == 'video' or 'video' in item %}
<|begin_of_video|><|video|><|end_of_video|>
                {%- elif item.type == 'image' or 'image' in item %}
<|begin_of_image|><|image|><|end_of_image|>
                {%- elif item.type == 'text' %}
{{ item.text }}
                {%- endif %}
            {%- endfor %}
        {%- endif %}
    {%- elif msg.role == 'assistant' %}
        {%- if msg.metadata %}
<|assistant|>{{ msg.metadata }}
{{ msg.content }}
        {%- else %}
<|assistant|>
{{ msg.content }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{% if add_generation_prompt %}<|assistant|>
{% endif %}"""


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}


def prompts_of(kind: Any, source: str, tokenizer: Tokenizer, **changes: Any) -> ChatPrompts:
    pictures = FakePictures(spec_with_ids(kind, **changes))
    return ChatPrompts(ChatTemplate(source, tokenizer.markup), tokenizer, (), ProducedIds(), pictures)


@pytest.fixture(scope="module")
def glm4() -> Tokenizer:
    folder = SHARED / "glm4-tokenizer"
    if not folder.is_dir():
        pytest.skip("GLM-4's tokenizer is not here")
    return Tokenizer(folder / "tokenizer.json")


GLM4_IDS = {"begin_id": 151339, "placeholder_id": 151329, "end_id": 151340}


@pytest.mark.parametrize("picture_first", [True, False])
def test_glm_4vs_ids_are_those_of_its_own_code(glm4: Tokenizer, picture_first: bool) -> None:
    """The three ids directly before the text, behind the role's line, which is encoded apart; wherever the part is."""
    source = (SHARED / "chat-templates" / "glm-4-9b-chat.jinja").read_text(encoding="utf-8")
    prompts = prompts_of("eva", source, glm4, **GLM4_IDS)
    words = "What is in this picture? 描述一下"
    system = {"role": "system", "content": "Be brief."}
    parts = (BYTES, words) if picture_first else (words, BYTES)
    found = prompts.prompt([system, user(*parts), {"role": "assistant", "content": "\nTea."}, user("Why?")])

    def told(role: str, *ids: int, text: str) -> list[int]:
        role_id = glm4.token_id(f"<|{role}|>")
        assert role_id is not None
        return [role_id, *glm4.encode("\n"), *ids, *glm4.encode(text)]

    head = glm4.encode("[gMASK]<sop>")
    assert head == [151331, 151333]
    assert found.ids[: len(head)] == head
    first = [*head, *told("system", text="Be brief."), *told("user", 151339, 151329, 151340, text=words)]
    assert found.ids[: len(first)] == first
    assert found.ids[-1] == glm4.token_id("<|assistant|>")
    assert len(found.spliced.ids) == len(found.ids) + 18 - 3, "as many as rows"


def test_a_picture_alone_is_a_message_of_glm_4v(glm4: Tokenizer) -> None:
    source = (SHARED / "chat-templates" / "glm-4-9b-chat.jinja").read_text(encoding="utf-8")
    found = prompts_of("eva", source, glm4, **GLM4_IDS).prompt([user(BYTES)])
    assert found.ids == [*glm4.encode("[gMASK]<sop><|user|>\n"), 151339, 151329, 151340, 151337]


def test_glm_4_1vs_template_writes_the_pictures_where_they_stand() -> None:
    tokenizer = tokenizer_with_pictures()
    prompts = prompts_of("glm4v", GLM_4_1V, tokenizer)
    other = {"type": "image", "data": b"another file"}
    found = prompts.prompt([user("A", BYTES, "B", other), ANSWER, user(BYTES, "D")])
    picture = [BEGIN_ID, IMAGE_ID, END_ID]
    assert found.ids == [
        *b"[gMASK]<sop>", USER, *b"\nA", *picture, *b"B", *picture,
        ASSISTANT, *b"\nC", USER, *b"\n", *picture, *b"D", ASSISTANT, *b"\n",
    ]  # fmt: skip
    (theirs,), _ = render_jinja_template(
        conversations=[[user("A", {"type": "image"}, "B", {"type": "image"}), ANSWER, user({"type": "image"}, "D")]],
        chat_template=GLM_4_1V,
        add_generation_prompt=True,
    )
    assert plain_text(found.text) == theirs
    first, second, again = found.spliced.places
    keys = [[found.spliced.keys[i] for i in place] for place in (first, second, again)]
    assert keys[0] == keys[2] != keys[1]


def test_glm_4_1vs_template_has_no_place_for_results_of_tools() -> None:
    """It reads `metadata` as GLM-4's does, and writes nothing for the role `observation`: results become text."""
    template = ChatTemplate(GLM_4_1V)
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    calling = {"role": "assistant", "content": None, "tool_calls": [call]}
    result = {"role": "tool", "tool_call_id": "1", "content": "23 degrees"}
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    for tools in ([], [tool]):
        assert "23 degrees" in template.render([user("Weather?"), calling, result], tools=tools)


def test_typed_tokens_of_pictures_are_text() -> None:
    for kind, source in (("eva", TEMPLATE), ("glm4v", PARTS_TEMPLATE)):
        tokenizer = tokenizer_with_pictures()
        prompts = prompts_of(kind, source, tokenizer)
        typed = "<|begin_of_image|><|image|><|end_of_image|><|endoftext|>"
        found = prompts.prompt([{"role": "user", "content": typed}])
        assert found.ids == [USER, *typed.encode(), ASSISTANT]
        assert not found.pictures
        both = prompts.prompt([user(f"<|begin_of_image|>{typed}", BYTES)])
        assert both.ids.count(BEGIN_ID) == 1


def test_an_answer_that_looks_like_a_picture_is_none() -> None:
    """Its ids are remembered as they were written, special tokens among them."""
    prompts = prompts_of("glm4v", PARTS_TEMPLATE, tokenizer_with_pictures())
    asked = prompts.prompt([user(BYTES, "What?")])
    written = [*b"Tea", BEGIN_ID, IMAGE_ID, END_ID]
    prompts.remember(asked, "Tea", written, Message("assistant", "Tea"))
    later = prompts.prompt([user(BYTES, "What?"), {"role": "assistant", "content": "Tea"}, user("Why?")])
    assert later.ids == [USER, BEGIN_ID, IMAGE_ID, END_ID, *b"What?", ASSISTANT, *b"Tea", USER, *b"Why?", ASSISTANT]
    assert len(later.spliced.places) == 1


REFUSED: dict[str, tuple[list[Any], str, str]] = {
    "of an answer": ([user("a"), {"role": "assistant", "content": [BYTES]}], "messages[1].content[0]", "'assistant'"),
    "of the system": ([{"role": "system", "content": [BYTES]}], "messages[0].content[0]", "'system'"),
    "two sources": ([user({**BYTES, "path": "a.png"})], "messages[0].content[0]", "path and data"),
    "no source": ([user({"type": "image"})], "messages[0].content[0]", "none of them"),
    "no bytes": ([user({"type": "image", "data": "text"})], "messages[0].content[0].data", "the bytes"),
    "an empty file": ([user({"type": "image", "data": b""})], "messages[0].content[0].data", "the bytes"),
    "no path": ([user({"type": "image", "path": 5})], "messages[0].content[0].path", "the path"),
    "no pixels": ([user({"type": "image", "image": [[1]]})], "messages[0].content[0].image", "uint8"),
    "a film": ([user("a", {"type": "video", "path": "a.mp4"})], "messages[0].content[1].type", "'image'"),
    "a URL": ([user({"type": "image_url", "image_url": {"url": "x"}})], "messages[0].content[0].type", "'image'"),
    "broken": ([user({"type": "image", "data": b"broken"})], "messages[0].content[0]", "no picture"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_other_pictures_are_refused_in_words(name: str) -> None:
    messages, param, words = REFUSED[name]
    prompts = prompts_of("glm4v", PARTS_TEMPLATE, tokenizer_with_pictures())
    with pytest.raises(PromptError) as refused:
        prompts.prompt(messages)
    assert refused.value.param == param
    assert words in str(refused.value)


def test_a_model_without_eyes_says_what_to_do() -> None:
    with (
        scripted_llm(noise()) as llm,
        pytest.raises(PictureError, match="reads text and nothing else; leave it out") as e,
    ):
        llm.chat([user("Look:", BYTES)])
    assert e.value.param == "messages[0].content[1]"


def test_more_pictures_than_the_model_takes_are_refused_by_their_place() -> None:
    pictures = FakePictures(spec_with_ids("eva"))
    llm = seeing_llm(pictures)
    with pytest.raises(PictureError, match=r"takes one picture in one; start a new conversation, or leave") as refused:
        llm.chat([user(BYTES, "a"), {"role": "assistant", "content": "b"}, user("c", BYTES)])
    assert refused.value.param == "messages[2].content[1]"
    assert not pictures.runs


def test_a_template_that_drops_pictures_is_not_believed() -> None:
    source = "{% for m in messages %}{% if m.type == 'image' %}{% endif %}{{ m.role }}{% endfor %}"
    prompts = prompts_of("glm4v", source, tokenizer_with_pictures())
    with pytest.raises(PictureError, match="the messages have 1, the prompt 0"):
        prompts.prompt([user(BYTES)])
    as_json = prompts_of("eva", "{{ messages | tojson }}", tokenizer_with_pictures())
    with pytest.raises(PictureError, match="the prompt 0"):
        as_json.prompt([user(BYTES)])


def test_parts_are_read_in_every_form(tmp_path: Path) -> None:
    file = tmp_path / "a.png"
    array = np.zeros((2, 3, 3), np.uint8)
    content = [
        TextPart("Look: "),
        ImagePart(file),
        {"type": "image", "path": str(file)},
        {"type": "image", "path": file},
        ImagePart(data=b"x"),
        {"type": "image", "data": bytearray(b"x")},
    ]
    (message,) = messages_from([{"role": "user", "content": content}])
    assert message.text == "Look: "
    assert message.pictures == (ImagePart(file),) * 3 + (ImagePart(data=b"x"),) * 2
    assert messages_from([message.to_dict()]) == (message,), "what it writes is what it reads"
    assert messages_from([message]) == (message,)
    pil = pytest.importorskip("PIL.Image")
    from edge.runtime.vision.decode import open_picture

    for given in (array, pil.fromarray(array)):
        (made,) = messages_from([user({"type": "image", "image": given})])
        data = made.pictures[0].data
        assert data is not None
        assert np.array_equal(open_picture(data).pixels, array)


def test_a_conversation_with_a_picture_is_continued_like_any_other() -> None:
    for kind, source in (("eva", TEMPLATE), ("glm4v", PARTS_TEMPLATE)):
        prompts = prompts_of(kind, source, tokenizer_with_pictures())
        messages = [user(BYTES, "a"), {"role": "assistant", "content": "It is "}]
        whole = prompts.prompt(messages, add_generation_prompt=False)
        assert prompts.prompt(messages, continue_final_message=True).ids == whole.ids


def test_a_tower_whose_tokens_the_tokenizer_lacks_is_refused() -> None:
    tokenizer = tokenizer_with_pictures()
    spec = replace(spec_with_ids("glm4v"), placeholder_id=65)
    with pytest.raises(Exception, match="no special token of id 65, which stands for pictures"):
        ChatPrompts(ChatTemplate(TEMPLATE, tokenizer.markup), tokenizer, (), ProducedIds(), FakePictures(spec))
