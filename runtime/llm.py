"""A loaded model: bundle, tokenizer, template and engine together, ready to answer.

In: a bundle folder. Out: an `LLM` with `generate` (raw prompt) and `chat` (messages). One answer at a time; what a new
prompt shares with the last one is not computed again. Knows nothing about how a bundle is made.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Sequence, Set
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Any

from edge.runtime import bundle as bundles
from edge.runtime.bundle import Bundle
from edge.runtime.chat import ChatTemplate, Message
from edge.runtime.engines import EngineSettings
from edge.runtime.engines.choice import open_engine
from edge.runtime.errors import BundleError, GenerationError, PromptError, SettingsError
from edge.runtime.generate import Chunk, GenerationSettings, check_prompt, generate
from edge.runtime.kv.pool import Sequence as CachedSequence
from edge.runtime.sampling import Sampling
from edge.runtime.tokenizer import Tokenizer


class LLM:
    """A loaded bundle. Raises BundleError, TokenizerError, DeviceError and SettingsError when it cannot be loaded."""

    def __init__(self, path: str | Path, settings: EngineSettings | None = None) -> None:
        self.bundle = bundles.open_bundle(path)
        self.stop_ids = frozenset(self.bundle.manifest.stop_token_ids)
        self.tokenizer = Tokenizer(_required(self.bundle, bundles.TOKENIZER))
        template = self.bundle.text(bundles.CHAT_TEMPLATE)
        self.template = None if template is None else ChatTemplate(template)
        self.engine = open_engine(self.bundle, settings or EngineSettings())
        self._sequence = CachedSequence(self.engine.pool)
        self._history: list[int] = []  # its first num_cached_tokens ids are in the cache
        self._lock = threading.Lock()

    def generate(self, prompt: str | Sequence[int], **settings: Any) -> Stream:
        """Continue a raw prompt: text, whose special tokens are recognised, or token ids.

        Keywords are the fields of `GenerationSettings` and `Sampling`. Raises SettingsError, PromptError and
        ContextLengthError; iterating raises GenerationError while another answer is running.
        """
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        chosen = settings_from(**settings)
        check_prompt(ids, self.tokenizer, self.engine.max_context)
        chunks = generate(self.engine, self._sequence, self._history, ids, self.tokenizer, self.stop_ids, chosen)
        return Stream(chunks, self._lock)

    def chat(self, messages: Sequence[Message], **settings: Any) -> Stream:
        """Answer messages like `[{"role": "user", "content": "Hello"}]`; keywords and errors as in `generate`."""
        return self.generate(self.render(messages), **settings)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """Messages as prompt text. Raises PromptError when the template refuses them or the model has none."""
        if self.template is None:
            raise PromptError(f"{self.bundle.path} has no chat template (a base model?); use a raw prompt instead")
        return self.template.render(messages, add_generation_prompt=add_generation_prompt)

    @property
    def num_cached_tokens(self) -> int:
        """Tokens whose keys and values are in the KV cache."""
        return self._sequence.num_tokens

    def clear_cache(self) -> None:
        """Forget all cached tokens."""
        self._sequence.trim(0)
        self._history.clear()


class Stream:
    """One answer as an iterator of chunks. Closing it, or leaving its `with` block, ends the answer at once."""

    def __init__(self, chunks: Generator[Chunk, None, None], lock: threading.Lock) -> None:
        self._chunks = _exclusive(chunks, lock)

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Chunk:
        return next(self._chunks)

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop generating; the tokens computed so far stay in the cache."""
        self._chunks.close()

    def text(self) -> str:
        """Run to the end and return the remaining text as one string."""
        return "".join(chunk.text for chunk in self)


def settings_from(**values: Any) -> GenerationSettings:
    """`GenerationSettings` from flat keywords, sampling included. Raises SettingsError for an unknown one."""
    sampling_names = {field.name for field in fields(Sampling)}
    names = {field.name for field in fields(GenerationSettings)} - {"sampling"}
    refuse_unknown(values, sampling_names | names)
    sampling = Sampling(**{name: value for name, value in values.items() if name in sampling_names})
    rest = {name: value for name, value in values.items() if name in names}
    if isinstance(stop := rest.get("stop"), list):
        rest["stop"] = tuple(stop)
    return GenerationSettings(sampling=sampling, **rest)


def refuse_unknown(names: Iterable[str], known: Set[str]) -> None:
    """Raises SettingsError, listing the known settings, when one of `names` is not among them."""
    if unknown := set(names) - known:
        raise SettingsError(f"unknown setting {min(unknown)!r}, known are {', '.join(sorted(known))}")


def _exclusive(chunks: Generator[Chunk, None, None], lock: threading.Lock) -> Generator[Chunk, None, None]:
    if not lock.acquire(blocking=False):
        raise GenerationError("another answer is still running on this model; exhaust or close it first")
    try:
        yield from chunks
    finally:
        lock.release()


def _required(bundle: Bundle, name: str) -> Path:
    path = bundle.file(name)
    if path is None:
        raise BundleError(f"{bundle.path} holds no {name}; export the bundle again")
    return path
