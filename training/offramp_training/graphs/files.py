"""Graphs on disk: an .xml each, and one file of weights that all of them point into."""

from __future__ import annotations

import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from offramp_model.graphs import GRAPH_WEIGHTS
from offramp_training.graphs.toolkit import openvino, opset

HALVED = 1024
"""Float constants of more numbers than this are stored in half precision, as all of a bundle's weights are."""
ALIGNMENT = 64


def write_graphs(models: Mapping[str, openvino.Model], folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write <name>.xml of every graph and their weights; equal constants, of one graph or of several, are stored once.

    Those of more than `HALVED` numbers that are among the bundle's own tensors, such as a head's, are not stored again: they
    become inputs of the tensor's name, as all weights of a float graph are.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights, places = bytearray(), dict[bytes, int]()
    for name, model in models.items():
        _refer(model, tensors)
        _halve(model)
        with tempfile.TemporaryDirectory() as scratch:
            xml, binary = Path(scratch) / "graph.xml", Path(scratch) / "graph.bin"
            openvino.serialize(model, xml, binary)
            tree, constants = ElementTree.parse(xml), binary.read_bytes()
        for data in tree.iterfind("./layers/layer[@type='Const']/data"):
            offset, size = int(data.attrib["offset"]), int(data.attrib["size"])
            constant = constants[offset : offset + size]
            if constant not in places:
                weights += bytes(-len(weights) % ALIGNMENT)
                places[constant] = len(weights)
                weights += constant
            data.set("offset", str(places[constant]))
        tree.write(folder / f"{name}.xml", encoding="utf-8", xml_declaration=True)
    (folder / GRAPH_WEIGHTS).write_bytes(weights)


def _refer(model: openvino.Model, tensors: Mapping[str, Tensor]) -> None:
    named = {name: tensor.numpy() for name, tensor in tensors.items() if tensor.numel() > HALVED}
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Constant" or node.get_element_type() != openvino.Type.f32:
            continue
        value = node.get_data()
        name = next((name for name, tensor in named.items() if np.array_equal(tensor, value)), None)
        if name is not None:
            parameter = opset.parameter(value.shape, np.float32, name)
            parameter.output(0).get_tensor().set_names({name})
            for reader in node.output(0).get_target_inputs():
                reader.replace_source_output(parameter.output(0))
            model.add_parameters([parameter])


def _halve(model: openvino.Model) -> None:
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Constant" and node.get_element_type() == openvino.Type.f32:
            value = node.get_data()
            if value.size > HALVED:
                readers = node.output(0).get_target_inputs()
                restored = opset.convert(opset.constant(value.astype(np.float16)), "f32")
                for reader in readers:
                    reader.replace_source_output(restored.output(0))
    model.validate_nodes_and_infer_types()
