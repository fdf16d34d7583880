"""Tool calls of GLM-4-9B: `name\\n{"city": "Paris"}`, or `python\\nprint(1)` for one of its own All Tools.

In: a call. Out: the metadata and content of the message that its template reads. The call ends at the stop id of
`<|observation|>`, and its result follows in a message of that role. Facts: chat_template of THUDM/glm-4-9b-chat and
process_response in composite_demo/src/conversation.py, THUDM/GLM-4 at 3f79b54.
"""

from __future__ import annotations

import json
from collections.abc import Collection

from edge.runtime.messages import ToolCall
from edge.runtime.tools.declared import JsonObject
from edge.runtime.tools.format import RAW_ARGUMENTS, ToolFormat

GLM4 = ToolFormat("glm-4-9b")


def call_message(call: ToolCall, native: Collection[str]) -> JsonObject:
    """Return a call as a message of an assistant.

    native: the tools of the conversation that are declared by type alone, and are called with text.
    """
    return {"role": "assistant", "metadata": call.name, "content": arguments_text(call, native)}


def arguments_text(call: ToolCall, native: Collection[str] = ()) -> str:
    """Return the arguments as the model writes them; as they are if they are not a JSON object."""
    arguments = call.parsed()
    if arguments is None:
        return call.arguments
    if call.name in native and list(arguments) == [RAW_ARGUMENTS[call.name]]:
        text = arguments[RAW_ARGUMENTS[call.name]]
        if isinstance(text, str) and text:
            return text
    return json.dumps(arguments, ensure_ascii=False)
