"""Conversations whose last message is not finished: the answer continues it.

In: messages; text that a template rendered from them. Out: the text up to the end of the last message's. Knows nothing
about templates or tokens.

What a template writes around a text is its own, so its end is marked before rendering, by characters that no guarded
text can hold (`markup`), and the prompt is cut there.
"""

from __future__ import annotations

from collections.abc import Sequence

from edge.runtime.errors import PromptError
from edge.runtime.markup import ESCAPE
from edge.runtime.messages import Message

_END = f"{ESCAPE}."  # escaped characters have other stand-ins
END_OF_TEXT = f"{_END}\u2002\u2003"  # white space that no template writes itself; if it is gone, texts are trimmed


def check_continues(messages: Sequence[Message]) -> None:
    """Raise PromptError unless the last message is a text of the assistant."""
    last, path = messages[-1], f"messages[{len(messages) - 1}]"
    if last.role != "assistant":
        raise PromptError(
            f"{path} is of the role {last.role!r}, and only an assistant's message can be continued; end with one, or "
            "leave continue_final_message out",
            param=f"{path}.role",
        )
    if last.tool_calls or last.metadata:
        raise PromptError(
            f"{path} is a call of a tool, which cannot be continued; leave continue_final_message out",
            param=f"{path}.tool_calls" if last.tool_calls else f"{path}.metadata",
        )


def up_to_the_end(rendered: str) -> str:
    """Return what was rendered up to the marked end. Raises PromptError if the template did not write the text.

    A template that trims texts has trimmed this one too; only its mark kept the blanks before it.
    """
    end = rendered.rfind(_END)
    if end < 0:
        raise PromptError("it does not write the last message's text, so nothing can be continued", param="messages")
    return rendered[:end] if rendered.startswith(END_OF_TEXT, end) else rendered[:end].rstrip()
