"""Every field that a body of /v1/messages may have; see `fields.py` for what the words mean.

In: nothing. Out: the table. Knows nothing about what the fields do.
"""

from __future__ import annotations

from edge.wire.fields import CHAT, Field
from edge.wire.responses_fields import EXTENSIONS

ANTHROPIC = {
    "messages": Field("used", ("array",)),
    "system": Field("used", ("string", "array"), absent=("", [])),
    "max_tokens": Field("used", ("integer",)),  # may be missing here: then to the end of the context
    "stop_sequences": Field("used", ("array",), absent=([],)),
    "tools": Field("used", ("array",), absent=([],)),
    "tool_choice": Field("used", ("object",)),
    "thinking": Field("used", ("object",), absent=({"type": "disabled"},)),
    "output_config": Field("used", ("object",), absent=({},)),
    **{name: CHAT[name] for name in ("model", "stream", "temperature", "top_p", "top_k")},
    **{name: CHAT[name] for name in EXTENSIONS if name != "stop"},
    **dict.fromkeys(
        (
            "cache_control",
            "context_management",  # a conversation that is too long is an error here, or cut by the server's own rule
            "diagnostics",
            "inference_geo",
            "metadata",
            "service_tier",
            "speed",
            "user_profile_id",
            "workspace_id",
        ),
        Field("accepted"),
    ),
    "container": Field("unsupported"),
    "mcp_servers": Field("unsupported", absent=([],)),
}
