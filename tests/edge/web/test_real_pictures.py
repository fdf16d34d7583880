"""A picture on the page of `edge serve`, with a tiny model that sees: what is shown is what one process says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import edge
from edge.commands.serve import EXPECTED_CLIENTS
from edge.runtime.llm import LLM
from edge.runtime.messages import ImagePart, Message, TextPart
from edge.runtime.settings import EngineSettings
from tests.edge.server.live import Live, process
from tests.edge.web.test_pictures import attach, picture, wait_for_picture
from tests.edge.web.visitor import visit

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny_pictures import make_4v

    folder = tmp_path_factory.mktemp("4v")
    make_4v(folder / "checkpoint")
    edge.export(folder / "checkpoint", folder / "bundle")
    return folder / "bundle"


@pytest.fixture(scope="module")
def live(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    options = ("--engine", "onnx", "--reproducible", "--self-test", "off", "--sampling", "greedy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        with process(bundle, *options) as found:
            yield found


def looked_at(live: Live) -> dict[str, float]:
    lines = live.get("/metrics").body.decode().splitlines()
    return {line.split('"')[1]: float(line.split()[-1]) for line in lines if line.startswith("edge_pictures_total")}


def test_a_picture_is_answered_and_looked_at_once(browser: Browser, live: Live, bundle: Path, tmp_path: Path) -> None:
    data = picture(70, 56)
    settings = EngineSettings(
        engine="onnx", reproducible=True, expected_clients=EXPECTED_CLIENTS, kept_pictures_folder=tmp_path
    )
    asked = [Message("user", (ImagePart(data=data), TextPart("What is it?")))]
    with LLM(bundle, settings) as llm:
        expected = llm.chat(asked, max_new_tokens=20, sampling="greedy").answer()
    with visit(browser, live.url) as visitor:
        visitor.page.locator("#camera").wait_for()
        visitor.page.click("#open-settings")
        visitor.page.fill("#set-max_tokens", "20")
        visitor.page.click("#settings-save")
        attach(visitor, data)
        wait_for_picture(visitor)
        visitor.ask("What is it?")
        assert expected.stats is not None
        told = visitor.page.locator(".stats").inner_text()
        assert told.startswith(f"{expected.stats.new_tokens} tokens")
        assert f"{expected.stats.prompt_tokens} read" in told
        assert looked_at(live) == {"yes": 0, "no": 1}
        attach(visitor, data, "again.png")
        visitor.page.locator("#files .bad").wait_for()
        assert "one picture in a conversation" in visitor.page.locator("#files").inner_text()
        visitor.ask("And now?")
        assert looked_at(live)["no"] == 1
