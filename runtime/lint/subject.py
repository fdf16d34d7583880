"""What rules look at: a model's numbers, what each matrix is stored as, and what the graph says of itself.

In: a `Bundle`, or the plan of an export that has not been made. Out: a `Subject`. Reads the manifest and the end of the
graph's XML, never weights. Knows no devices and no rules.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from xml.etree import ElementTree

from edge.runtime import bundle as bundles
from edge.runtime.float16_record import Float16Record
from edge.runtime.spec import ModelSpec
from edge.runtime.tensor_records import TensorRecord

COMPRESSION = ("nncf", "weight_compression")  # where a graph's metadata says how its weights were rounded
VOCABULARY = {"embed.weight": "embedding", "lm_head.weight": "head"}
_PRECISION = re.compile(r"int(\d+)-(a?sym)(?:-channel|-g(\d+))?")
_RANK = re.compile(r"with a product of rank (\d+) added")


@dataclass(frozen=True, slots=True)
class Matrix:
    """How one matrix is stored."""

    name: str
    rows: int
    width: int
    precision: str  # as the manifest has it
    bits: int
    symmetric: bool
    group_size: int  # 0: a whole row, also where one group fills it, or floats
    rank: int  # of the product of two narrow matrices that is added; 0: none is
    nbytes: int

    @property
    def is_float(self) -> bool:
        return self.bits >= 16

    @property
    def in_block(self) -> bool:
        """Whether it is neither embedding nor head."""
        return self.name not in VOCABULARY


@dataclass(frozen=True, slots=True)
class Subject:
    """A bundle, or what an export would make."""

    spec: ModelSpec
    matrices: tuple[Matrix, ...]
    recipe: str
    rt_info: Mapping[str, str] | None = None  # of COMPRESSION in the graph; None: there is no graph yet
    float16: Float16Record | None = None  # what an export for a device that computes in it measured
    planned: bool = False  # whether there is no bundle yet

    @property
    def weight_bytes(self) -> int:
        return sum(matrix.nbytes for matrix in self.matrices)

    @property
    def says_rows(self) -> bool:
        """Whether the graph says that whole rows share a scale; an export will say so where that is so."""
        if self.rt_info is None:
            return all(not matrix.group_size for matrix in self.block_matrices if matrix.bits == 4)
        return self.rt_info.get("group_size") == "-1"

    @property
    def block_matrices(self) -> tuple[Matrix, ...]:
        return tuple(matrix for matrix in self.matrices if matrix.in_block)


def subject_of(bundle: bundles.Bundle) -> Subject:
    """Raises BundleError for a graph that is altered."""
    manifest = bundle.manifest
    graph = bundle.read(bundles.MODEL_XML)
    return Subject(
        manifest.spec,
        matrices_of(manifest.tensors),
        manifest.recipe,
        None if graph is None else compression_info(graph),
        manifest.float16,
    )


def planned_subject(spec: ModelSpec, tensors: Mapping[str, TensorRecord], recipe: str) -> Subject:
    """What an export with these weights would make."""
    return Subject(spec, matrices_of(tensors), recipe, planned=True)


def matrices_of(tensors: Mapping[str, TensorRecord]) -> tuple[Matrix, ...]:
    """The matrices of a manifest's or a plan's weights."""
    return tuple(_matrix(name, record) for name, record in tensors.items() if len(record.shape) == 2)


def compression_info(graph: bytes) -> dict[str, str]:
    """Return what the metadata of an OpenVINO graph says about how its weights were rounded; {} if that is nothing."""
    tail = graph[graph.rfind(b"</edges>") + len(b"</edges>") :]
    try:
        net = ElementTree.fromstring(b"<net>" + tail)
    except ElementTree.ParseError:
        return {}
    found = net.find("rt_info/" + "/".join(COMPRESSION))
    return {} if found is None else {value.tag: value.get("value", "") for value in found}


def _matrix(name: str, record: TensorRecord) -> Matrix:
    match = _PRECISION.fullmatch(record.precision)
    rank = _RANK.search(record.note)
    rows, width = record.shape
    group = int(match[3] or 0) if match else 0
    return Matrix(
        name=name,
        rows=rows,
        width=width,
        precision=record.precision,
        bits=record.bits,
        symmetric=match is None or match[2] == "sym",
        group_size=0 if group == width else group,
        rank=int(rank[1]) if rank else 0,
        nbytes=record.nbytes,
    )
