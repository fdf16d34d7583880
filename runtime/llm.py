"""A loaded model: bundle, tokenizer, template, engine and scheduler together, ready to answer.

In: a bundle folder. Out: an `LLM` with `generate` (raw prompt), `chat` (messages) and `generate_batch`. Any number of
answers at once, from any number of threads: whoever reads one drives all of them a step further. Knows nothing about
how a bundle is made.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from edge.runtime import bundle as bundles
from edge.runtime.bundle import Bundle
from edge.runtime.chat import ChatTemplate, open_template
from edge.runtime.constraints import Constraints
from edge.runtime.engines import EngineSettings
from edge.runtime.engines.choice import open_engine
from edge.runtime.errors import BundleError, EdgeError, PromptError, SettingsError
from edge.runtime.kv.prefix import PrefixStats, common_prefix
from edge.runtime.kv.snapshot import SnapshotIdentity, open_snapshot, save_snapshot
from edge.runtime.logprobs import TokenLogprob
from edge.runtime.messages import Message, MessageLike
from edge.runtime.request import Chunk, FinishReason, GenerationSettings, Request, Stats
from edge.runtime.sampling import Sampling
from edge.runtime.scheduler import Scheduler
from edge.runtime.speculation import Acceptance, Drafter, DraftStore, SpeculationSettings, StepCost
from edge.runtime.tokenizer import Tokenizer

Prompt = str | Sequence[int] | Sequence[MessageLike]  # text, token ids, or messages
REMEMBERED_PROMPT = 32  # its last ids go to the draft store with an answer, which begins alike when it is asked again
PROBES = ("a", "\n7", "“是的”")  # user messages that share no beginning, to find what every conversation begins with


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    stats: Stats | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    error: EdgeError | None = None  # where finish_reason is "error"


class LLM:
    """A loaded bundle. Raises BundleError, TokenizerError, DeviceError, SettingsError and DraftStoreError.

    With `speculation`, steps verify drafts of several tokens; `draft_store` is a file of earlier answers to draft from,
    which `close` writes. Unless the settings say otherwise, it makes the engine `reproducible`: answers are then those
    without drafts, bit by bit (unless kv_precision asks for u8 or u4).
    """

    def __init__(
        self,
        path: str | Path,
        settings: EngineSettings | None = None,
        speculation: SpeculationSettings | None = None,
        draft_store: str | Path | None = None,
    ) -> None:
        self.bundle = bundles.open_bundle(path)
        manifest = self.bundle.manifest
        self.stop_ids = frozenset(manifest.stop_token_ids)
        self.tokenizer = Tokenizer(_required(self.bundle, bundles.TOKENIZER))
        texts = (self.bundle.text(name) for name in (bundles.CHAT_TEMPLATE, bundles.TOKENIZER_CONFIG))
        self.template = open_template(next(texts), self.tokenizer, next(texts))
        settings = settings or EngineSettings()
        if settings.reproducible is None:
            settings = replace(settings, reproducible=speculation is not None)
        self._tokenizer_sha256 = manifest.files[bundles.TOKENIZER].sha256
        self._speculation, self._cost, self._acceptance = speculation, StepCost(), Acceptance()
        self._store = None if draft_store is None else DraftStore.open(Path(draft_store), self._tokenizer_sha256)
        self._constraints = Constraints(self.tokenizer, self.tokenizer.num_tokens, self.stop_ids)
        self.engine = open_engine(self.bundle, settings)
        self._scheduler = Scheduler(self.engine, self._cost, _remember_in(self._store))
        self._lock = threading.RLock()

    def generate(self, prompt: Prompt, **settings: Any) -> Stream:
        """Continue a prompt: text, whose special tokens are recognised, or token ids, or messages to `render`.

        Keywords are the fields of `GenerationSettings` and `Sampling`. Raises SettingsError, PromptError and
        ContextLengthError. What the prompt shares with earlier ones is not computed again.
        """
        return self._submit(self._ids_of(prompt), settings_from(**settings))

    def chat(
        self,
        messages: Sequence[MessageLike],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        template_variables: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> Stream:
        """Answer messages like `[{"role": "user", "content": "Hello"}]`; keywords and errors as in `generate`.

        tools: what the model may call, as OpenAI describes it. template_variables: what else the chat template reads.
        Nothing in a message becomes a special token: `<|user|>` that somebody typed is text.
        """
        ids = self.encode_chat(messages, tools=tools, template_variables=template_variables)
        return self.generate(ids, **settings)

    def generate_batch(self, prompts: Iterable[Prompt], **settings: Any) -> list[Answer]:
        """Answer several prompts at once, as many in one step as the KV cache holds; the answers in their order.

        Keywords as in `generate`; a seed is that of every answer. Raises SettingsError before anything runs. A prompt
        that cannot be answered becomes an `Answer` with its error, and the others go on.
        """
        chosen = settings_from(**settings)
        return _answers([self._try_submit(prompt, chosen) for prompt in prompts])

    def sample(self, prompt: Prompt, n: int, **settings: Any) -> list[Answer]:
        """`n` answers to one prompt, which is computed once. With a seed, answer i is that of seed + i alone."""
        if n < 1:
            raise SettingsError(f"n is {n}, expected 1 or more")
        chosen, ids = settings_from(**settings), self._ids_of(prompt)
        seed = chosen.sampling.seed
        seeds = [None if seed is None else seed + i for i in range(n)]
        each = [replace(chosen, sampling=replace(chosen.sampling, seed=seed)) for seed in seeds]
        return _answers([self._submit(ids, one) for one in each])

    def render(
        self,
        messages: Sequence[MessageLike],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        template_variables: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
    ) -> str:
        """Messages as prompt text, to read: `encode_chat` alone tells special tokens from what a message spells.

        Raises PromptError for what is no message, when the template refuses them, and when the model has none.
        """
        return self.chat_template.render(
            messages, tools=tools, variables=template_variables, add_generation_prompt=add_generation_prompt
        )

    def encode_chat(
        self,
        messages: Sequence[MessageLike],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        template_variables: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
    ) -> list[int]:
        """Messages as token ids, as `chat` sends them; errors as in `render`."""
        marked = self.chat_template.render_marked(
            messages, tools=tools, variables=template_variables, add_generation_prompt=add_generation_prompt
        )
        return self.tokenizer.encode_marked(marked)

    @property
    def chat_template(self) -> ChatTemplate:
        """The model's template. Raises PromptError when it has none."""
        if self.template is None:
            raise PromptError(f"{self.bundle.path} has no chat template (a base model?); use a raw prompt instead")
        return self.template

    def system_prefix(self, system: str) -> list[int]:
        """The ids that every conversation with this system message begins with."""
        message = {"role": "system", "content": system}
        all_ids = [self._ids_of([message, {"role": "user", "content": probe}]) for probe in PROBES]
        return all_ids[0][: min(common_prefix(all_ids[0], other) for other in all_ids[1:])]

    def pin_prefix(self, prefix: str | Sequence[int]) -> int:
        """Compute a prefix and keep it in memory whatever else comes; returns its number of tokens."""
        ids = self._ids_of(prefix)
        with self._lock:
            self._compute(ids)
            return self._scheduler.prefixes.pin(ids)

    def unpin_prefixes(self) -> None:
        """Let pinned prefixes be evicted like others."""
        with self._lock:
            self._scheduler.prefixes.unpin_all()

    def save_prefix(self, prefix: str | Sequence[int], path: str | Path, *, system: str | None = None) -> int:
        """Write the keys and values of a prefix to a file for `load_prefix`; returns its number of tokens.

        For a system message: `save_prefix(llm.system_prefix(text), path, system=text)`; the file then says it too.

        Raises PromptError and ContextLengthError for a prefix that cannot be computed, OutputError where the file
        cannot be written; a file that is there already stays until the new one is complete.
        """
        ids = self._ids_of(prefix)
        with self._lock:
            self._compute(ids)
            prefixes = self._scheduler.prefixes
            sequence = prefixes.match(ids, len(ids))
            try:
                save_snapshot(Path(path), ids, sequence, self.engine.pool, self._identity, system)
            finally:
                prefixes.insert(ids, sequence, whole=True)
                sequence.free()
        return len(ids)

    def load_prefix(self, path: str | Path) -> int:
        """Start prompts that begin like a saved prefix from its file, from now on; returns its number of tokens.

        Raises SnapshotError when the file is damaged or belongs to another model, engine or setting.
        """
        snapshot = open_snapshot(Path(path), self._identity)
        with self._lock:
            others = [other for other in self._scheduler.snapshots if other.path != snapshot.path]
            self._scheduler.snapshots = [*others, snapshot]
        return snapshot.num_tokens

    def add_document(self, text: str) -> bool:
        """Draft from a text too, from now on and in later sessions; False where the draft store has it already.

        Raises SettingsError without a draft store.
        """
        if self._store is None:
            raise SettingsError("documents to draft from are kept in a draft store; load with draft_store=FILE")
        with self._lock:
            return self._store.add(self.tokenizer.encode(text))

    @property
    def cache_stats(self) -> PrefixStats:
        """What the prefix cache holds and has done."""
        with self._lock:
            return self._scheduler.prefixes.stats

    @property
    def num_cached_tokens(self) -> int:
        """Tokens of finished requests whose keys and values are kept."""
        return self.cache_stats.tokens

    def clear_cache(self) -> None:
        """Forget all that is kept of finished requests and not pinned."""
        with self._lock:
            self._scheduler.sweep()
            self._scheduler.prefixes.clear()

    def close(self) -> None:
        """Write the draft store, if there is one. Raises OutputError; the model may still be used."""
        if self._store is not None:
            with self._lock:
                self._store.save()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _identity(self) -> SnapshotIdentity:
        return SnapshotIdentity(self.bundle.manifest.model_sha256, self._tokenizer_sha256, self.engine.kv_layout)

    def _ids_of(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt)
        messages = [part for part in prompt if isinstance(part, Mapping | Message)]
        if messages:
            return self.encode_chat(messages)
        return [part for part in prompt if not isinstance(part, Mapping | Message)]

    def _submit(self, ids: list[int], settings: GenerationSettings) -> Stream:
        constraint = None if settings.constraint is None else self._constraints.start(settings.constraint)
        drafter = None
        if self._speculation is not None:
            drafter = Drafter(ids, self._speculation, self._cost, self._store, self._acceptance)
        request = Request(ids, settings, self.tokenizer, self.stop_ids, self.engine.max_context, constraint, drafter)
        with self._lock:
            self._scheduler.submit(request)
        return Stream(request, self._scheduler, self._lock)

    def _try_submit(self, prompt: Prompt, settings: GenerationSettings) -> Stream | EdgeError:
        try:
            return self._submit(self._ids_of(prompt), settings)
        except SettingsError:
            raise
        except EdgeError as error:
            return error

    def _compute(self, ids: list[int]) -> None:
        """Have the keys and values of ids in the cache."""
        self._submit(ids, GenerationSettings(max_new_tokens=1, ignore_stop_ids=True)).answer()


