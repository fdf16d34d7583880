"""A bundle as a model of EleutherAI's lm-evaluation-harness, under the name `edge`.

    python -m edge.profiles.lm_eval run --model edge --model_args bundle=glm4-int4,engine=onnx --batch_size auto \\
        --tasks my_task --include_path tasks/

is `lm-eval run` with this model registered: the harness does not look for models in other packages, so this module has
to be imported first. In Python, `lm_eval.simple_evaluate(model=EdgeLM("glm4-int4"), ...)`.

In: the harness's requests. Out: log-likelihoods and texts. Knows nothing about tasks. Log-likelihoods come from rows of
logits (edge.profiles.likelihood): natural logarithms, over the tokens of the vocabulary without padding rows.
"""

from __future__ import annotations

import hashlib
import logging
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers

from edge.profiles.likelihood import BATCH, Query, score
from edge.runtime import bundle as bundles
from edge.runtime.errors import ContextLengthError, EdgeError, PromptError, SettingsError, shown
from edge.runtime.extras import missing_package
from edge.runtime.llm import LLM
from edge.runtime.rules import refuse_unknown
from edge.runtime.settings import EngineSettings, Sampling
from edge.runtime.stream import Stream

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
    from tqdm import tqdm
except ModuleNotFoundError as error:
    if (missing := missing_package(error)) is None:
        raise
    if __name__ == "__main__":  # as a command, it says so in one line, as `edge` does
        sys.exit(f"edge: {missing}")
    raise missing from error

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance

    from edge.runtime.bundle import Bundle

log = logging.getLogger(__name__)

MAX_GEN_TOKS = 256  # if a task does not say, as with the harness's own models


