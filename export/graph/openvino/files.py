"""An OpenVINO IR whose weights are in a file already.

In: a model whose large constants are known by name to a `WeightStore`. Out: the .xml that points into the store's file;
small constants are appended to it. `ov.serialize` would write all weights a second time. Knows nothing about decoders.
"""

from __future__ import annotations

import os
from pathlib import Path
from xml.etree import ElementTree

import openvino as ov

from edge.export.weights.store import WeightStore


def write_ir(model: ov.Model, store: WeightStore, xml: Path) -> None:
    """Write `xml`, and the constants that the store does not have to the store. Raises OSError and RuntimeError."""
    ov.serialize(model, xml, os.devnull)
    small = {node.get_friendly_name(): node for node in model.get_ordered_ops() if node.get_type_name() == "Constant"}
    tree = ElementTree.parse(xml)
    places: dict[str, tuple[int, int]] = store.constants
    written: dict[bytes, int] = {}
    for layer in tree.iterfind("layers/layer[@type='Const']"):
        name, data = layer.attrib["name"], layer.find("data")
        assert data is not None, f"constant {name} without data"
        if name in places:
            offset, size = places[name]
        else:
            values = small[name].data
            size, raw = values.nbytes, values.tobytes()
            if raw not in written:
                written[raw] = store.append(values)
            offset = written[raw]
        if size != int(data.attrib["size"]):
            raise RuntimeError(f"constant {name} has {data.attrib['size']} bytes in the graph and {size} in the store")
        data.set("offset", str(offset))
    tree.write(xml, encoding="utf-8", xml_declaration=True)
