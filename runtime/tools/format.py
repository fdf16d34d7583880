"""What distinguishes one format of tool calls from another.

In: nothing. Out: `ToolFormat`. Knows nothing about any one format: each has its own file, and `registry` lists them.

All formats known here call in the same way: the answer is the name of a tool, a newline, and a JSON object with the
arguments. GLM-4's "All Tools" have raw text in place of the object. There is one call in an answer.
"""

from __future__ import annotations

from dataclasses import dataclass

# GLM-4's All Tools -> the key under which the text of a call is its only argument.
RAW_ARGUMENTS = {"python": "code", "simple_browser": "input", "cogview": "input"}


@dataclass(frozen=True, slots=True)
class ToolFormat:
    """How a model is told of tools and how it calls them."""

    name: str
    native: frozenset[str] = frozenset()  # tools of GLM-4 that its template describes by their type alone
    pads_names: bool = False  # blanks may come between a name and its newline
    calls: bool = True  # False: this model's calls cannot be told from text
