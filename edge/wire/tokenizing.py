"""/tokenize, /detokenize and /tokenizer_info, in vLLM's shapes: what a text or a conversation is in tokens, and back.

In: bodies, and a model. Out: JSON. Nothing is computed, and nothing is remembered. Knows nothing about HTTP.

The tokens are those that this server computes for the same text or messages. So special tokens in a text are
recognised, and none is added to it unless `add_special_tokens` says so; those in messages are text.
"""

from __future__ import annotations

from typing import Any

from edge.runtime import bundle as bundles
from edge.runtime.chat import named_tokens
from edge.runtime.errors import BundleError, PromptError, TokenizerError, shown
from edge.runtime.json_reader import parse_json
from edge.runtime.llm import LLM
from edge.runtime.tools.declared import JsonObject
from edge.wire.answers import JsonBody
from edge.wire.body import in_terms_of
from edge.wire.errors import RequestError
from edge.wire.fields import Field, is_of, read_fields
from edge.wire.old_logprobs import text_of
from edge.wire.pictures import with_pictures

_FLAG = Field("used", ("boolean",))
_MODEL = Field("accepted")  # any name: there is one model
TEXT = {
    "prompt": Field("used", ("string",)),
    "model": _MODEL,
    "add_special_tokens": _FLAG,
    "return_token_strs": _FLAG,
}
MESSAGES = {
    "messages": Field("used", ("array",)),
    "model": _MODEL,
    "tools": Field("used", ("array",), absent=([],)),
    "chat_template_kwargs": Field("used", ("object",)),
    "add_generation_prompt": _FLAG,
    "continue_final_message": _FLAG,
    "return_token_strs": _FLAG,
    "add_special_tokens": Field("unsupported", absent=(False,)),
    "chat_template": Field("unsupported"),
    "mm_processor_kwargs": Field("unsupported", absent=({},)),
}
IDS = {"tokens": Field("used", ("array",)), "model": _MODEL}


def tokenize(body: JsonObject, llm: LLM) -> JsonBody:
    """Return the tokens of a text or of messages. Raises RequestError."""
    if body.get("messages") is not None:
        fields = read_fields(body, MESSAGES)
        ids = _ids_of_messages(body, fields, llm)
    else:
        fields = read_fields(body, TEXT)
        ids = _ids_of_text(fields, llm)
    found: JsonBody = {"tokens": ids, "count": len(ids), "max_model_len": llm.engine.info.max_context}
    if fields.get("return_token_strs", False):
        found["token_strs"] = [llm.tokenizer.token_text(token_id) for token_id in ids]
    return found


def detokenize(body: JsonObject, llm: LLM) -> JsonBody:
    """Return the text of tokens, special ones included. Raises RequestError."""
    fields = read_fields(body, IDS)
    if "tokens" not in fields:
        raise RequestError("tokens is missing", code="missing_required_parameter", param="tokens")
    ids: list[Any] = fields["tokens"]  # Any: JSON
    for index, token_id in enumerate(ids):
        path = f"tokens[{index}]"
        if not is_of(token_id, ("integer",)):
            raise RequestError(
                f"{path} is {shown(token_id)}, expected a token id, a whole number", code="invalid_type", param=path
            )
        if not 0 <= token_id < llm.tokenizer.num_tokens:
            raise RequestError(
                f"{path} is {shown(token_id)}, expected a token id from 0 to {llm.tokenizer.num_tokens - 1}",
                code="invalid_value",
                param=path,
            )
    return {"prompt": text_of(map(int, ids), llm.tokenizer)}


def tokenizer_info(llm: LLM) -> JsonBody:
    """Return what clients ask before they encode anything: names of tokens, and the chat template's source."""
    template = llm.template
    named = _named_tokens(llm)
    return {
        "eos_token": named.get("eos_token") or _first_stop_token(llm),
        "bos_token": named.get("bos_token"),
        "pad_token": named.get("pad_token"),
        "unk_token": named.get("unk_token"),
        "chat_template": None if template is None else template.source,
    }


def _ids_of_text(fields: JsonObject, llm: LLM) -> list[int]:
    if "prompt" not in fields:
        raise RequestError(
            "prompt is missing, and so is messages; send one of them", code="missing_required_parameter", param="prompt"
        )
    try:
        ids = llm.tokenizer.encode(fields["prompt"])
    except (PromptError, TokenizerError) as error:
        raise RequestError(str(error), code="invalid_value", param="prompt") from error
    return [*llm.tokenizer.added_ids, *ids] if fields.get("add_special_tokens", False) else ids


def _ids_of_messages(body: JsonObject, fields: JsonObject, llm: LLM) -> list[int]:
    continued = fields.get("continue_final_message", False)
    if continued and fields.get("add_generation_prompt", False):
        raise RequestError(
            "add_generation_prompt begins a message and continue_final_message continues the last one; give one of the "
            "two",
            code="invalid_value",
            param="add_generation_prompt",
        )
    messages, pictures = with_pictures(fields["messages"], sees=llm.pictures is not None)
    for picture in pictures:
        picture.open(llm)
    body = {**body, "messages": messages}
    with in_terms_of(body, {"template_variables": "chat_template_kwargs"}):
        return llm.encode_chat(
            messages,
            tools=fields.get("tools"),
            template_variables=fields.get("chat_template_kwargs"),
            add_generation_prompt=fields.get("add_generation_prompt", True),
            continue_final_message=continued,
        )


def _named_tokens(llm: LLM) -> dict[str, str | list[str]]:
    if llm.template is not None:
        return llm.template.named_tokens
    try:
        config = parse_json(llm.bundle.text(bundles.TOKENIZER_CONFIG) or "{}", "tokenizer_config.json", BundleError, "")
    except BundleError:  # made from an engine
        return {}
    return named_tokens(config) if isinstance(config, dict) else {}


def _first_stop_token(llm: LLM) -> str | None:
    """Return the text of the token that ends an answer, in the model's own order of several."""
    try:
        ids = list(llm.bundle.manifest.stop_token_ids)
    except BundleError:  # made from an engine
        ids = sorted(llm.stop_ids)
    return llm.tokenizer.token_text(ids[0]) if ids else None
