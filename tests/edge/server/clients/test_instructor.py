"""`instructor` against a live server: objects of a class, in the modes that hold an answer to its schema."""

from __future__ import annotations

from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict

from tests.edge.server.clients.serving import MODEL
from tests.edge.server.live import Live

pytestmark = pytest.mark.slow


class City(BaseModel):
    """A city."""

    model_config = ConfigDict(extra="forbid")  # a weak model would add keys until its limit
    name: Literal["Paris", "London"]
    size: Literal["small", "large"]
    capital: bool


@pytest.mark.parametrize("mode", ["JSON_SCHEMA", "TOOLS"])
def test_an_object_comes_at_the_first_attempt(live: Live, mode: str) -> None:
    import instructor
    from openai import OpenAI

    attempts = list[Any]()
    with OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as plain:
        client: Any = instructor.from_openai(plain, mode=instructor.Mode[mode])
        client.on("completion:kwargs", lambda **sent: attempts.append(sent))
        question = [{"role": "user", "content": "Paris is a large city and the capital of France. Describe Paris."}]
        found = client.chat.completions.create(
            model=MODEL, messages=question, response_model=City, max_tokens=120, max_retries=3
        )
    assert isinstance(found, City)
    assert len(attempts) == 1
