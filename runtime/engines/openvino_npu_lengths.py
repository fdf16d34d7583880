"""The lengths that a model is compiled for on an NPU: of prompts, answers, and pieces of a prompt.

In: settings and a model's limit. Out: `Lengths`, rounded as the NPU plugin rounds them, or a SettingsError. Knows
nothing about OpenVINO: the command line reads the defaults.

An NPU runs graphs of fixed shapes: one that reads a piece of a prompt, and one that writes a token. Both attend over
all places of the context, so places that are never used cost time as well as memory.
"""

from __future__ import annotations

from dataclasses import dataclass

from edge.runtime.errors import SettingsError
from edge.runtime.settings import EngineSettings

ROUNDED_TO = 64  # tokens; by the plugin, for both lengths
MAX_PROMPT = 1024  # the plugin's own default
# Chosen, not measured: the plugin's own default, 128, is less than a paragraph or two of an answer, and the 384 places
# more take 15 MB with 9B shapes.
MAX_RESPONSE = 512
CHUNK = 256  # as the plugin has it; a cancel waits for one chunk, and a conversation is reused in whole ones
LEAST_CHUNK = 8  # with fewer, the plugin finds no attention in the graph


@dataclass(frozen=True, slots=True)
class Lengths:
    """In tokens. Prompts are read in pieces of `chunk`; with `chunk` = `prompt`, whole."""

    prompt: int
    response: int
    chunk: int

    @property
    def capacity(self) -> int:
        """Tokens whose keys and values fit."""
        return self.prompt + self.response - 1

    @property
    def context(self) -> int:
        """Tokens of prompt and answer: the last one written is never read."""
        return self.prompt + self.response

    def __str__(self) -> str:
        return f"prompts of {self.prompt:,} tokens and answers of {self.response:,}"

    @property
    def whole(self) -> bool:
        """Whether prompts are read in one piece."""
        return self.chunk >= self.prompt


def lengths(settings: EngineSettings, limit: int, *, whole: bool) -> Lengths:
    """Return the lengths to compile for. limit: of the context. whole: whether prompts have to be read in one piece.

    Raises SettingsError for a chunk that the plugin cannot take, and for lengths that together exceed the limit.
    """
    asked, answer = settings.max_prompt_tokens, settings.max_response_tokens
    response = _up(answer or min(MAX_RESPONSE, limit), ROUNDED_TO)
    prompt = _up(asked or min(MAX_PROMPT, max(limit - response, ROUNDED_TO)), ROUNDED_TO)
    if asked is not None and asked >= limit:
        raise SettingsError(
            f"max_prompt_tokens is {asked}, expected 1 to {limit - 1}, as the context of {limit} holds the answer, too",
            param="max_prompt_tokens",
        )
    if answer is not None and answer > limit:
        raise SettingsError(
            f"max_response_tokens is {answer}, expected 1 to {limit}, the context", param="max_response_tokens"
        )
    if whole:
        if settings.prefill_chunk_tokens is not None and settings.prefill_chunk_tokens < prompt:
            raise SettingsError(
                f"prefill_chunk_tokens is {settings.prefill_chunk_tokens}, expected {prompt} or more with a float32 "
                "cache: the NPU plugin gives wrong answers when it reads prompts into one piece by piece; leave "
                "prefill_chunk_tokens out, or kv_precision",
                param="prefill_chunk_tokens",
            )
        return Lengths(prompt, response, prompt)
    chunk = settings.prefill_chunk_tokens
    if chunk is None:
        chunk = CHUNK
        while chunk >= prompt:
            chunk //= 2
    if chunk < LEAST_CHUNK or chunk & (chunk - 1):
        raise SettingsError(
            f"prefill_chunk_tokens is {chunk}, expected a power of 2 from {LEAST_CHUNK} on",
            param="prefill_chunk_tokens",
        )
    if chunk >= prompt:
        raise SettingsError(
            f"prefill_chunk_tokens is {chunk}, expected less than max_prompt_tokens, {prompt}: in several pieces, an "
            "answer can be cancelled before its prompt is read, and a conversation continues where it was",
            param="prefill_chunk_tokens",
        )
    return Lengths(_up(prompt, chunk), response, chunk)


def _up(count: int, step: int) -> int:
    return -(-count // step) * step