@register_model("edge")  # type: ignore[untyped-decorator,unused-ignore]
class EdgeLM(TemplateLM):  # type: ignore[misc,unused-ignore]
    """A loaded bundle, as the harness's interface wants a model."""

    def __init__(
        self,
        bundle: str | Path | LLM,
        batch_size: int | str | None = None,
        max_batch_size: int | str | None = None,
        max_length: int | None = None,
        max_gen_toks: int = MAX_GEN_TOKS,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        device: str | None = None,
        **settings: Any,  # of `EngineSettings`, each checked where that is made
    ) -> None:
        """`settings` are the fields of `EngineSettings`, like engine, max_context, kv_precision, reproducible, threads.

        bundle: a folder, or a loaded model. batch_size: requests that are computed at once, if the engine can; "auto"
        and None: 16. max_length: tokens that the model may see, the engine's context if None. add_bos_token: whether
        text starts with what the model's tokenizer puts before it (GLM-4: [gMASK]<sop>), which is the default.
        prefix_token_id: the token used as an empty context; None: the last of those tokens, else the first stop id.
        device: as the harness's --device gives it; cuda:0, its default, is None, which is CPU. Raises SettingsError,
        and what loading a bundle raises.
        """
        super().__init__()
        if isinstance(bundle, LLM):
            if settings:  # device is the harness's own to give
                raise SettingsError(f"{min(settings)} is set when a model is loaded; give the folder of the bundle")
            self.llm = bundle
        else:
            refuse_unknown(settings, {field.name for field in fields(EngineSettings)})
            if device is not None and not device.startswith("cuda"):
                settings["device"] = device.upper()
            self.llm = LLM(bundle, EngineSettings(**settings))
        limit = self.llm.engine.info.max_context
        if max_length is not None and not 1 < max_length <= limit:
            raise SettingsError(f"max_length is {shown(max_length)}, expected 2 to {limit}, the context")
        self._max_length = max_length or limit
        self._max_gen_toks = max_gen_toks
        self.batch_size = _batch_size(batch_size, max_batch_size)
        self._added = _added_ids(self.llm.bundle) if add_bos_token is not False else []
        stop_ids = self.llm.bundle.manifest.stop_token_ids
        if prefix_token_id is not None:
            self._prefix = [prefix_token_id]
        elif self._added:
            self._prefix = self._added
        elif stop_ids:
            self._prefix = [stop_ids[0]]
        else:
            raise SettingsError(
                f"{self.llm.bundle.path} has no stop token to use as an empty context; give prefix_token_id"
            )

    @property
    def max_length(self) -> int:
        """Tokens that the model may see."""
        return self._max_length

    @property
    def max_gen_toks(self) -> int:
        """New tokens if a task does not say how many."""
        return self._max_gen_toks

    @property
    def eot_token_id(self) -> int:
        """The id that ends a text."""
        stop_ids = self.llm.bundle.manifest.stop_token_ids
        return stop_ids[0] if stop_ids else self._prefix[-1]

    @property
    def prefix_token_id(self) -> int:
        """The id used as an empty context; the last of them if there are several."""
        return self._prefix[-1]

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: object) -> list[int]:
        """Ids of a text, after those that the tokenizer puts before text unless it begins with them already."""
        ids = self.llm.tokenizer.encode(string)
        added = [] if add_special_tokens is False else self._added
        return ids if ids[: len(added)] == added else [*added, *ids]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, in windows of the context that do not overlap; each token counts once."""
        queries: list[Query] = []
        owners: list[int] = []
        extra = len(self._prefix) - 1  # the harness knows only one token of it
        for owner, request in enumerate(requests):
            ids = self.tok_encode(request.args[0], add_special_tokens=False)
            windows = get_rolling_token_windows(ids, self.prefix_token_id, self.max_length - extra, context_len=1)
            for number, window in enumerate(windows):
                context, predicted = make_disjoint_window(window)
                queries.append(Query(tuple(self._prefix if number == 0 else context), tuple(predicted)))
                owners.append(owner)
        totals = [0.0] * len(requests)
        for owner, found in zip(owners, self._score(queries, "rolling", disable_tqdm), strict=True):
            totals[owner] += found[0]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[tuple[str, str] | None, list[int], list[int]]],
        disable_tqdm: bool = False,
        **_others: object,
    ) -> list[tuple[float, bool]]:
        """For each context and continuation the log-likelihood and whether greedy decoding would write it."""
        queries, cut = [], 0
        for texts, context, continuation in requests:
            whole = self._prefix if texts is not None and not texts[0] and len(context) == 1 else context
            if not continuation:
                raise PromptError(
                    f"{shown(texts)}: the continuation has no tokens of its own; a task must give it some text"
                )
            if len(continuation) > self.max_length:
                raise ContextLengthError(
                    f"a continuation has {len(continuation)} tokens and the context holds {self.max_length}; "
                    "load with a larger max_context, or leave the request out"
                )
            room = self.max_length + 1 - len(continuation)  # the model does not see the last token
            cut += len(whole) > room
            queries.append(Query(tuple(whole[-room:]), tuple(continuation)))
        self._warn_cut(cut, len(requests))
        found = self._score(queries, "loglikelihood", disable_tqdm)
        for (texts, _, _), answer in zip(requests, found, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return found

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Texts up to a stop string (not included), a stop id, or max_gen_toks. Greedy unless a task samples.

        Raises SettingsError for a setting that the sampler does not have.
        """
        prompts: list[tuple[list[int], dict[str, Any]]] = []
        cut = 0
        for request in requests:
            context, arguments = request.args
            settings = _generation_settings(arguments, self.max_gen_toks)
            room = self.max_length - settings["max_new_tokens"]
            if room < 1:
                raise SettingsError(
                    f"max_gen_toks is {settings['max_new_tokens']} and the context holds {self.max_length}; ask for "
                    "fewer tokens, or load with a larger max_context"
                )
            prompt = self.tok_encode(context)
            cut += len(prompt) > room
            prompts.append((prompt[-room:], settings))
        self._warn_cut(cut, len(requests))
        texts = [""] * len(requests)
        running: deque[tuple[int, Stream]] = deque()
        with tqdm(total=len(requests), desc="generate_until", disable=disable_tqdm) as bar:

            def finish() -> None:
                index, stream = running.popleft()
                texts[index] = stream.text()
                self.cache_hook.add_partial("generate_until", requests[index].args, texts[index])
                bar.update()

            for index in sorted(range(len(prompts)), key=lambda i: prompts[i][0]):  # similar beginnings together
                prompt, settings = prompts[index]
                running.append((index, self.llm.generate(prompt, **settings)))
                if len(running) == self.batch_size:
                    finish()
            while running:
                finish()
        return texts

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Messages as text. Without a generation prompt the last message stays open, for the model to continue it.

        Raises PromptError.
        """
        text = self.llm.render(chat_history, add_generation_prompt=add_generation_prompt)
        if add_generation_prompt:
            return text
        last = chat_history[-1]["content"].strip()
        if (at := text.rfind(last)) < 0:
            raise PromptError(
                "the chat template changes the last message, so it cannot be continued; leave out gen_prefix"
            )
        return text[: at + len(last)]

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The bundle's template, which is the only one. Raises PromptError where it has none."""
        if chat_template is False or chat_template is None:
            return None
        if isinstance(chat_template, str):
            log.warning("a bundle has one chat template, which is used instead of %s", shown(chat_template))
        text = self.llm.bundle.text(bundles.CHAT_TEMPLATE)
        if text is None:
            raise PromptError(f"{self.llm.bundle.path} has no chat template; leave out --apply_chat_template")
        return text

    @property
    def tokenizer_name(self) -> str:
        """Identifies tokenizer and template in the names of cached requests."""
        files = self.llm.bundle.manifest.files
        known = [files[name].sha256 for name in (bundles.TOKENIZER, bundles.CHAT_TEMPLATE) if name in files]
        return f"edge-{hashlib.sha256(' '.join(known).encode()).hexdigest()[:16]}"

    def get_model_info(self) -> dict[str, object]:
        """What the harness writes beside its results."""
        manifest = self.llm.bundle.manifest
        return {
            "bundle": str(self.llm.bundle.path),
            "recipe": manifest.recipe,
            "bits_per_weight": manifest.bits_per_weight,
            "model_sha256": manifest.model_sha256,
            "max_length": self.max_length,
            "add_bos_token": bool(self._added),
            **{f"engine: {name}": value for name, value in self.llm.engine.identity.items()},
        }

    def _score(self, queries: list[Query], what: str, disable_tqdm: bool) -> list[tuple[float, bool]]:
        with tqdm(total=len(queries), desc=what, disable=disable_tqdm) as bar:
            found = score(
                self.llm.engine,
                self.llm.tokenizer.num_tokens,
                queries,
                batch=self.batch_size,
                progress=bar.update,
            )
        return [(one.logprob, one.is_greedy) for one in found]

    def _warn_cut(self, count: int, total: int) -> None:
        if count:
            log.warning(
                "%d of %d requests are longer than the %d tokens that the model may see; they were cut from the left",
                count, total, self.max_length,
            )  # fmt: skip


