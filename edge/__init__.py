"""edgeglm: export GLM-4 checkpoints to compressed bundles and run them offline on Intel hardware.

    import edge

    edge.export("glm-4-9b-chat", "glm4-int4", recipe="int4-asym-g128")
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

# Imported under names that an editor does not offer behind `edge.`.
import logging as _logging
import os as _os
import sys as _sys
import typing as _typing

_os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
_sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None: not importable
_logging.getLogger("edge").addHandler(_logging.NullHandler())  # silent unless the program asks for it

if _typing.TYPE_CHECKING:
    from edge.api import load
    from edge.export.pipeline import export
    from edge.runtime.constraints import Constraint
    from edge.runtime.engines import EngineSettings
    from edge.runtime.errors import (
        BundleError,
        CacheError,
        CalibrationError,
        CheckpointError,
        ConfigError,
        ContextLengthError,
        DeviceError,
        DraftStoreError,
        EdgeError,
        GenerationError,
        MissingPackageError,
        OutputError,
        ProfileError,
        PromptError,
        RecipeError,
        SettingsError,
        SnapshotError,
        TensorError,
        TokenizerError,
        VerificationError,
    )
    from edge.runtime.llm import LLM, Answer
    from edge.runtime.request import Chunk, GenerationSettings
    from edge.runtime.sampling import Sampling
    from edge.runtime.session import ChatSession
    from edge.runtime.speculation import SpeculationSettings

    __version__: str

__all__ = [
    "LLM",
    "Answer",
    "BundleError",
    "CacheError",
    "CalibrationError",
    "ChatSession",
    "CheckpointError",
    "Chunk",
    "ConfigError",
    "Constraint",
    "ContextLengthError",
    "DeviceError",
    "DraftStoreError",
    "EdgeError",
    "EngineSettings",
    "GenerationError",
    "GenerationSettings",
    "MissingPackageError",
    "OutputError",
    "ProfileError",
    "PromptError",
    "RecipeError",
    "Sampling",
    "SettingsError",
    "SnapshotError",
    "SpeculationSettings",
    "TensorError",
    "TokenizerError",
    "VerificationError",
    "__version__",
    "export",
    "load",
]

_HOMES = {
    "load": "edge.api",
    "LLM": "edge.runtime.llm",
    "Answer": "edge.runtime.llm",
    "Constraint": "edge.runtime.constraints",
    "SpeculationSettings": "edge.runtime.speculation",
    "ChatSession": "edge.runtime.session",
    "Chunk": "edge.runtime.request",
    "GenerationSettings": "edge.runtime.request",
    "EngineSettings": "edge.runtime.engines",
    "Sampling": "edge.runtime.sampling",
    **{name: "edge.runtime.errors" for name in __all__ if name.endswith("Error")},
}


if not _typing.TYPE_CHECKING:  # a checker that saw it would take any name for one of ours

    def __getattr__(name: str) -> _typing.Any:
        from importlib import import_module

        if name == "export":
            return import_module("edge.export")
        if name == "__version__":
            return import_module("importlib.metadata").version("edgeglm")
        if name not in _HOMES:
            raise AttributeError(f"module 'edge' has no attribute {name!r}")
        return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
