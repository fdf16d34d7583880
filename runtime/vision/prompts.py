"""Prompts of conversations with pictures: whose rows are needed, and where the tower has to run for them.

In: a text with its pictures' places; a model's tower. Out: a `Prompt`. Knows nothing about messages or graphs.

Rows are in memory or on a disk for most pictures that were seen before. Where they are not, the tower takes minutes, so
it runs in the thread that asks, before anything is queued: steps of other answers go on meanwhile. It does not run if
the keys and values of all rows are in the KV cache, or in a prefix file that was loaded: a prompt then has no rows, and
holds what is in the cache for as long as it is wanted, so that what is only kept for later is evicted before it. If the
cache has no other room for what is being answered, or a failure empties it, the answer ends with an error: running the
tower inside a step instead would hold up all others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edge.runtime.chat_prompts import ChatPrompt
from edge.runtime.engines.engine import EngineInfo, Inputs
from edge.runtime.errors import CacheFullError, PictureError
from edge.runtime.kv.held import Held
from edge.runtime.prompt import Prompt
from edge.runtime.request import check_prompt
from edge.runtime.runner import Runner
from edge.runtime.settings import GenerationSettings
from edge.runtime.tokenizer import Tokenizer
from edge.runtime.vision.picture import Picture
from edge.runtime.vision.progress import OnPicture
from edge.runtime.vision.source import PictureSource
from edge.runtime.vision.splice import Spliced


@dataclass(frozen=True, slots=True, eq=False)
class HeldPrompt(Prompt):
    """A prompt whose pictures are in the KV cache, or in a loaded file, and nowhere else."""

    places: tuple[range, ...] = ()  # of the rows that it does not have
    held: Held | None = None  # of the cache

    def inputs(self, begin: int, end: int) -> Inputs:
        """Return positions of tokens. Raises CacheFullError for those of a picture."""
        if any(max(begin, place.start) < min(end, place.stop) for place in self.places):
            raise CacheFullError(
                "the KV cache had to let go of the picture, and its rows are not kept anywhere else; ask again"
            )
        return Prompt.inputs(self, begin, end)


class PicturePrompts:
    """Makes the prompts of one model."""

    def __init__(
        self,
        source: PictureSource | None,
        info: EngineInfo,
        tokenizer: Tokenizer,
        runner: Runner,
        covering: Callable[[list[int], int], tuple[bool, Held | None]],
    ) -> None:
        """covering: says between two steps whether the first of some cache keys have keys and values, and holds them
        where it must."""
        self._source, self._info, self._tokenizer = source, info, tokenizer
        self._runner, self._covering = runner, covering

    def prompt(self, found: ChatPrompt, settings: GenerationSettings, on_picture: OnPicture | None) -> Prompt:
        """Return the prompt of a conversation with pictures. Raises what the source and on_picture raise.

        Raises PromptError, ContextLengthError and SettingsError, too, before minutes are spent on a picture.
        """
        assert self._source is not None, "a model without a tower has no conversations with pictures"
        self._runner.check_open()
        spliced = found.spliced
        self._check(spliced, settings)
        last_is_text = spliced.end < len(spliced.ids)  # the last token is always computed
        if last_is_text and settings.prompt_logprobs is None and self._some_are_lost(found.pictures):
            covered, held = self._runner.between_steps(lambda: self._covering(spliced.keys, spliced.end))
            if covered:
                return _without_rows(spliced, held)
        return spliced.prompt([self._source.rows(picture, on_picture) for picture in found.pictures])

    def close(self) -> None:
        """Let go of the tower."""
        if self._source is not None:
            self._source.close()

    def _some_are_lost(self, pictures: Sequence[Picture]) -> bool:
        assert self._source is not None
        return any(self._source.kept(picture) is None for picture in pictures)

    def _check(self, spliced: Spliced, settings: GenerationSettings) -> None:
        info = self._info
        if info.embedding_size is None:
            raise PictureError(
                f"the {info.name} engine on {info.device} takes no pictures with this model; load it with another "
                "engine, or leave the picture out",
                param="messages",
            )
        prompt = _without_rows(spliced, None)
        prompt.check_fits(info, settings)
        least = 0 if settings.max_new_tokens == 0 else 1
        check_prompt(prompt, self._tokenizer, info.max_context, least_new_tokens=least)


def _without_rows(spliced: Spliced, held: Held | None) -> HeldPrompt:
    return HeldPrompt(spliced.ids, spliced.keys, spliced.positions, places=spliced.places, held=held)
