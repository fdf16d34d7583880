"""Somebody in front of the page: opens it, writes, waits, reads. In: a browser and an address. Out: what is to be seen.

Everything the page asks for is recorded, and everything that the browser complains about.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, Page

QUIET_MS = 8000  # the longest that anything here may take
_EXPECTED = "Failed to load resource: the server responded with a status of"  # refusals of a script


@dataclass
class Visitor:
    """A page that is open."""

    page: Page
    hosts: set[str | None] = field(default_factory=set)
    complaints: list[str] = field(default_factory=list)

    def write(self, text: str) -> None:
        """Put a message into the field and press Enter."""
        self.page.fill("#message", text)
        self.page.press("#message", "Enter")

    def ask(self, text: str) -> str:
        """Send a message; return the answer as it is shown."""
        before = self.answers.count()
        self.write(text)
        self.page.wait_for_function("n => document.querySelectorAll('.assistant').length > n", arg=before)
        return self.answer()

    def answer(self) -> str:
        """Wait for the end of a running answer; return the last one as it is shown."""
        self.wait_for("!document.querySelector('#action').classList.contains('running')")
        return self.answers.last.locator(".answer").inner_text()

    def wait_for(self, condition: str) -> None:
        """Wait until an expression holds in the page. (A bare expression would need the policy to allow eval.)"""
        self.page.wait_for_function(f"() => {condition}")

    def sees(self, text: str) -> None:
        """Wait until a text is in the log."""
        self.page.locator("#log").get_by_text(text).first.wait_for()

    @property
    def answers(self) -> Locator:
        return self.page.locator(".assistant")

    @property
    def questions(self) -> list[str]:
        found: list[str] = self.page.locator(".bubble").evaluate_all(
            "bubbles => bubbles.map((bubble) => [...bubble.children].map((line) => line.textContent).join('\\n'))"
        )
        return found

    def check(self) -> None:
        """Nothing left the host, and the browser found nothing wrong."""
        assert self.hosts <= {"127.0.0.1", None}, self.hosts
        assert not self.complaints


@contextmanager
def visit(
    browser: Browser,
    url: str,
    *,
    size: tuple[int, int] = (1280, 800),
    theme: Literal["light", "dark"] = "light",
    before: str | None = None,
) -> Iterator[Visitor]:
    """Open the page in a profile of its own; before: a script that runs before the page's own."""
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]}, color_scheme=theme, reduced_motion="reduce"
    )
    context.set_default_timeout(QUIET_MS)
    page = context.new_page()
    visitor = Visitor(page)
    page.on("request", lambda request: visitor.hosts.add(urlsplit(request.url).hostname))
    page.on("pageerror", lambda error: visitor.complaints.append(str(error)))
    page.on(
        "console",
        lambda message: (
            visitor.complaints.append(message.text)
            if message.type in ("error", "warning") and not message.text.startswith(_EXPECTED)
            else None
        ),
    )
    if before is not None:
        page.add_init_script(before)
    try:
        page.goto(url)
        page.wait_for_selector("body.ready")
        yield visitor
        visitor.check()
    finally:
        context.close()
