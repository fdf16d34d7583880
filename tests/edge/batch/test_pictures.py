"""Lines with pictures: answered like others, resumed like others, and no way to files of the machine."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from edge.batch.batch import JOURNAL, Batch
from edge.batch.settings import BatchSettings
from edge.runtime.llm import LLM
from edge.runtime.vision.progress import PictureProgress
from tests.edge.batch.jobs import Body, line, message, write
from tests.runtime.vision.seeing import FakePictures, seeing_llm, spec_with_ids


class Stop(BaseException):
    """What ends a process, for tests within one."""


def seen(content: bytes, **fields: Any) -> Body:
    url = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    parts = [{"type": "text", "text": "What is it?"}, {"type": "image_url", "image_url": {"url": url}}]
    return {"messages": [{"role": "user", "content": parts}], "max_tokens": 4, "temperature": 1, **fields}


LINES: list[Body | bytes] = [
    line("cat", seen(b"a cat")),
    line("words", message("Hello")),
    line("dog", seen(b"a dog")),
    line("cat again", seen(b"a cat", max_tokens=2)),
    line("broken", seen(b"broken")),
    line("path", {"messages": [{"role": "user", "content": [{"type": "image", "path": "/etc/passwd"}]}]}),
    line("link", {"messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]}),
]  # fmt: skip


def model() -> tuple[LLM, FakePictures]:
    pictures = FakePictures(spec_with_ids("glm4v"))
    return seeing_llm(pictures), pictures


def answered(requests: Path, out: Path, on_picture: Any = None) -> tuple[dict[str, Any], FakePictures]:
    llm, pictures = model()
    with llm, Batch(requests, out, BatchSettings(concurrency=3)) as batch:
        batch.run(llm, {}, on_picture=on_picture)
    lines = map(json.loads, out.read_text().splitlines())
    return {one["custom_id"]: one["response"] for one in lines}, pictures


def test_pictures_are_answered_beside_text(tmp_path: Path) -> None:
    told: list[PictureProgress] = []
    found, pictures = answered(write(tmp_path / "in", LINES), tmp_path / "out", told.append)
    assert {name: one["status_code"] for name, one in found.items()} == {
        "cat": 200, "words": 200, "dog": 200, "cat again": 200, "broken": 400, "path": 400, "link": 400,
    }  # fmt: skip
    assert len(pictures.runs) == 2, "a picture that came before is known"
    assert [one.done for one in told] == [*range(pictures.spec.num_layers + 1)] * 2
    usage = found["cat"]["body"]["usage"]
    assert usage["prompt_tokens"] > 6 + len("What is it?"), "its rows count"


@pytest.mark.parametrize("at", [0, 2, 5])
def test_a_batch_that_ended_within_a_picture_resumes(tmp_path: Path, at: int) -> None:
    requests = write(tmp_path / "in", LINES)
    whole, _ = answered(requests, tmp_path / "whole")
    told = 0

    def stop(_: PictureProgress) -> None:
        nonlocal told
        told += 1
        if told > at:
            raise Stop

    with pytest.raises(Stop):
        answered(requests, tmp_path / "out", stop)
    assert not (tmp_path / "out").exists()
    again, _ = answered(requests, tmp_path / "out")
    assert again == whole
    assert not (tmp_path / f"out{JOURNAL}").exists()
