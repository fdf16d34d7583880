"""A model as the wire code knows it, whose answers are computed by replicas.

In: a bundle's small files, and a runner whose requests run elsewhere. Out: an `LLM` that makes ids of messages, and
text and calls of answers, as any other does. It holds no weights. Knows nothing about HTTP.

Pictures are not seen: what they become is computed where the weights are, before there are ids.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self, Unpack, cast

from edge.runtime import bundle as bundles
from edge.runtime.bundle import Bundle
from edge.runtime.chat_stream import ChatStream
from edge.runtime.chats import Chats
from edge.runtime.constraint_masks import Constraints
from edge.runtime.engines.engine import Engine, EngineInfo
from edge.runtime.errors import EdgeError
from edge.runtime.llm import LLM
from edge.runtime.messages import MessageLike, messages_from
from edge.runtime.produced_ids import ProducedIds
from edge.runtime.prompt_like import PromptLike, Prompts
from edge.runtime.rendezvous import digest
from edge.runtime.sampling_defaults import recommended_sampling
from edge.runtime.settings import GenerationOptions
from edge.runtime.speculation import SharedDrafts
from edge.runtime.stream import Stream
from edge.runtime.template_file import template_of
from edge.runtime.tokenizer import Tokenizer
from edge.runtime.tools.declared import JsonObject
from edge.runtime.vision.prompts import PicturePrompts
from edge.server.ray.call import ReplicaState
from edge.server.ray.running import FarRunner, Manner

BEGINNING = 64  # ids of a prompt without messages by which it is known


class FarLLM(LLM):
    """A model on replicas. `release` ends what it was made for."""

    def __init__(
        self,
        bundle: Bundle,
        state: ReplicaState,
        runner: FarRunner,
        *,
        resumes: bool,
        by_prefix: bool,
        forget: Callable[[], object],
        release: Callable[[], object],
        chat_template: str | Path | None = None,
    ) -> None:
        """state: of one of the replicas, which are all alike."""
        self._bundle = bundle
        manifest, info = bundle.manifest, state.info
        self.tokenizer = tokenizer = Tokenizer.from_text(bundle.required(bundles.TOKENIZER), manifest.spec.vocab_size)
        self.template = template_of(bundle, tokenizer, chat_template)
        self.stop_ids = frozenset(manifest.stop_token_ids)
        self.recommended_sampling = recommended_sampling(bundle.text(bundles.GENERATION_CONFIG))
        self.self_test, self.pictures = None, None
        self.engine = _far_engine(info, state)
        self._constraints = Constraints(tokenizer, tokenizer.num_tokens, self.stop_ids)
        self._drafts = SharedDrafts(None, None)
        self._memory = ProducedIds(0) if info.reproducible else ProducedIds()
        self._chats = Chats(self.template, tokenizer, self.stop_ids, self._constraints, self._memory)
        self._far, self._resumes, self._by_prefix = runner, resumes, by_prefix
        self._runner = runner
        pictures = PicturePrompts(None, info, tokenizer, runner, lambda _keys, _rows: (False, None))
        self._prompts = Prompts(self._chats.prompts, tokenizer, self._constraints, pictures)
        self._forget, self._end = forget, release
        self._is_whole = False

    def read_whole(self) -> Self:
        """Return the same model for an answer of which nothing is told before its end."""
        other = copy.copy(self)
        other._is_whole = True
        return other

    def chat_samples(
        self,
        messages: Sequence[MessageLike],
        n: int,
        **more: Any,  # Any: as those of `LLM.chat_samples`
    ) -> list[ChatStream]:
        """Return `n` answers, from the replica that this conversation belongs to."""
        return LLM.chat_samples(self._for(self._conversation(messages, more.get("tools"))), messages, n, **more)

    def sample_streams(self, prompt: PromptLike, n: int, **options: Unpack[GenerationOptions]) -> list[Stream]:
        """Return `n` answers to one prompt, from the replica that prompts with this beginning belong to."""
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        key = digest(repr(list(cast("Sequence[int]", ids))[:BEGINNING]).encode())
        return LLM.sample_streams(self._for(key), prompt, n, **options)

    def clear_cache(self) -> None:
        """Have every replica drop what it keeps of finished answers."""
        self._memory.clear()
        self._forget()

    def _for(self, key: int) -> Self:
        other = copy.copy(self)
        own = key if self._by_prefix else None
        other._runner = self._far.for_samples(Manner(own, is_whole=self._is_whole, resumes=self._resumes))
        return other

    def _conversation(self, messages: Sequence[MessageLike], tools: Sequence[JsonObject] | None) -> int:
        """Return what all turns of a conversation have in common: what is rendered up to the first question."""
        try:
            checked = messages_from(messages)
            roles = [message.role for message in checked]
            first = roles.index("user") + 1 if "user" in roles else len(roles)
            text = self.render(checked[:first], tools=tools, add_generation_prompt=False)
        except EdgeError:  # it will be refused in terms of the request
            text = ""
        return digest(text.encode())

    def _release(self) -> None:
        self._end()


def _far_engine(info: EngineInfo, state: ReplicaState) -> Engine:
    """Return what is asked of an engine where nothing is computed."""
    pool = SimpleNamespace(num_blocks=state.num_blocks, num_free=state.num_free_blocks)
    return cast("Engine", SimpleNamespace(info=info, identity=state.identity, pool=pool))
