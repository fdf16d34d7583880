"""A model's first work, done before a visitor waits for it.

In: a loaded model. Out: the same, with its weights in place, its template rendered and its grammars ready. Knows
nothing about requests.
"""

from __future__ import annotations

import logging

from edge.runtime.errors import EdgeError
from edge.runtime.llm import LLM
from edge.runtime.tools.declared import JsonObject

_TOOL: JsonObject = {
    "type": "function",
    "function": {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}},
}
_TOKENS = 2  # the first is chosen after reading, the second after decoding

logger = logging.getLogger(__name__)


def warm_up(llm: LLM) -> None:
    """Answer two short questions. What they left in the cache is dropped."""
    question = [{"role": "user", "content": "Hello"}]
    try:
        if llm.template is None:
            llm.generate([0, 0, 0, 0], max_new_tokens=_TOKENS, ignore_stop_ids=True).answer()
        else:
            llm.chat(question, max_new_tokens=_TOKENS, ignore_stop_ids=True).answer()
            llm.chat(question, max_new_tokens=_TOKENS, tools=[_TOOL]).answer()
    except EdgeError as error:  # requests will be told, if it is more than this
        logger.info("the model could not be warmed up: %s", error)
    llm.clear_cache()
