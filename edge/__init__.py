"""edgeglm: export GLM-4 checkpoints to compressed bundles and run them offline on Intel hardware.

    import edge

    edge.export("glm-4-9b-chat", "glm4-int4")
    llm = edge.load("glm4-int4")
    for chunk in llm.chat([{"role": "user", "content": "Hello"}]):
        print(chunk.text, end="", flush=True)

Public names are loaded when they are first used; importing `edge` imports nothing else. It does two things. Its logger,
"edge", is silent until a program gives it a handler. And it keeps what it will use from reporting to a server: `import
openvino_telemetry` is made to fail in this process, since `import openvino` and nncf report where it works
(openvino/tools/ovc/__init__.py and nncf/telemetry/wrapper.py fall back to a stub). onnxruntime and onnxruntime-genai
start an uploader when they are imported and listen only to a variable of the environment: disable_telemetry_events()
comes too late (seen with 1.31 and 0.18: a queue in the user's cache folder).
"""

# Imported under names that an editor does not offer after `edge.`.
import logging as _logging
import os as _os
import sys as _sys
import typing as _typing

_os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
_sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None: not importable
_logging.getLogger("edge").addHandler(_logging.NullHandler())  # silent unless the program asks for it

if _typing.TYPE_CHECKING:
    from edge import tools
    from edge.api import load, scripted_llm
    from edge.export.pipeline import export
    from edge.runtime.chat_stream import ChatStream
    from edge.runtime.chunk import Answer, CallPiece, Chunk, Stats, StoppedBy
    from edge.runtime.constraint import Constraint
    from edge.runtime.engines.engine import Embedding, Engine, EngineInfo
    from edge.runtime.engines.scripted import ScriptedEngine, noise, replies
    from edge.runtime.errors import (
        BundleError,
        CacheError,
        CacheFullError,
        CalibrationError,
        CheckpointError,
        ClosedError,
        ClusterError,
        ConfigError,
        ContextLengthError,
        DeviceError,
        DocumentError,
        DraftStoreError,
        EdgeError,
        GenerationError,
        LintError,
        MemoryLimitError,
        MissingPackageError,
        OutputError,
        PictureError,
        ProfileError,
        PromptError,
        RecipeError,
        SelfTestError,
        SettingsError,
        SnapshotError,
        TensorError,
        TokenizerError,
        ToolError,
        UpdateError,
        VerificationError,
    )
    from edge.runtime.kv.loaded import PrefixMatch
    from edge.runtime.llm import LLM
    from edge.runtime.logprobs import TokenLogprob
    from edge.runtime.messages import ImagePart, Message, TextPart, ToolCall
    from edge.runtime.prompt import Prompt
    from edge.runtime.saved_prefix import SavedPrefix, read_prefix
    from edge.runtime.scheduler import SchedulerStats
    from edge.runtime.session import ChatSession
    from edge.runtime.settings import EngineSettings, GenerationSettings, Sampling, SpeculationSettings
    from edge.runtime.stream import Stream
    from edge.runtime.vision.progress import PictureProgress

    __version__: str

__all__ = [
    "LLM",
    "Answer",
    "BundleError",
    "CacheError",
    "CacheFullError",
    "CalibrationError",
    "CallPiece",
    "ChatSession",
    "ChatStream",
    "CheckpointError",
    "Chunk",
    "ClosedError",
    "ClusterError",
    "ConfigError",
    "Constraint",
    "ContextLengthError",
    "DeviceError",
    "DocumentError",
    "DraftStoreError",
    "EdgeError",
    "Embedding",
    "Engine",
    "EngineInfo",
    "EngineSettings",
    "GenerationError",
    "GenerationSettings",
    "ImagePart",
    "LintError",
    "MemoryLimitError",
    "Message",
    "MissingPackageError",
    "OutputError",
    "PictureError",
    "PictureProgress",
    "PrefixMatch",
    "ProfileError",
    "Prompt",
    "PromptError",
    "RecipeError",
    "Sampling",
    "SavedPrefix",
    "SchedulerStats",
    "ScriptedEngine",
    "SelfTestError",
    "SettingsError",
    "SnapshotError",
    "SpeculationSettings",
    "Stats",
    "StoppedBy",
    "Stream",
    "TensorError",
    "TextPart",
    "TokenLogprob",
    "TokenizerError",
    "ToolCall",
    "ToolError",
    "UpdateError",
    "VerificationError",
    "__version__",
    "export",
    "load",
    "noise",
    "read_prefix",
    "replies",
    "scripted_llm",
    "tools",
]

_HOMES = {
    "load": "edge.api",
    "scripted_llm": "edge.api",
    "Stats": "edge.runtime.chunk",
    "StoppedBy": "edge.runtime.chunk",
    "CallPiece": "edge.runtime.chunk",
    "ChatStream": "edge.runtime.chat_stream",
    "Embedding": "edge.runtime.engines.engine",
    "Engine": "edge.runtime.engines.engine",
    "EngineInfo": "edge.runtime.engines.engine",
    "ScriptedEngine": "edge.runtime.engines.scripted",
    "noise": "edge.runtime.engines.scripted",
    "replies": "edge.runtime.engines.scripted",
    "TokenLogprob": "edge.runtime.logprobs",
    "PrefixMatch": "edge.runtime.kv.loaded",
    "PictureProgress": "edge.runtime.vision.progress",
    "Prompt": "edge.runtime.prompt",
    "SavedPrefix": "edge.runtime.saved_prefix",
    "read_prefix": "edge.runtime.saved_prefix",
    "SchedulerStats": "edge.runtime.scheduler",
    "Stream": "edge.runtime.stream",
    "LLM": "edge.runtime.llm",
    "Answer": "edge.runtime.chunk",
    "Constraint": "edge.runtime.constraint",
    "ImagePart": "edge.runtime.messages",
    "Message": "edge.runtime.messages",
    "TextPart": "edge.runtime.messages",
    "ToolCall": "edge.runtime.messages",
    "SpeculationSettings": "edge.runtime.settings",
    "ChatSession": "edge.runtime.session",
    "Chunk": "edge.runtime.chunk",
    "GenerationSettings": "edge.runtime.settings",
    "EngineSettings": "edge.runtime.settings",
    "Sampling": "edge.runtime.settings",
    **{name: "edge.runtime.errors" for name in __all__ if name.endswith("Error")},
}


if not _typing.TYPE_CHECKING:  # a checker that saw it would take any name for one of ours

    def __getattr__(name: str) -> object:
        from importlib import import_module

        if name in ("export", "tools"):
            return import_module(f"edge.{name}")
        if name == "__version__":
            return import_module("importlib.metadata").version("edgeglm")
        if name not in _HOMES:
            raise AttributeError(f"module 'edge' has no attribute {name!r}")
        return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
