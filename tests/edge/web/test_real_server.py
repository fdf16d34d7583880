"""The page on `edge serve` with the demo model: what is shown is what was computed, and nothing needs a network.

The server wants a key and is below a path, as behind a proxy. The last test runs most others again where there is no
network at all: in a namespace whose only interface is loopback.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from make_pdf import make_pdf

from tests.conftest import ROOT
from tests.edge.web.visitor import Visitor, visit

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.slow

KEY, PATH = "s3cret-of-the-museum", "/llm"
BUNDLE = "EDGEGLM_TEST_BUNDLE"  # given to the run in a namespace
CORE = "conversation or document or stop"  # what the run in a namespace repeats
CONTEXT = 2048


@pytest.fixture(scope="module")
def bundle(request: pytest.FixtureRequest) -> Path:
    given = os.environ.get(BUNDLE)
    found = Path(given) if given else request.getfixturevalue("demo_bundle")
    assert isinstance(found, Path)
    return found


@pytest.fixture(scope="module")
def url(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that is ready."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(f"{KEY}\n", encoding="utf-8")
    keys.chmod(0o600)
    options = ["--port", "0", "--max-context", str(CONTEXT), "--api-key-file", str(keys), "--root-path", PATH]
    command = [sys.executable, "-m", "edge", "serve", str(bundle), *options]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        try:
            assert server.stdout is not None
            said = ""
            while "ready" not in said:
                line = server.stdout.readline()
                assert line, said
                said += line
            found = re.search(r"http://[\d.]+:\d+", said)
            assert found is not None, said
            yield f"{found[0]}{PATH}/"
        finally:
            server.send_signal(signal.SIGTERM)
            server.communicate(timeout=30)


@pytest.fixture
def visitor(browser: Browser, url: str) -> Iterator[Visitor]:
    """Somebody who has given the key."""
    with visit(browser, url) as found:
        found.page.locator("#key").wait_for()
        found.page.locator("#set-key").press_sequentially(KEY)
        found.page.keyboard.press("Enter")
        found.page.locator("#status").get_by_text("of 2,048 tokens").wait_for()
        yield found


def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def status(url: str) -> dict[str, int]:
    request = urllib.request.Request(f"{url}page/status.json", headers={"authorization": f"Bearer {KEY}"})
    with urllib.request.urlopen(request, timeout=10) as response:
        found: dict[str, int] = json.load(response)
    return found


def test_a_conversation(visitor: Visitor) -> None:
    visitor.page.click("#open-settings")
    visitor.page.fill("#set-max_tokens", "6")
    visitor.page.click("#settings-save")
    first = visitor.ask("Name three colours.")
    assert first
    visitor.sees("The answer ended at its limit of length.")
    assert visitor.ask("And three more?")
    stats = visitor.answers.last.locator(".stats").inner_text()
    found = re.fullmatch(r"6 tokens · [\d.]+ tok/s · (\d+) read in [\d.]+ s · (\d+) % from the cache", stats)
    assert found is not None, stats
    assert int(found[2]) > 50, "the first turn is in the cache"
    assert f"{int(found[1]) + 6} of 2,048 tokens" in visitor.page.locator("#status").inner_text()


def test_stop_frees_the_server(visitor: Visitor, url: str) -> None:
    visitor.write("Write a very long story about a lighthouse.")
    visitor.page.wait_for_function("() => document.querySelector('.answer')?.textContent.length > 20")
    assert status(url)["running"] == 1
    visitor.page.keyboard.press("Escape")
    until(lambda: status(url)["running"] == 0)
    visitor.sees("Stopped.")


def test_a_document_is_read_and_what_is_too_long_is_told(visitor: Visitor, tmp_path: Path) -> None:
    report = tmp_path / "report.pdf"
    report.write_bytes(make_pdf(["The lighthouse was built in 1851."]))
    long = tmp_path / "long.txt"
    long.write_text("The sea is wide. " * 1000, encoding="utf-8")
    visitor.page.locator("#choose-files").set_input_files(report)
    visitor.page.locator("#files").get_by_text("tokens").wait_for()
    visitor.write("When?")
    visitor.page.wait_for_function("() => document.querySelector('.answer')?.textContent.length > 3")
    visitor.page.keyboard.press("Escape")
    visitor.answer()
    visitor.page.locator("#choose-files").set_input_files(long)
    visitor.page.locator("#files .bad").first.wait_for()


def test_a_conversation_that_does_not_fit_is_told(visitor: Visitor) -> None:
    visitor.write("The sea is wide. " * 800)
    visitor.sees("maximum context length is 2048 tokens")


def test_the_policy_of_the_server_is_kept(visitor: Visitor, url: str) -> None:
    """What a policy forbids would be among the visitor's complaints, in this test and in all others."""
    with urllib.request.urlopen(url, timeout=10) as response:
        policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "require-trusted-types-for 'script'" in policy
    blocked = visitor.page.evaluate(
        """() => { try { document.body.innerHTML = '<p>x</p>'; return false; } catch { return true; } }"""
    )
    assert blocked
    visitor.complaints.clear()


def test_all_of_it_without_a_network(bundle: Path) -> None:
    unshare = shutil.which("unshare")
    if (
        unshare is None
        or shutil.which("ip") is None
        or subprocess.run([unshare, "-rn", "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("network namespaces cannot be made here")
    test = [
        sys.executable,
        "-m",
        "pytest",
        *["-q", "-n", "0", "-p", "no:cacheprovider", "-m", "slow", "-k"],
        CORE,
        __file__,
    ]
    alone = 'ip link set lo up && test "$(ip -o link | wc -l)" = 1 && exec "$@"'
    command = [unshare, "-rn", "sh", "-c", alone, "sh", *test]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, BUNDLE: str(bundle)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert re.search(r"4 passed", done.stdout), done.stdout[-1000:]
