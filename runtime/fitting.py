"""Which messages of a conversation are sent when the context has no room for all of them.

In: a model and messages. Out: the messages without the oldest turns, and those turns. Knows nothing about how long a
conversation is kept.
"""

from __future__ import annotations

from collections.abc import Sequence

from edge.runtime.llm import LLM
from edge.runtime.messages import Message
from edge.runtime.tools.declared import JsonObject
from edge.runtime.turns import without_oldest

ANSWER_SHARE = 4  # a quarter of the context is kept free for an answer, unless its limit is lower


def fitting(
    llm: LLM,
    messages: Sequence[Message],
    limit: int | None,
    *,
    tools: Sequence[JsonObject] | None = None,
    template_variables: JsonObject | None = None,
) -> tuple[list[Message], tuple[Message, ...]]:
    """Return the messages that are sent, and the dropped ones. limit: of the answer's tokens. Raises PromptError.

    A conversation that does not fit is cut to half the context, so that the next turns find room, and what they share
    with this one in the cache.
    """
    info = llm.engine.info
    context, longest = info.max_context, info.longest_prompt

    def count(some: Sequence[Message]) -> int:
        return len(llm.encode_chat(some, tools=tools, template_variables=template_variables))

    tokens = count(messages)
    if tokens + min(limit or context, context // ANSWER_SHARE) <= context and tokens <= longest:
        return list(messages), ()
    return without_oldest(messages, lambda some: count(some) <= min(context // 2, longest))