class Stream:
    """One answer as an iterator of chunks. Closing it, or leaving its `with` block, ends the answer at once."""

    def __init__(self, request: Request, scheduler: Scheduler, lock: threading.RLock) -> None:
        self._request = request
        self._scheduler = scheduler
        self._lock = lock

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Chunk:
        """The next chunk, after as many steps as it takes. Raises GenerationError and DeviceError."""
        request = self._request
        while not request.chunks:
            if request.cancelled:
                raise StopIteration
            try:
                with self._lock:  # another reader may have made the step that was missing here
                    if not request.chunks and not request.finished:
                        self._scheduler.step()
            except BaseException:
                self.close()
                raise
            if request.finished and not request.chunks:
                if request.error is not None:
                    error, request.error = request.error, None
                    raise error
                raise StopIteration
        return request.chunks.popleft()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self._request.cancelled = True  # the next step lets go of it

    def close(self) -> None:
        """Stop generating; what was computed so far stays in the cache. Never waits for a step of another thread."""
        self._request.cancelled = True
        self._request.chunks.clear()
        if self._lock.acquire(blocking=False):
            try:
                self._scheduler.sweep()
            finally:
                self._lock.release()
        self._request.chunks.clear()

    def text(self) -> str:
        """Run to the end and return the remaining text as one string."""
        return "".join(chunk.text for chunk in self)

    def answer(self) -> Answer:
        """Run to the end and return what remains as a whole."""
        chunks = list(self)
        last = chunks[-1] if chunks else Chunk("", finish_reason="cancelled")
        return Answer(
            "".join(chunk.text for chunk in chunks),
            tuple(i for chunk in chunks for i in chunk.token_ids),
            last.finish_reason or "cancelled",
            last.stats,
            tuple(entry for chunk in chunks for entry in chunk.logprobs),
        )


