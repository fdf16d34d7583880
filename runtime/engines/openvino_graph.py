"""A bundle's IR, opened and compared with the manifest.

In: a core, the path of an .xml and a `ModelSpec`. Out: the graph, or a BundleError. Knows nothing about running it.
"""

from __future__ import annotations

import re
from pathlib import Path

import openvino as ov

from edge.runtime.errors import EXPORT_AGAIN, BundleError
from edge.runtime.graph_check import Cached, check_cached, check_last, check_spec
from edge.runtime.graph_names import SPEC, past_name
from edge.runtime.spec import ModelSpec

_PAST = re.compile(re.escape(past_name("")) + r"(\d+\.(?:key|value))")  # begins the id of a state


def read_graph(core: ov.Core, xml: Path, spec: ModelSpec) -> ov.Model:
    """Return the graph of an .xml. Raises BundleError for another model's, and OpenVINO's errors for an invalid one."""
    model = core.read_model(xml)
    line = str(model.get_rt_info(list(SPEC)).astype(str)) if model.has_rt_info(list(SPEC)) else None
    check_spec(line, spec, xml)
    # For a foreign graph, config.json may not tell the heads; attention takes them from the graph.
    check_cached([_cached(variable.info, line is not None) for variable in model.get_variables()], spec, xml)
    logits = next((output for output in model.outputs if "logits" in output.get_names()), None)
    if logits is None:
        raise BundleError(f"{xml} has no output logits; {EXPORT_AGAIN}")
    rows = logits.get_partial_shape()[-1]
    check_last(rows.get_length() if rows.is_static else None, spec.vocab_size, "logits", xml)
    return model


def _cached(state: ov.VariableInfo, with_dims: bool) -> Cached:
    named = _PAST.match(state.variable_id)
    dims = tuple(dim.get_length() for dim in state.data_shape if dim.is_static) if with_dims else ()
    return Cached(state.variable_id if named is None else named[1], dims)
