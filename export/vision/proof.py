"""Proof that the tower that export wrote is the one it read: the golden picture goes through both.

In: one stage at a time (patches, a layer, the adapter), as float weights and as compressed ones. Out: how far the stage
is off, and how much of that rounding explains; how large values get; at the end the picture's rows of both. Both sides
are computed in plain numpy from the stored bytes, and graphs are compared with the result. Knows nothing about files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edge.export.graph import tower
from edge.export.graph.tower_numpy import NumpyTowerBuilder
from edge.export.graph.tower_runners import TowerRunner
from edge.export.proof import GraphProof, check_stage, kind_of
from edge.export.tensors import Float32Array, FloatArray, Weight
from edge.export.vision.golden import GoldenPicture, golden_inputs
from edge.export.vision.names import TowerStage
from edge.export.vision.ranges import RangeTowerBuilder
from edge.runtime.graph_names import HIDDEN, PATCHES, PLACES, ROTARY_TABLES
from edge.runtime.tensor_records import StageCheck
from edge.runtime.vision.spec import VisionSpec


class TowerVerifier:
    """Carries the golden picture's hidden states through the float tower and the compressed one, stage by stage.

    Every stage runs twice with the compressed weights, as in `export/proof.py`. Raises VerificationError.
    """

    def __init__(self, spec: VisionSpec, runners: Sequence[TowerRunner]) -> None:
        self._spec = spec
        self._graphs = GraphProof(runners)
        self._inputs = golden_inputs(spec)
        tables = [self._inputs[name] for name in ROTARY_TABLES if name in self._inputs]
        self._tables = (tables[0], tables[1]) if tables else None
        # Of the float tower and of the compressed one: (2, n, h). Set it to resume.
        self.hidden: Float32Array = np.zeros((2, 0, spec.hidden_size), np.float32)
        self.largest: Mapping[str, float] = {}  # magnitudes of the last stage

    def run(
        self, stage: TowerStage, weights: Mapping[str, FloatArray], packed: Mapping[str, Weight]
    ) -> tuple[StageCheck, GoldenPicture | None]:
        """One stage; with the golden rows after the last."""
        ranges = RangeTowerBuilder(weights, self._tables)
        exact, rounded = self.hidden if len(self.hidden[0]) else (self._inputs[PATCHES],) * 2
        expected = self._compute(ranges, stage, exact)
        found = self._compute(NumpyTowerBuilder(packed, self._tables), stage, exact)
        self.largest = ranges.largest
        # Stages of layers have equal graphs where their weights are stored alike.
        layout = None if stage.layer is None else [kind_of(weight) for weight in packed.values()]
        inputs = {**self._inputs, HIDDEN: exact}
        layers, first, last = _span(stage, self._spec)
        self._graphs.prove(
            stage.name,
            lambda runner: runner.segment(packed, inputs, self._spec, layers, first=first, last=last),
            found,
            layout,
        )
        start = exact if stage.layer is not None else 0
        check = check_stage(stage.name, found, expected, start, weights, packed)
        if stage.index:
            found = self._compute(NumpyTowerBuilder(packed, self._tables), stage, rounded)
        if stage.is_last:
            return check, GoldenPicture(self._inputs, expected, found)
        self.hidden = np.stack([expected, found])
        return check, None

    def _compute(self, builder: NumpyTowerBuilder, stage: TowerStage, x: Float32Array) -> Float32Array:
        layers, first, last = _span(stage, self._spec)
        places = self._inputs[PLACES] if first else None
        return tower.part(builder, x, places, self._spec, layers, first=first, last=last)


def _span(stage: TowerStage, spec: VisionSpec) -> tuple[range, bool, bool]:
    """The layers of a stage, and whether it is the first one and the last."""
    if stage.layer is not None:
        return range(stage.layer, stage.layer + 1), False, False
    return range(spec.num_layers, spec.num_layers) if stage.is_last else range(0), not stage.index, stage.is_last
