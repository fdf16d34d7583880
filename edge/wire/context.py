"""The error for a prompt that does not fit, in the words and with the figures that clients look for.

litellm finds it by the first words, langchain by the code, llama.cpp's clients by the two figures.
"""

from __future__ import annotations

from edge.runtime.llm import LLM
from edge.wire.errors import RequestError


def too_long(llm: LLM, num_tokens: int, what: str, param: str) -> RequestError:
    """Return the error. what: is too long, in words; param: its path."""
    info = llm.engine.info
    context = info.max_context if info.max_prompt is None else info.max_prompt  # the one that was exceeded
    return RequestError(
        f"This model's maximum context length is {context} tokens. However, your {what} resulted in "
        f"{num_tokens} tokens, and the answer needs room too. Please shorten it.",
        code="context_length_exceeded",
        param=param,
        figures={"n_prompt_tokens": num_tokens, "n_ctx": context},
    )
