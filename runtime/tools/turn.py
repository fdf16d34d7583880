"""What an answer to one request may be, and what to look for in it.

In: the declared tools, the request's choice among them, and what the answer must match otherwise. Out: a `CallForm` for
the reader, and a `Constraint` for the sampler. Knows nothing about messages or tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from edge.runtime.constraint import Constraint
from edge.runtime.errors import SettingsError
from edge.runtime.extras import install_command
from edge.runtime.tools.choice import tool_choice_of, tool_name
from edge.runtime.tools.declared import GLM_TOOLS, JsonObject
from edge.runtime.tools.format import ToolFormat
from edge.runtime.tools.grammar import ToolGrammars
from edge.runtime.tools.reader import CallForm

logger = logging.getLogger(__name__)


def answer_form(
    tools: Sequence[JsonObject],
    tool_choice: object,
    form: ToolFormat,
    grammars: ToolGrammars,
    *,
    otherwise: Constraint | None,
    lead: str,
    thinks: bool = False,
) -> tuple[CallForm, Constraint | None]:
    """Return the two. Raises SettingsError for a choice that cannot be held, PromptError for a strict schema.

    otherwise: what the answer must match if it is not a call. lead: see `CallForm`. Where answers cannot be held to a
    grammar, a free choice is left to the model, and calls are found by reading. thinks: so it is for a model that
    thinks first, since a grammar begins with the first token.
    """
    choice = tool_choice_of(tool_choice, tools)
    if choice.is_forced and not form.calls:
        raise SettingsError(
            "this model's chat template has a form of its own for calls, which edgeglm does not read, so the answer "
            "cannot be held to a call; leave tool_choice out",
            param="tool_choice",
        )
    if not tools or choice.kind == "none" or not form.calls:
        return CallForm({}, lead=lead), otherwise
    if choice.is_forced and not grammars.available:
        raise SettingsError(
            "only a grammar can hold an answer to a call, and llguidance is not installed; run: "
            f"{install_command('grammar')}",
            param="tool_choice",
        )
    constraint, held = otherwise, False
    thinks_first = thinks and not choice.is_forced and otherwise is None
    if grammars.available and not thinks_first:
        try:
            constraint, held = grammars.constraint(tools, form, choice, otherwise), True
        except SettingsError as error:
            if choice.is_forced or otherwise is not None:
                raise
            logger.warning("calls of tools are not held to their schemas: %s", error)
    names = {tool_name(tool): tool["type"] in GLM_TOOLS for tool in tools}
    return CallForm(names, form.pads_names, held, lead), constraint
