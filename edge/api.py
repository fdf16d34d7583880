"""What `edge.load` and `edge.scripted_llm` call; `edge.export` is the callable package."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Unpack

from edge.models.find import find_bundle
from edge.runtime.chat import ChatTemplate
from edge.runtime.engines.scripted import STOP_IDS, TEMPLATE, Script, ScriptedEngine, tokenizer_json
from edge.runtime.errors import SettingsError, shown
from edge.runtime.extras import missing_packages_named
from edge.runtime.llm import LLM
from edge.runtime.rules import FilePath, check_value
from edge.runtime.settings import EngineOptions, SpeculationSettings, engine_settings
from edge.runtime.tokenizer import Tokenizer


@missing_packages_named()
def load(
    bundle: str | Path,
    device: str | None = None,
    *,
    speculation: bool | SpeculationSettings | None = False,
    draft_store: str | Path | None = None,
    chat_template: str | Path | None = None,
    draft: str | Path | None = None,
    **options: Unpack[EngineOptions],
) -> LLM:
    """Load a bundle onto a device, ready to answer.

        with edge.load("glm4-int4") as llm:
            print(llm.chat([{"role": "user", "content": "Hello"}]).text())

    bundle: the folder that `edge export` made; a text may be its name, as in `edge list`. device: "CPU" (the default),
    "GPU" or another name that `edge devices` lists. speculation: verify drafts of several tokens at once, which is
    faster where text repeats; True, or `SpeculationSettings`. draft_store: a file of earlier answers to draft from,
    which is written every few answers and by `close`. chat_template: a file with a Jinja template to use instead of the
    bundle's. draft: the bundle of a smaller model with the same tokenizer, or its name, which speculation drafts with;
    kv_cache_bytes and kv_cache_share are then for both.

    Further keywords, each None for its default (`edge.EngineSettings` says more):

        engine                      "auto", "onnx", "openvino" or "openvino_npu"
        max_context                 tokens of prompt and answer; default: the model's limit
        kv_cache_bytes              upper bound of the KV cache; default: 2 GiB
        kv_cache_share              the same bound as a share of the free memory
        max_memory_bytes            upper bound of the whole process; default: what is free
        kv_precision                "f32", "f16", "bf16", "u8", "i8" or "u4"; default: the engine's choice
        inference_precision         "f32", "f16" or "bf16"; default: the device's choice
        dynamic_quantization_group  activations that are rounded together; 0: none; default: the engine's rule
        reproducible                the same bits whatever else is or was computed; default: where drafts are verified
        threads                     default: the engine's choice
        self_test                   "refuse" (the default) an engine that computes wrongly here, "fall-back" or "off"
        max_prompt_tokens           NPU: longest prompt; default: 1024
        max_response_tokens         NPU: tokens that are kept free for an answer; default: 512
        prefill_chunk_tokens        NPU: tokens of a prompt that are read at once; default: 256
        compiled_folder             NPU: where `edge compile` has put models; default: in the user's cache folder
        kept_pictures_folder        where what pictures became is kept; default: in the user's cache folder
        kept_pictures_bytes         upper bound of these files; 0: none; default: 1 GiB
        turn_pictures               as their EXIF says, which the original models do not; default: True
        expected_prompt_tokens      helps "auto"
        expected_clients            helps "auto"

    Raises BundleError, SelfTestError, DeviceError, MemoryLimitError, MissingPackageError, TokenizerError,
    DraftStoreError, and SettingsError for a keyword that is unknown, of the wrong type or outside its range.
    """
    check_value("bundle", FilePath(), bundle)
    settings = engine_settings(device, **options)
    store = None if draft_store is None else check_value("draft_store", FilePath(), draft_store)
    if speculation is None or speculation is False:
        chosen = None
    elif speculation is True:
        chosen = SpeculationSettings()
    elif isinstance(speculation, SpeculationSettings):
        chosen = speculation
    else:
        raise SettingsError(
            f"speculation is {shown(speculation)}, expected true, false or edge.SpeculationSettings",
            param="speculation",
        )
    if chosen is None and store is not None:
        raise SettingsError(
            "draft_store is what speculation drafts from; give speculation=True too", param="draft_store"
        )
    if chosen is None and draft is not None:
        raise SettingsError("draft is a model that speculation drafts with; give speculation=True too", param="draft")
    second = None if draft is None else _folder("draft", draft)
    return LLM(_folder("bundle", bundle), settings, chosen, store, chat_template, second)


def _folder(name: str, bundle: str | Path) -> Path:
    """The folder of a bundle that was named. Raises BundleError and SettingsError."""
    folder = check_value(name, FilePath(), bundle)
    return find_bundle(bundle) if isinstance(bundle, str) else folder


def scripted_llm(
    script: Script,
    *,
    speculation: SpeculationSettings | None = None,
    **changes: Any,  # Any: keywords of ScriptedEngine
) -> LLM:
    """An `LLM` without a model, which answers as a script says: for tests of what is built on top of one.

        llm = edge.scripted_llm(edge.replies({"Hello": "Hello to you"}))
        assert llm.chat([{"role": "user", "content": "Hello"}]).text() == "Hello to you"

    Its tokenizer has a token for every byte, ids 0 to 255, and a few special ones. `edge.ScriptedEngine` says what a
    script is and which keywords there are, among them the size of the KV cache and what the engine cannot do.
    """
    tokenizer = Tokenizer.from_text(tokenizer_json())
    return LLM.from_engine(
        ScriptedEngine(script, **changes),
        tokenizer,
        template=ChatTemplate(TEMPLATE, tokenizer.markup),
        stop_ids=STOP_IDS,
        speculation=speculation,
    )
