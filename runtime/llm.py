"""A loaded model: tokenizer, template, engine and scheduler together, ready to answer.

In: a bundle folder, or an engine with a tokenizer. Out: an `LLM` with `generate` (text, token ids or a `Prompt`),
`chat` (messages) and `generate_batch`. Any number of answers can run at once, read from any number of threads: waiting
for one of them advances all. Knows nothing about how a bundle is made.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar, Unpack

from edge.runtime import bundle as bundles
from edge.runtime.bundle import Bundle
from edge.runtime.chat import ChatTemplate
from edge.runtime.chat_stream import ChatStream
from edge.runtime.chats import Chats
from edge.runtime.chunk import Answer
from edge.runtime.constraint_masks import Constraints
from edge.runtime.engines.engine import Engine, EngineInfo
from edge.runtime.errors import BundleError, ClosedError, EdgeError, PromptError, SettingsError, own_error, shown
from edge.runtime.kv.prefix import PrefixStats
from edge.runtime.kv.snapshot_format import SnapshotIdentity
from edge.runtime.messages import MessageLike
from edge.runtime.prefixes import Prefixes
from edge.runtime.produced_ids import ProducedIds
from edge.runtime.prompt import Prompt
from edge.runtime.prompt_like import PromptLike, Prompts
from edge.runtime.rendering import Rendering
from edge.runtime.request import Request
from edge.runtime.rules import Whole, check_value
from edge.runtime.runner import Runner
from edge.runtime.sampling_defaults import recommended_sampling
from edge.runtime.scheduler import Scheduler, SchedulerStats
from edge.runtime.self_test import SelfTest
from edge.runtime.settings import (
    EngineSettings,
    GenerationOptions,
    GenerationSettings,
    Sampling,
    SpeculationSettings,
    generation_settings,
    seeded,
)
from edge.runtime.speculation import SharedDrafts, open_store
from edge.runtime.speculation.draft_bundle import DraftBundle, Engines, open_with_draft
from edge.runtime.speculation.model_source import model_drafts
from edge.runtime.stream import Stream, read_all
from edge.runtime.template_file import template_of
from edge.runtime.tokenizer import Tokenizer
from edge.runtime.tools.choice import ToolChoiceLike
from edge.runtime.tools.declared import JsonObject
from edge.runtime.vision.pictures import open_pictures
from edge.runtime.vision.progress import OnPicture
from edge.runtime.vision.prompts import PicturePrompts
from edge.runtime.vision.source import PictureSource

AnyStream = TypeVar("AnyStream", bound=Stream)
MAX_SAMPLES = 1024  # answers to one prompt at once

logger = logging.getLogger(__name__)


class LLM(Rendering):
    """A loaded bundle. Raises BundleError, TokenizerError, DeviceError, SettingsError and DraftStoreError.

    With `speculation`, steps verify drafts of several tokens; `draft_store` is a file of earlier answers to draft from,
    which is written every few answers and by `close`. Speculation makes the engine `reproducible` unless the settings
    say otherwise: answers then equal those without drafts, bit by bit (except with a kv_precision of u8 or u4).
    `chat_template` is a file to use instead of the bundle's; `draft` is the bundle of a smaller model to draft with.
    """

    def __init__(
        self,
        path: str | Path,
        settings: EngineSettings | None = None,
        speculation: SpeculationSettings | None = None,
        draft_store: str | Path | None = None,
        chat_template: str | Path | None = None,
        draft: str | Path | None = None,
    ) -> None:
        bundle = bundles.open_bundle(path)
        manifest = bundle.manifest
        tokenizer = Tokenizer.from_text(bundle.required(bundles.TOKENIZER), manifest.spec.vocab_size)
        template = template_of(bundle, tokenizer, chat_template)
        settings = settings or EngineSettings()
        if settings.reproducible is None:
            settings = replace(settings, reproducible=speculation is not None)
        second = None if draft is None else DraftBundle(draft, bundle, tokenizer, settings)
        self._bundle: Bundle | None = bundle
        self._identity = SnapshotIdentity(manifest.model_sha256, manifest.files[bundles.TOKENIZER].sha256, {})
        self.recommended_sampling = recommended_sampling(bundle.text(bundles.GENERATION_CONFIG))

        opening = partial(open_with_draft, bundle, settings, second)
        stop_ids, pictures = manifest.stop_token_ids, partial(open_pictures, bundle, settings=settings)
        self._set_up(opening, tokenizer, template, stop_ids, speculation, draft_store, pictures)

    @classmethod
    def from_engine(
        cls,
        engine: Engine,
        tokenizer: Tokenizer,
        *,
        template: ChatTemplate | None = None,
        stop_ids: Collection[int] = (),
        speculation: SpeculationSettings | None = None,
        draft_store: str | Path | None = None,
        recommended_sampling: Sampling | None = None,
        pictures: PictureSource | None = None,
        draft: Engine | None = None,
    ) -> Self:
        """Make a model without a bundle, from an engine of your own or `edge.ScriptedEngine`. Raises as `LLM` does."""
        self = cls.__new__(cls)
        self._bundle = None
        self.recommended_sampling = recommended_sampling or Sampling()
        sha256 = hashlib.sha256(tokenizer.to_json().encode()).hexdigest()
        self._identity = SnapshotIdentity(f"engine {engine.info.name}", sha256, {})
        engines = Engines(engine, draft)
        self._set_up(lambda: engines, tokenizer, template, stop_ids, speculation, draft_store, lambda _info: pictures)
        return self

    def _set_up(
        self,
        open_engines: Callable[[], Engines],
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
        stop_ids: Collection[int],
        speculation: SpeculationSettings | None,
        draft_store: str | Path | None,
        open_pictures: Callable[[EngineInfo], PictureSource | None],
    ) -> None:
        """Open the engine last, so that everything else that can be wrong is found before a model is loaded."""
        self.tokenizer, self.template, self.stop_ids = tokenizer, template, frozenset(stop_ids)
        sha256 = self._identity.tokenizer_sha256
        store = None if draft_store is None else open_store(Path(draft_store), sha256, num_ids=tokenizer.num_tokens)
        self._constraints = Constraints(tokenizer, tokenizer.num_tokens, self.stop_ids)
        self.self_test: SelfTest | None  # what loading it found; None: not asked for
        self.engine, second, self.self_test = open_engines()
        info, makers = self.engine.info, model_drafts(second, tokenizer.num_tokens)
        self._drafts = drafts = SharedDrafts(speculation, store, makers, info.least_rows)
        # Where bits count, nothing that others were answered decides ids.
        self._memory = ProducedIds(0) if info.reproducible else ProducedIds()
        self.pictures = open_pictures(info)
        self._chats = Chats(template, tokenizer, self.stop_ids, self._constraints, self._memory, self.pictures)
        if speculation is not None and (info.max_step_rows == 1 or not info.can_trim):
            self.engine.close()
            drafts.close()
            raise SettingsError(f"the {info.name} engine cannot verify drafts; load without speculation")
        self._identity = replace(self._identity, layout=self.engine.identity)
        self._scheduler = Scheduler(
            self.engine, drafts, lambda request: drafts.remember(request.ids, request.num_prompt_tokens)
        )
        self._runner = Runner(self._scheduler)
        pictures = PicturePrompts(self.pictures, info, tokenizer, self._runner, self._scheduler.covering)
        self._prompts = Prompts(self._chats.prompts, tokenizer, self._constraints, pictures)
        self.prefixes = Prefixes(
            self.engine, self._scheduler, self._runner, self._identity, self._computed, self._prompts.beginning
        )

    def __repr__(self) -> str:
        info, name = self.engine.info, "" if self._bundle is None else f"{self._bundle.path.name}: "
        return f"<LLM {name}{info.name} on {info.device}, {info.max_context} tokens{' (closed)' * self._runner.closed}>"

    @property
    def bundle(self) -> Bundle:
        """The loaded bundle. Raises BundleError for a model made by `from_engine`."""
        if self._bundle is None:
            raise BundleError("this model was made from an engine and has no bundle; load one with edge.load")
        return self._bundle

    def generate(
        self, prompt: PromptLike, *, on_picture: OnPicture | None = None, **options: Unpack[GenerationOptions]
    ) -> Stream:
        """Continue a prompt: text (special tokens in it are recognised), token ids, a `Prompt`, or messages.

        Keywords are the fields of `GenerationSettings` and `Sampling`. Raises SettingsError, PromptError and
        ContextLengthError. A beginning that the prompt shares with earlier ones is not computed again. on_picture: told
        how far the pictures of messages are; they are computed before this returns.
        """
        settings = self._settings(options)
        return self._submit(self._prompts.of(prompt, settings, on_picture), settings, Stream)

    def chat(
        self,
        messages: Sequence[MessageLike],
        *,
        tools: Sequence[JsonObject] | None = None,
        tool_choice: ToolChoiceLike | None = None,
        template_variables: JsonObject | None = None,
        continue_final_message: bool = False,
        on_picture: OnPicture | None = None,
        **options: Unpack[GenerationOptions],
    ) -> ChatStream:
        """Answer messages like `[{"role": "user", "content": "Hello"}]`; keywords and errors as in `generate`.

        tools: what the model may call, in OpenAI's form. tool_choice: "auto" (the default: text or a call), "none",
        "required", or the name of a tool; the last two need llguidance, which also holds arguments to their schemas.
        template_variables: further values for the chat template. Nothing in a message becomes a special token: a typed
        `<|user|>` is text. continue_final_message: write on where the last message ends, which is the assistant's; the
        answer has only what is new, and is text.
        """
        (stream,) = self.chat_samples(
            messages,
            1,
            tools=tools,
            tool_choice=tool_choice,
            template_variables=template_variables,
            continue_final_message=continue_final_message,
            on_picture=on_picture,
            **options,
        )
        return stream

    def chat_samples(
        self,
        messages: Sequence[MessageLike],
        n: int,
        *,
        tools: Sequence[JsonObject] | None = None,
        tool_choice: ToolChoiceLike | None = None,
        template_variables: JsonObject | None = None,
        continue_final_message: bool = False,
        memory: ProducedIds | None = None,  # of what answers were made of; none: the model's, for all conversations
        on_picture: OnPicture | None = None,
        **options: Unpack[GenerationOptions],
    ) -> list[ChatStream]:
        """Return `n` answers as `chat` does; the prompt is computed once. With a seed, answer i is that of seed + i."""
        number = check_value("n", Whole(1, MAX_SAMPLES), n)
        found = self._chats.prompts.prompt(
            messages, tools, template_variables, memory, continue_final_message=continue_final_message
        )
        settings, read = self._chats.answering(found, tool_choice, self._settings(options))
        prompt = self._prompts.of_chat(found, settings, on_picture)
        return [self._submit(prompt, one, read) for one in seeded(settings, number)]

    def generate_batch(self, prompts: Iterable[PromptLike], **options: Unpack[GenerationOptions]) -> list[Answer]:
        """Answer several prompts at once, as many per step as the KV cache holds; return the answers in order.

        Keywords as in `generate`; every answer gets the same seed. Raises SettingsError before anything runs. A prompt
        that cannot be answered becomes an `Answer` with its error, and the others continue.
        """
        settings = self._settings(options)
        if isinstance(prompts, str | bytes | Mapping) or not isinstance(prompts, Iterable):
            raise PromptError(f"prompts are {shown(prompts)}, expected a list of prompts", param="prompts")
        return read_all([self._try_submit(prompt, settings) for prompt in prompts])

    def sample(self, prompt: PromptLike, n: int, **options: Unpack[GenerationOptions]) -> list[Answer]:
        """Return `n` answers to one prompt, which is computed once. With a seed, answer i is that of seed + i."""
        return read_all(self.sample_streams(prompt, n, **options))

    def sample_streams(self, prompt: PromptLike, n: int, **options: Unpack[GenerationOptions]) -> list[Stream]:
        """Return what `sample` does as streams."""
        number = check_value("n", Whole(1, MAX_SAMPLES), n)
        found = self._prompts.of(prompt, settings := self._settings(options))
        return [self._submit(found, one, Stream) for one in seeded(settings, number)]

    def add_document(self, text: str) -> bool:
        """Draft from a text too, from now on and in later sessions; False if the draft store has it already.

        Raises SettingsError without a draft store.
        """
        self._runner.check_open()
        ids = self.tokenizer.encode(text)
        return self._runner.between_steps(lambda: self._drafts.add(ids))

    @property
    def stats(self) -> SchedulerStats:
        """What runs and waits, and what the KV cache holds, right now. Never waits for a step."""
        return self._runner.stats

    @property
    def cache_stats(self) -> PrefixStats:
        """What the prefix cache holds and has done so far. Never waits for a step."""
        return self._runner.stats.prefixes

    @property
    def num_cached_tokens(self) -> int:
        """How many tokens of finished requests still have their keys and values in the cache."""
        return self.cache_stats.tokens

    def clear_cache(self) -> None:
        """Drop everything that is kept from finished requests and not pinned, and the memory of what answers were."""
        self._memory.clear()
        self._runner.between_steps(self._scheduler.clear_cache)

    def close(self) -> None:
        """End every answer, write the draft store if there is one, and free the memory of model and cache.

        Raises OutputError when the store cannot be written; the memory is freed all the same. A second call changes
        nothing. Using the model afterwards raises ClosedError.
        """
        try:
            closing = self._runner.close(self._release)
        finally:
            self._drafts.save()
        if closing:
            logger.info("closed %r", self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _release(self) -> None:
        self._prompts.close()
        self.engine.close()
        self._drafts.close()

    def _settings(self, options: GenerationOptions) -> GenerationSettings:
        return generation_settings(self.recommended_sampling, **options)

    def _submit(
        self, prompt: Prompt, settings: GenerationSettings, reading: Callable[[Request, Runner], AnyStream]
    ) -> AnyStream:
        self._runner.check_open()
        prompt.check_fits(self.engine.info, settings)
        constraint = None if settings.constraint is None else self._constraints.start(settings.constraint)
        settings = self._drafts.with_seed(settings)
        drafter = self._drafts.drafter(prompt.ids, settings.sampling)
        request = Request(
            prompt, settings, self.tokenizer, self.stop_ids, self.engine.info.max_context, constraint, drafter
        )
        stream = reading(request, self._runner)  # before submitting, so that an interrupt leaves no request unread
        self._runner.submit(request)
        return stream

    def _try_submit(self, prompt: object, settings: GenerationSettings) -> Stream | EdgeError:
        try:
            return self._submit(self._prompts.of(prompt, settings), settings, Stream)
        except (SettingsError, ClosedError):
            raise
        except Exception as error:  # from a tokenizer or a constraint; other prompts are not affected
            return own_error(error)

    def _computed(self, prefix: object, on_picture: OnPicture | None) -> Prompt:
        """Compute a prefix, so that its keys and values are in the cache."""
        settings = GenerationSettings(max_new_tokens=1, ignore_stop_ids=True)
        prompt = self._prompts.of_prefix(prefix, settings, on_picture)
        self._submit(prompt, settings, Stream).answer()
        return prompt
