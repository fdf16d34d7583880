"""A model's first work, done before a visitor waits for it.

In: a loaded model. Out: the same, with its weights in place, its template rendered, its grammars ready, and what many
conversations begin with computed. Knows nothing about requests.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from edge.runtime.errors import EdgeError
from edge.runtime.llm import LLM
from edge.runtime.prefixes import open_prefixes
from edge.runtime.tools.declared import JsonObject
from edge.server.service import Stage

_TOOL: JsonObject = {
    "type": "function",
    "function": {"name": "f", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}},
}
_TOKENS = 2  # the first is chosen after reading, the second after decoding

logger = logging.getLogger(__name__)


def make_ready(
    llm: LLM,
    prefixes: Sequence[str | Path],
    system: str | None,
    documents: Sequence[str] = (),
    stage: Stage = lambda _what, _share: None,
) -> None:
    """Open prefix files, warm the model up, and compute a system message that has no file.

    documents: texts for the draft store. stage: told what is being done. Closes the model if anything fails. Raises
    SnapshotError, SettingsError, PromptError and ContextLengthError.
    """
    try:
        for document in documents:
            llm.add_document(document)
        stage("opening prefixes", 0.7)
        open_prefixes(llm.prefixes, prefixes, system)
        stage("warming up", 0.8)
        warm_up(llm)
        if system is not None and not prefixes:
            llm.prefixes.warm(llm.system_prefix(system))
    except BaseException:
        llm.close()
        raise


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
