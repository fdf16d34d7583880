"""A body of /v1/completions, as what `LLM.generate` takes.

In: a JSON object, whose prompt is a text, token ids, or a list of either. Out: a `CompletionRequest`, and streams of
its answers. Special tokens in a text are recognised, as in `LLM.generate`. Knows nothing about how an answer is sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from edge.runtime.chunk import Answer
from edge.runtime.errors import ContextLengthError, EdgeError, shown
from edge.runtime.llm import LLM
from edge.runtime.settings import GenerationOptions, UsualSampling
from edge.runtime.stream import Stream
from edge.runtime.tools.declared import JsonObject
from edge.runtime.vision.progress import OnPicture
from edge.wire.answers import Head, JsonBody, text_completion
from edge.wire.body import in_terms_of, refusal_of
from edge.wire.completion_events import CompletionEvents
from edge.wire.context import too_long
from edge.wire.errors import RequestError
from edge.wire.events import AnswerEvents
from edge.wire.fields import COMPLETION, check_type, is_of, read_fields
from edge.wire.old_logprobs import Echo, echo_of
from edge.wire.pictures import WirePicture
from edge.wire.settings import RequestSettings, read_settings

MAX_PROMPTS = 128
OnePrompt = str | list[int]


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """Prompts to continue, and how."""

    body: JsonObject
    settings: RequestSettings
    prompts: tuple[OnePrompt, ...]
    is_list: bool  # whether the body has a list of them
    echo: bool  # whether an answer begins with its prompt

    @classmethod
    def from_body(cls, body: JsonObject) -> Self:
        """Raises RequestError for everything that is wrong whatever the model."""
        fields = read_fields(body, COMPLETION)
        if "prompt" not in fields:
            raise RequestError("prompt is missing", code="missing_required_parameter", param="prompt")
        prompts, is_list = _prompts(fields["prompt"])
        logprobs, echo = fields.get("logprobs"), fields.get("echo", False)
        more = {} if logprobs is None else {"logprobs": logprobs}
        if echo and (logprobs is not None or fields.get("max_tokens") == 0):
            more["prompt_logprobs"] = logprobs or 0
        settings = read_settings(body, fields, COMPLETION, more)
        return cls(body, settings, prompts, is_list, echo)

    @property
    def pictures(self) -> tuple[WirePicture, ...]:
        """None: a prompt is text or ids."""
        return ()

    def opened(self, llm: LLM) -> Self:  # noqa: ARG002  # as others need it
        """Return the request as it is."""
        return self

    def fitted(self, llm: LLM) -> Self:  # noqa: ARG002  # text has no turns to drop
        """Return the request as it is."""
        return self

    def start(
        self,
        llm: LLM,
        sampling: UsualSampling = "greedy",
        on_picture: OnPicture | None = None,  # noqa: ARG002  # there are none
    ) -> list[Stream]:
        """Return a stream for each choice, all submitted: those of the first prompt first. Raises as a ChatRequest."""
        found: list[Stream] = []
        try:
            for index, prompt in enumerate(self.prompts):
                found += self._start_one(llm, sampling, prompt, f"prompt[{index}]" if self.is_list else "prompt")
        except BaseException:
            for stream in found:
                stream.close()  # or it would keep its place in the queue, with nobody to read it
            raise
        return found

    def _start_one(self, llm: LLM, sampling: UsualSampling, prompt: str | list[int], path: str) -> list[Stream]:
        settings = self.settings
        options: GenerationOptions = {"sampling": sampling, **settings.options}
        with in_terms_of(self.body, {**settings.names, "prompt": path, "ids": path}):
            try:
                return llm.sample_streams(prompt, settings.n, **options)
            except ContextLengthError as error:
                ids = llm.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
                raise too_long(llm, len(ids), "prompt", path) from error

    def answer(self, head: Head, answers: Sequence[Answer], llm: LLM) -> JsonBody:
        """Return the body that answers this. Raises RequestError if a deadline left nothing to send."""
        settings = self.settings
        return text_completion(
            head,
            answers,
            llm.tokenizer,
            echoed=self._echoed(llm),
            logprobs=settings.options.get("logprobs") is not None,
            num_prompts=len(self.prompts),
            token_ids=settings.token_ids,
        )

    def events(self, head: Head, llm: LLM) -> AnswerEvents:
        """Return what makes the events of a streamed answer."""
        return CompletionEvents(head, self.settings, llm.tokenizer, self._echoed(llm), len(self.prompts))

    def _echoed(self, llm: LLM) -> list[Echo]:
        """Return what each choice begins with."""
        if not self.echo:
            return []
        echoes = [echo_of(prompt, llm.tokenizer) for prompt in self.prompts]
        return [echo for echo in echoes for _ in range(self.settings.n)]

    def refusal(self, error: EdgeError) -> EdgeError:
        """Return an error that ended an answer in terms of the body, or as it is if the body is not to blame."""
        return refusal_of(error, self.body, self.settings.names)


def _prompts(given: Any) -> tuple[tuple[OnePrompt, ...], bool]:  # Any: JSON
    """Return the prompts, and whether the body has a list of them."""
    if isinstance(given, str):
        return (given,), False
    if given and all(is_of(item, ("integer",)) for item in given):
        return (given,), False
    if not given or len(given) > MAX_PROMPTS:
        raise RequestError(
            f"prompt is a list of {len(given)}, expected 1 to {MAX_PROMPTS} prompts",
            code="invalid_value",
            param="prompt",
        )
    for index, item in enumerate(given):
        path = f"prompt[{index}]"
        check_type(path, item, ("string", "array"))
        if isinstance(item, list) and not all(is_of(token_id, ("integer",)) for token_id in item):
            raise RequestError(
                f"{path} is {shown(item)}, expected a text or a list of token ids", code="invalid_type", param=path
            )
    return tuple(given), True