def settings_from(**values: Any) -> GenerationSettings:
    """`GenerationSettings` from flat keywords, sampling included. Raises SettingsError for an unknown one."""
    sampling_names = {field.name for field in fields(Sampling)}
    names = {field.name for field in fields(GenerationSettings)} - {"sampling"}
    refuse_unknown(values, sampling_names | names)
    sampling = Sampling(**{name: value for name, value in values.items() if name in sampling_names})
    rest = {name: value for name, value in values.items() if name in names}
    for name in ("stop", "stop_token_ids"):
        if isinstance(value := rest.get(name), list):
            rest[name] = tuple(value)
    return GenerationSettings(sampling=sampling, **rest)


def refuse_unknown(names: Iterable[str], known: Set[str]) -> None:
    """Raises SettingsError, listing the known settings, when one of `names` is not among them."""
    if unknown := set(names) - known:
        raise SettingsError(f"unknown setting {min(unknown)!r}, known are {', '.join(sorted(known))}")


def _answers(streams: Sequence[Stream | EdgeError]) -> list[Answer]:
    """Read all streams to their ends; an error becomes an answer of its own."""
    found: list[Answer] = []
    for stream in streams:
        try:
            if isinstance(stream, EdgeError):
                raise stream
            found.append(stream.answer())
        except EdgeError as error:
            found.append(Answer("", (), "error", error=error))
    return found


def _remember_in(store: DraftStore | None) -> Callable[[Request], None]:
    """What to do with a finished answer: let later ones draft from it."""

    def remember(request: Request) -> None:
        if store is not None and len(request.ids) > request.num_prompt_tokens + 1:
            store.add(request.ids[max(request.num_prompt_tokens - REMEMBERED_PROMPT, 0) :])

    return remember


def _required(bundle: Bundle, name: str) -> Path:
    path = bundle.file(name)
    if path is None:
        raise BundleError(f"{bundle.path} holds no {name}; export the bundle again")
    return path
