"""2,000 requests that OpenAI's reference allows, or just not: each has a good answer or a good error."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from jsonschema import Draft202012Validator

from tests.edge.server.hostile import Server, serving_script, short
from tests.edge.server.raw import Answer, wait_until

pytestmark = pytest.mark.slow
REFERENCE = Path(__file__).with_name("openai_reference.yaml")
# How many requests that are allowed, and how many that are not, which take schemathesis a few times as long to find.
OPERATIONS = [
    ("POST", "/chat/completions", 650, 50),
    ("POST", "/completions", 600, 100),
    ("POST", "/responses", 500, 50),
    ("GET", "/models/{model}", 50, 0),
]
HUNG_S = 20


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    # Before there are other threads: Python 3.11 counts the depth of what it parses for all of them together.
    import schemathesis.specs.openapi.stateful.dependencies  # noqa: F401

    with serving_script(short, any_model=True) as server:
        yield server


def check(case: Any, base: str, answers: dict[str, Draft202012Validator]) -> int:  # Any: schemathesis' case
    """Send a request; return the status of its answer, which is a good one."""
    response = case.call(base_url=base, timeout=HUNG_S)
    found = Answer(response.status_code, {k.lower(): v[0] for k, v in response.headers.items()}, response.content)
    too_late = found.status == 504 and isinstance(case.body, dict) and "deadline_s" in case.body
    assert found.status < 500 or too_late, case.as_curl_command()
    if found.status == 200:
        kind = found.headers["content-type"].split(";")[0]
        assert kind in answers
        if kind == "application/json":
            answers[kind].validate(found.json)
        elif kind == "text/event-stream":
            assert found.body.endswith(b"\n\n")
    else:
        assert found.error["type"]
    return found.status


def validators(document: dict[str, Any], operation: dict[str, Any]) -> dict[str, Draft202012Validator]:  # Any: JSON
    contents = operation["responses"]["200"]["content"]
    return {kind: Draft202012Validator({**media["schema"], **document}) for kind, media in contents.items()}


@pytest.mark.parametrize(("method", "path", "allowed", "not_allowed"), OPERATIONS)
def test_openais_reference(server: Server, method: str, path: str, allowed: int, not_allowed: int) -> None:
    import schemathesis
    import yaml

    document = yaml.safe_load(REFERENCE.read_text(encoding="utf-8"))
    answers = validators(document, document["paths"][path][method.lower()])
    operation = schemathesis.openapi.from_path(REFERENCE)[path][method]
    modes = schemathesis.GenerationMode
    for mode, examples in ((modes.POSITIVE, allowed), (modes.NEGATIVE, not_allowed)):
        if examples:
            ask_all(operation, mode, examples, f"http://127.0.0.1:{server.port}/v1", answers)
            wait_until(server.is_free)


def ask_all(
    operation: Any,  # Any: schemathesis' operation, and mode
    mode: Any,
    examples: int,
    base: str,
    answers: dict[str, Draft202012Validator],
) -> None:
    statuses: set[int] = set()

    @settings(max_examples=examples, suppress_health_check=list(HealthCheck), database=None)
    @given(operation.as_strategy(generation_mode=mode))
    def ask(case: Any) -> None:  # Any: schemathesis' case
        statuses.add(check(case, base, answers))

    ask()
    assert statuses <= {200, 400, 404, 504}


def test_our_own_document(server: Server) -> None:
    """Answers are of the types that it lists, and errors have the shape that it has."""
    import schemathesis

    document = server.get("/openapi.json").json
    schema = schemathesis.openapi.from_dict(document)
    for path, operations in document["paths"].items():
        for method, described in operations.items():
            answers = validators(document, described)
            modes = schemathesis.GenerationMode
            for mode in (modes.POSITIVE, modes.NEGATIVE) if method == "post" else (modes.POSITIVE,):
                examples = 20 if method == "post" else 3
                operation = schema[path][method.upper()]
                ask_all(operation, mode, examples, f"http://127.0.0.1:{server.port}", answers)
    wait_until(server.is_free)
