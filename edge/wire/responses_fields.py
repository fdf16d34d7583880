"""Every field that a body of /v1/responses may have; see `fields.py` for what the words mean.

In: nothing. Out: the table. Knows nothing about what the fields do.
"""

from __future__ import annotations

from edge.wire.fields import CHAT, Field

# Not OpenAI's for this endpoint: settings that other local servers have, under the names they have for chats.
EXTENSIONS = (
    "stop",
    "seed",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "min_tokens",
    "stop_token_ids",
    "ignore_eos",
    "structured_outputs",
    "regex",
    "grammar",
    "deadline_s",
    "chat_template_kwargs",
)
RESPONSES = {
    "input": Field("used", ("string", "array")),
    "instructions": Field("used", ("string",), absent=("",)),
    "max_output_tokens": Field("used", ("integer",)),
    "text": Field("used", ("object",), absent=({},)),
    "tools": Field("used", ("array",), absent=([],)),
    "tool_choice": Field("used", ("string", "object")),
    "include": Field("used", ("array",), absent=([],)),
    **{name: CHAT[name] for name in ("model", "stream", "temperature", "top_p", "top_k", *EXTENSIONS)},
    **dict.fromkeys(
        (
            "client_metadata",
            "context_management",  # a conversation that is too long is an error here, or cut by the server's own rule
            "max_tool_calls",
            "metadata",
            "moderation",
            "parallel_tool_calls",
            "prompt_cache_key",
            "prompt_cache_options",
            "prompt_cache_retention",
            "reasoning",
            "safety_identifier",
            "service_tier",
            "store",
            "stream_options",
            "user",
        ),
        Field("accepted"),
    ),
    "background": Field("unsupported", absent=(False,)),
    "conversation": Field("unsupported"),
    "previous_response_id": Field("unsupported", absent=("",)),
    "prompt": Field("unsupported"),
    "top_logprobs": Field("unsupported", absent=(0,)),
    "truncation": Field("unsupported", absent=("disabled",)),
}
