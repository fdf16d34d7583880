"""What a model writes is not trusted: markup is text, links are plain, and nothing of it runs or is fetched.

The reader of events is checked here as well, since it, too, is a module that only a browser runs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from tests.edge.web.fake_server import FakeServer, Json, Step, serving, spoken, text_of
from tests.edge.web.visitor import Visitor, visit

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = pytest.mark.slow

HOSTILE = [
    "<script>globalThis.hacked = 1</script>",
    "<img src=x onerror='globalThis.hacked = 1'>",
    "<svg onload='globalThis.hacked = 1'><script>globalThis.hacked = 1</script></svg>",
    "<iframe srcdoc='<script>parent.hacked = 1</script>'></iframe>",
    "[click](javascript:globalThis.hacked=1)",
    "[click](  JaVaScRiPt:globalThis.hacked=1)",
    "[click](data:text/html,<script>1</script>)",
    "[click](vbscript:x)",
    "![x](javascript:globalThis.hacked=1)",
    "![x](https://example.org/pixel.png)",
    '![x](https://example.org/a.png" onerror="globalThis.hacked=1)',
    '<a href="javascript:globalThis.hacked=1">click</a>',
    "<form action='https://example.org'><input name=a><button>Go</button></form>",
    "<style>body { display: none }</style><p style='position: fixed'>x</p>",
    "<p id='message'>x</p><a name='composer'>x</a>",
    "<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=x onerror=globalThis.hacked=1&gt;'>",
    "`<img src=x onerror=globalThis.hacked=1>`\n\n```html\n<script>globalThis.hacked=1</script>\n```",
    "<details open ontoggle='globalThis.hacked = 1'>x</details>",
    "<base href='https://example.org/'><link rel=stylesheet href='https://example.org/x.css'>",
    "| <img src=x onerror=globalThis.hacked=1> | b |\n|---|---|\n| <script>1</script> | [x](javascript:1) |",
]
DANGEROUS = {"SCRIPT", "IMG", "IFRAME", "SVG", "FORM", "INPUT", "STYLE", "BASE", "LINK", "MATH", "DETAILS", "OBJECT"}


def script(body: Json) -> Iterator[Step]:
    """Say what the user said."""
    yield from spoken(text_of(body))


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeServer]:
    with serving(script) as server:
        yield server


@pytest.fixture
def visitor(browser: Browser, fake: FakeServer) -> Iterator[Visitor]:
    with visit(browser, fake.url) as found:
        yield found


@pytest.mark.parametrize("kiosk", [False, True], ids=["page", "kiosk"])
def test_injected_markup_is_inert(browser: Browser, fake: FakeServer, kiosk: bool) -> None:
    with visit(browser, fake.url + ("?kiosk=1" if kiosk else "")) as visitor:
        for text in HOSTILE:
            visitor.ask(text)
        found = visitor.page.evaluate(
            """() => [...document.querySelectorAll('#log .answer *')].map((node) => [
                node.nodeName.toUpperCase(),
                node.getAttributeNames().filter((name) => /^on|^(style|id|name)$/.test(name)),
                node.getAttribute('href') ?? node.getAttribute('src'),
            ])"""
        )
        assert visitor.page.evaluate("() => globalThis.hacked") is None
        tags = {tag for tag, _, _ in found} - {"SVG"}  # the page's own icons
        assert not tags & DANGEROUS
        assert not [attributes for _, attributes, _ in found if attributes]
        addresses = {address for _, _, address in found if address}
        assert addresses == (
            set() if kiosk else {"https://example.org/pixel.png", "https://example.org/a.png"}
        )  # from pictures
        assert visitor.questions == HOSTILE, "and what a user wrote is shown as it was written"


def test_markup_is_shown_as_text(visitor: Visitor) -> None:
    assert visitor.ask("<b>bold</b> <u>x</u> <think>hm</think> a<br>b") == "bold <u>x</u> <think>hm</think> a\nb"
    assert visitor.answers.last.locator("b").count() == 1
    assert visitor.ask("<div>\n**x**\n</div>") == "<div>\n**x**\n</div>"


def test_links_open_elsewhere_and_tell_nothing(visitor: Visitor) -> None:
    visitor.ask(
        "[a](https://example.org/?q=1) <mailto:b@example.org> [c](/etc) [d](ftp://example.org) https://example.com"
    )
    links = visitor.answers.last.locator("a[href]")
    assert [link.get_attribute("href") for link in links.all()] == [
        "https://example.org/?q=1",
        "mailto:b@example.org",
        "https://example.com",
    ]
    assert {link.get_attribute("rel") for link in links.all()} == {"noopener noreferrer"}
    assert {link.get_attribute("target") for link in links.all()} == {"_blank"}


def test_pictures_are_not_shown(visitor: Visitor) -> None:
    shown = visitor.ask(
        "![dot](data:image/gif;base64,R0lGODlhAQABAIAAAP///wAAACwAAAAAAQABAAACAkQBADs=) ![](https://a.example/x)"
    )
    assert shown == "dot https://a.example/x"
    assert visitor.answers.locator("img").count() == 0


MARKDOWN = """# Title

