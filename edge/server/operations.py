"""What each path does, for /openapi.json. A test holds this to the table of routes.

In: nothing. Out: a list. Knows nothing about how anything is answered.
"""

from __future__ import annotations

from edge.server.openapi import Operation
from edge.wire.anthropic_fields import ANTHROPIC
from edge.wire.fields import CHAT, COMPLETION
from edge.wire.responses_fields import RESPONSES
from edge.wire.tokenizing import IDS, MESSAGES, TEXT

OPERATIONS = (
    Operation("GET", "/", "the page", answers="text/html", needs_key=False),
    Operation("GET", "/web/{name:path}", "a file of the page", answers="text/plain", needs_key=False),
    Operation("GET", "/health", "whether a request would be answered now", needs_key=False),
    Operation("GET", "/metrics", "figures for Prometheus", answers="text/plain"),
    Operation("GET", "/openapi.json", "this document"),
    Operation("GET", "/v1/models", "the names of the model"),
    Operation("GET", "/v1/models/{name:path}", "one name of the model"),
    Operation("GET", "/tokenizer_info", "names of special tokens, and the chat template"),
    Operation("GET", "/page-config.json", "words, times and suggestions of the page", needs_key=False),
    Operation("GET", "/page/status.json", "how busy the server is"),
    Operation("POST", "/page/read-document", "the text of a document, whose bytes are the body"),
    Operation("POST", "/v1/chat/completions", "answer messages", CHAT, ("messages",), streams=True),
    Operation("POST", "/v1/completions", "continue a text", COMPLETION, ("prompt",), streams=True),
    Operation("POST", "/v1/responses", "answer items, as OpenAI's responses", RESPONSES, ("input",), streams=True),
    Operation(
        "POST", "/v1/messages", "answer messages, as Anthropic's", ANTHROPIC, ("messages", "max_tokens"), streams=True
    ),
    Operation("POST", "/v1/messages/count_tokens", "count the tokens of messages in Anthropic's form", ANTHROPIC),
    Operation("POST", "/tokenize", "the tokens of a text or of messages", {**MESSAGES, **TEXT}),
    Operation("POST", "/detokenize", "the text of tokens", IDS, ("tokens",)),
)
