"""What the page of a server shows: its words, languages and idle times, from a file of the operator.

In: a JSON file. Out: a checked record, and the JSON that the page is given. What is not set is missing there, and the
page shows its own words. Knows nothing about the page, or who serves it.

    {"title": "Museum of Ghent", "greeting": "Ask me about the paintings.", "suggestions": ["Who was Van Eyck?"],
     "languages": ["en", "nl"], "idle_seconds": 90, "kiosk": true, "system": "You are the guide of a museum."}

Every visitor may read all of it, the system message included.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from edge.runtime.errors import SettingsError, shown
from edge.runtime.files import shown_path
from edge.runtime.json_reader import read_json_object
from edge.runtime.rules import Flag, Number, Refusal, Settings, Whole, refuse_unknown, setting

MAX_BYTES = 1 << 20  # of the file
LONGEST_TITLE, LONGEST_LINE, LONGEST_GREETING, LONGEST_SYSTEM = 100, 300, 2000, 100_000  # characters
MOST_SUGGESTIONS, MOST_LANGUAGES = 12, 40
IDLE_S, WARNING_S = 90.0, 20.0  # of a kiosk whose operator says nothing else
MAX_IDLE_S = 24 * 3600
MAX_PROMPT_CHARS = 10_000_000
_ADVICE = "see docs/kiosk.md for the keys of a page's configuration"
_LANGUAGE = re.compile(r"[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8}){0,3}")
_LINE_ENDS = re.compile(r"[\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")


@dataclass(frozen=True, slots=True)
class Words:
    """Words to show: printable, of a limited length."""

    longest: int  # characters
    lines: bool = False  # whether there may be several

    @property
    def expected(self) -> str:
        return f"{'text' if self.lines else 'one line of text'} of 1 to {self.longest:,} characters"

    def take(self, value: object) -> str:
        if not isinstance(value, str) or not value.strip():
            raise Refusal
        if len(value) > self.longest:
            raise Refusal(f"is too long ({len(value):,} characters)")
        if not self.lines and _LINE_ENDS.search(value):
            raise Refusal(f"is {shown(value)}, which has a line end")
        for character in value:
            if (
                (character < " " and character not in "\t\n\r")
                or character == "\x7f"
                or "\ud800" <= character < "\ue000"
            ):
                raise Refusal(f"is {shown(value)}, which has the character {character!a}")
        return value


@dataclass(frozen=True, slots=True)
class ListOf:
    """A few different texts."""

    each: Words
    most: int
    pattern: re.Pattern[str] | None = None
    words: str = ""  # what each is

    @property
    def expected(self) -> str:
        return f"a list of up to {self.most} different {self.words or 'texts'}, each {self.each.expected}"

    def take(self, value: object) -> tuple[str, ...]:
        if not isinstance(value, list | tuple):
            raise Refusal
        if len(value) > self.most:
            raise Refusal(f"is a list of {len(value):,} entries")
        taken: list[str] = []
        for number, item in enumerate(value, 1):
            try:
                text = self.each.take(item)
            except Refusal as refusal:
                raise Refusal(f"is a list whose entry {number} {str(refusal) or f'is {shown(item)}'}") from None
            if self.pattern is not None and not self.pattern.fullmatch(text):
                raise Refusal(f"is a list whose entry {number} is {shown(text)}")
            if text in taken:
                raise Refusal(f"is a list that has {shown(text)} twice")
            taken.append(text)
        return tuple(taken)


_SECONDS = Number(0, MAX_IDLE_S, above=True)
_LANGUAGES = ListOf(Words(35), MOST_LANGUAGES, _LANGUAGE, words='language tags like "en" or "pt-BR"')


@dataclass(frozen=True, slots=True)
class PageConfig(Settings):
    """The words and times of the page. Raises SettingsError for any that cannot be shown."""

    title: str | None = setting(None, Words(LONGEST_TITLE), "name at the top of the page")
    greeting: str | None = setting(None, Words(LONGEST_GREETING, lines=True), "words that a visitor is met with")
    placeholder: str | None = setting(None, Words(LONGEST_LINE), "words in the empty field for questions")
    suggestions: tuple[str, ...] | None = setting(
        None, ListOf(Words(LONGEST_LINE), MOST_SUGGESTIONS, words="questions"), "questions to choose from"
    )
    languages: tuple[str, ...] | None = setting(None, _LANGUAGES, "languages of the page, the first one first")
    idle_seconds: float | None = setting(None, _SECONDS, "seconds without a visitor until the page starts anew")
    idle_warning_seconds: float | None = setting(None, _SECONDS, "how many of them show a countdown")
    max_prompt_chars: int | None = setting(None, Whole(1, MAX_PROMPT_CHARS), "longest question, in characters")
    system: str | None = setting(None, Words(LONGEST_SYSTEM, lines=True), "system message of every conversation")
    kiosk: bool = setting(False, Flag(), "whether the page is for one visitor after the other")

    pictures: bool | None = setting(None, Flag(), "whether visitors may show pictures to a model that sees them")

    def check_together(self) -> None:
        idle, warning = self.idle_seconds, self.idle_warning_seconds
        if warning is not None and idle is None:
            raise SettingsError(
                f"idle_warning_seconds is {warning:g} without idle_seconds, expected both; set idle_seconds, too",
                param="idle_warning_seconds",
            )
        if warning is not None and idle is not None and warning >= idle:
            raise SettingsError(
                f"idle_warning_seconds is {warning:g} and idle_seconds {idle:g}, expected fewer; a countdown is "
                "the end of the idle time",
                param="idle_warning_seconds",
            )

    def to_json(self) -> dict[str, Any]:  # Any: JSON
        """Return what is set, by the keys that the file has."""
        values = {spec.name: getattr(self, spec.name) for spec in fields(self)}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
            if value is not None
        }


def read_page_config(path: Path) -> PageConfig:
    """Return what a file says. Raises SettingsError, which names the file and the key."""
    found = read_json_object(path, SettingsError, _ADVICE, max_bytes=MAX_BYTES, unique_keys=True)
    try:
        refuse_unknown(found, {spec.name for spec in fields(PageConfig)})
        return PageConfig(**found)
    except SettingsError as error:
        raise SettingsError(f"{shown_path(path)}: {error}; {_ADVICE}", param=error.param) from error
