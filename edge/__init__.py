"""edgeglm: export GLM-4 checkpoints to compressed bundles and run them offline on Intel hardware.

    import edge

    edge.export("glm-4-9b-chat", "glm4-int4", recipe="int4-asym-g128")
    llm = edge.load("glm4-int4")
    for chunk in llm.chat([{"role": "user", "content": "Hello"}]):
        print(chunk.text, end="", flush=True)

Public names are loaded when they are first used; importing `edge` imports nothing else. It does one thing: it keeps
what it will use from reporting to a server. `import openvino_telemetry` is made to fail in this process, since `import
openvino` and nncf report where it works (openvino/tools/ovc/__init__.py and nncf/telemetry/wrapper.py fall back to a
stub). onnxruntime and onnxruntime-genai start an uploader when they are imported and listen only to a variable of the
environment: disable_telemetry_events() comes too late (seen with 1.31 and 0.18: a queue in the user's cache folder).
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None: not importable

if TYPE_CHECKING:
    from edge.api import load
    from edge.runtime.constraints import Constraint
    from edge.runtime.engines import EngineSettings
    from edge.runtime.errors import EdgeError
    from edge.runtime.llm import LLM, Answer
    from edge.runtime.messages import Message, ToolCall
    from edge.runtime.request import Chunk, GenerationSettings
    from edge.runtime.sampling import Sampling
    from edge.runtime.session import ChatSession
    from edge.runtime.speculation import SpeculationSettings

__all__ = [
    "LLM",
    "Answer",
    "ChatSession",
    "Chunk",
    "Constraint",
    "EdgeError",
    "EngineSettings",
    "GenerationSettings",
    "Message",
    "Sampling",
    "SpeculationSettings",
    "ToolCall",
    "export",
    "load",
]

_HOMES = {
    "load": "edge.api",
    "LLM": "edge.runtime.llm",
    "Answer": "edge.runtime.llm",
    "Constraint": "edge.runtime.constraints",
    "Message": "edge.runtime.messages",
    "ToolCall": "edge.runtime.messages",
    "SpeculationSettings": "edge.runtime.speculation",
    "ChatSession": "edge.runtime.session",
    "Chunk": "edge.runtime.request",
    "GenerationSettings": "edge.runtime.request",
    "EngineSettings": "edge.runtime.engines",
    "EdgeError": "edge.runtime.errors",
    "Sampling": "edge.runtime.sampling",
}


def __getattr__(name: str) -> Any:
    if name == "export":
        return import_module("edge.export")
    if name not in _HOMES:
        raise AttributeError(f"module 'edge' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
