"""The `llm` command against a live server, with the file of models that its users write."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edge.runtime.llm import LLM
from tests.edge.server.clients.conversations import HELLO, LIMIT, PARAMETERS
from tests.edge.server.clients.serving import MODEL
from tests.edge.server.live import Live

pytestmark = pytest.mark.slow


@pytest.fixture
def environment(live: Live, tmp_path: Path) -> dict[str, str]:
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: local\n  model_name: {MODEL}\n  api_base: {live.url}/v1\n"
        "  supports_schema: true\n  supports_tools: true\n",
        encoding="utf-8",
    )
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    return {
        **os.environ,
        **proxies,
        "NO_PROXY": "127.0.0.1",
        "LLM_USER_PATH": str(tmp_path),
        "LLM_LOAD_PLUGINS": "",
        "OPENAI_API_KEY": "none",
    }


def said(environment: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "llm", "-m", "local", "-o", "max_tokens", str(LIMIT), *arguments],
        env=environment, capture_output=True, encoding="utf-8", stdin=subprocess.DEVNULL, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_command_says_what_one_process_says(environment: dict[str, str], single: LLM) -> None:
    question = HELLO[0]["content"]
    expected = single.chat(HELLO, max_new_tokens=LIMIT).text()
    assert said(environment, question).strip() == expected.strip()
    assert said(environment, "--no-stream", question).strip() == expected.strip()
    again = [*HELLO, {"role": "assistant", "content": expected}, {"role": "user", "content": "And one more?"}]
    continued = said(environment, "--continue", "And one more?").strip()
    assert continued == single.chat(again, max_new_tokens=LIMIT).text().strip()


def test_an_answer_is_held_to_a_schema(environment: dict[str, str]) -> None:
    schema = {**PARAMETERS, "properties": {"city": {"enum": ["Paris", "Rome"]}}}
    found = said(environment, "--schema", json.dumps(schema), "Where is the Louvre?")
    assert json.loads(found)["city"] in ("Paris", "Rome")