A [link][later], *stress*, and `code`.
Second line.

- one

  continued
- two
  1. inner

| a | b |
|---|:-:|
| 1 | 2 |

```python
x = "<b>"

y = 1
```

> quoted
> more

- [x] done
- [ ] open

Setext
------

[later]: https://example.org
"""


def test_markdown_that_grows_ends_as_markdown_at_once(visitor: Visitor) -> None:
    """Only the last block is made anew, and still every prefix ends in what the whole text gives."""
    differing = visitor.page.evaluate(
        """async (text) => {
            const { MarkdownBlocks } = await import('/web/markdown.js');
            const whole = document.createElement('div');
            new MarkdownBlocks(whole).finish(text);
            const differing = [];
            for (const step of [1, 2, 3, 7, 50]) {
                const grown = document.createElement('div');
                const blocks = new MarkdownBlocks(grown);
                for (let end = step; end < text.length + step; end += step) blocks.grow(text.slice(0, end));
                blocks.finish(text);
                if (!grown.isEqualNode(whole)) differing.push([step, grown.textContent]);
            }
            return [differing, whole.querySelectorAll('a[href]').length, whole.querySelectorAll('.block').length];
        }""",
        MARKDOWN,
    )
    assert differing == [[], 1, 8]


def test_blocks_that_are_complete_are_left_alone(visitor: Visitor) -> None:
    kept = visitor.page.evaluate(
        """async () => {
            const { MarkdownBlocks } = await import('/web/markdown.js');
            const element = document.createElement('div');
            const blocks = new MarkdownBlocks(element);
            blocks.grow('first\\n\\nsecond');
            const first = element.firstElementChild;
            blocks.grow('first\\n\\nsecond\\n\\nthird');
            const second = element.children[1];
            blocks.grow('first\\n\\nsecond\\n\\nthird **x**');
            blocks.finish('first\\n\\nsecond\\n\\nthird **x**');
            return element.firstElementChild === first && element.children[1] === second;
        }"""
    )
    assert kept


def test_events_are_the_same_wherever_the_bytes_are_cut(visitor: Visitor) -> None:
    events = ['{"a": "é 中 🙂"}', "two\nlines", "[DONE]"]
    stream = ": ping\n\n" + "".join(
        "".join(f"data: {line}\r\n" for line in data.split("\n")) + "\r\n" for data in events
    )
    found = visitor.page.evaluate(
        """async (text) => {
            const { eventData } = await import('/web/api.js');
            const bytes = new TextEncoder().encode(text);
            const found = new Set();
            for (let cut = 0; cut <= bytes.length; cut++) {
                let alive = 0;
                const stream = new ReadableStream({start(controller) {
                    controller.enqueue(bytes.slice(0, cut));
                    controller.enqueue(bytes.slice(cut));
                    controller.close();
                }});
                const events = [];
                for await (const data of eventData(stream, () => alive++)) events.push(data);
                found.add(JSON.stringify(events));
            }
            return [...found];
        }""",
        stream,
    )
    assert found == [json.dumps(events, ensure_ascii=False, separators=(",", ":"))]
