"""Engines run the decoder: one file each, one record each in `registry`; `choice` decides which one opens a bundle."""

from edge.runtime.engines.engine import TEXT, Embedding, Engine, EngineInfo, Inputs, Step

__all__ = ["TEXT", "Embedding", "Engine", "EngineInfo", "Inputs", "Step"]
