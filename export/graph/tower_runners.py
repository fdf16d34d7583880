"""Runs the picture tower's graphs, some layers at a time, as exactly as an engine can.

In: the weights of these layers, float or packed, and their input. Out: what the engine's graph makes of it, in float32
and with float activations. One runner for each format, and numpy. Knows nothing about what the result should be.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from edge.export.graph import tower_numpy
from edge.export.graph.runners import OnnxRunner, OpenVINORunner, _unsigned
from edge.export.graph.tower_numpy import Inputs
from edge.export.tensors import Float32Array, Weight
from edge.runtime.graph_names import HIDDEN
from edge.runtime.vision.spec import VisionSpec


class TowerRunner(Protocol):
    """n patches, h hidden size, m rows."""

    name: str

    def segment(
        self, weights: Mapping[str, Weight], inputs: Inputs, spec: VisionSpec, layers: range, *, first: bool, last: bool
    ) -> Float32Array:
        """Some layers, with what comes before them if `first` and what comes after if `last`."""


def patches(runner: TowerRunner, weights: Mapping[str, Weight], inputs: Inputs, spec: VisionSpec) -> Float32Array:
    """A tower's inputs -> hidden states (n, h), with "eva" (n + 1, h)."""
    return runner.segment(weights, inputs, spec, range(0), first=True, last=False)


def layer(
    runner: TowerRunner,
    weights: Mapping[str, Weight],
    hidden: Float32Array,
    index: int,
    inputs: Inputs,
    spec: VisionSpec,
) -> Float32Array:
    """(n, h) -> (n, h). Of a tower's inputs cos and sin are used, where it has them."""
    given = {**inputs, HIDDEN: hidden}
    return runner.segment(weights, given, spec, range(index, index + 1), first=False, last=False)


def adapter(runner: TowerRunner, weights: Mapping[str, Weight], hidden: Float32Array, spec: VisionSpec) -> Float32Array:
    """Hidden states -> rows (m, out_size)."""
    none = range(spec.num_layers, spec.num_layers)
    return runner.segment(weights, {HIDDEN: hidden}, spec, none, first=False, last=True)


class NumpyTowerRunner:
    """The reference."""

    name = "numpy"

    def segment(
        self, weights: Mapping[str, Weight], inputs: Inputs, spec: VisionSpec, layers: range, *, first: bool, last: bool
    ) -> Float32Array:
        return tower_numpy.segment(weights, inputs, spec, layers, first=first, last=last)


class OpenVINOTowerRunner(OpenVINORunner):
    """OpenVINO on the CPU."""

    def segment(
        self, weights: Mapping[str, Weight], inputs: Inputs, spec: VisionSpec, layers: range, *, first: bool, last: bool
    ) -> Float32Array:
        from edge.export.graph.openvino.tower import segment_model

        model = segment_model(weights, spec, layers, first=first, last=last)
        return self._run(model, *(np.ascontiguousarray(inputs[i.any_name]) for i in model.inputs))


class OnnxTowerRunner(OnnxRunner):
    """ONNX Runtime on the CPU."""

    def segment(
        self, weights: Mapping[str, Weight], inputs: Inputs, spec: VisionSpec, layers: range, *, first: bool, last: bool
    ) -> Float32Array:
        from edge.export.graph.onnx.tower import segment_model
        from edge.export.graph.onnx.writer import Borrowed

        memory = Borrowed()
        model = segment_model(_unsigned(weights), spec, layers, memory, first=first, last=last)
        return self._run(model, memory.arrays, {i.name: inputs[i.name] for i in model.graph.input})