def main() -> int:
    """The harness's own command line with the model `edge`; returns the exit code."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except EdgeError as error:
        print(f"edge: {' '.join(str(error).split())}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


def _added_ids(bundle: Bundle) -> list[int]:
    """What the tokenizer puts before a text by itself; `edge.runtime.tokenizer` never does."""
    path = bundle.file(bundles.TOKENIZER)
    assert path is not None, "the bundle has been loaded"
    tokenizer: Any = tokenizers.Tokenizer.from_file(str(path))
    encoded = tokenizer.encode("a")
    return list(encoded.ids[: next(i for i, special in enumerate(encoded.special_tokens_mask) if not special)])


def _batch_size(value: int | str | None, limit: int | str | None) -> int:
    """Requests at once; with "auto" and "auto:N" the harness leaves it to the model. Raises SettingsError."""
    if value is None or str(value).startswith("auto"):
        size = BATCH
    elif str(value).isdecimal() and int(value) > 0:
        size = int(value)
    else:
        raise SettingsError(f"batch_size is {shown(value)}, expected a number above 0, or auto")
    if limit is None:
        return size
    if not str(limit).isdecimal() or int(limit) < 1:
        raise SettingsError(f"max_batch_size is {shown(limit)}, expected a number above 0")
    return min(size, int(limit))


def _generation_settings(arguments: Mapping[str, Any], max_gen_toks: int) -> dict[str, Any]:
    """Keywords for `LLM.generate` from those of a task."""
    given = dict(normalize_gen_kwargs(dict(arguments), max_gen_toks))
    sampled = given.pop("do_sample", False)
    until = [stop for stop in given.pop("until") if stop]
    # transformers samples with temperature 1 if none is given, and that is what tasks expect.
    temperature = given.pop("temperature", 1.0) if sampled else 0.0
    # A task says itself how to sample; nothing of what the model recommends is added.
    neutral = {spec.name: spec.default for spec in fields(Sampling)} | {"temperature": temperature}
    return {"max_new_tokens": given.pop("max_gen_toks"), "stop": tuple(until), **neutral, **given}


if __name__ == "__main__":
    sys.exit(main())
