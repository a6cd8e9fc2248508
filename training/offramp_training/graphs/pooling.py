"""Cheaper forms of the statistics that exits pool from a quantised feature map, which else take a fifth of a stage's time."""

from __future__ import annotations

import math

import numpy as np

from offramp_model.config import GRID
from offramp_training.graphs.toolkit import openvino, opset

_POOLS = ("AdaptiveAvgPool", "AdaptiveMaxPool", "ReduceMean", "ReduceMax")
_AXES = {2, 3}


def lighten_pooling(model: openvino.Model) -> None:
    """Change the graph in place; what it computes stays the same but for rounding.

    No pass over a map is made in float, save the one that squares it: OpenVINO would first restore the whole map for it.
    """
    maps = dict[tuple[str, int], _Map]()
    pools = [node for node in model.get_ordered_ops() if node.get_type_name() in _POOLS]
    for node, squared in [(node, _squared_deviation(node)) for node in pools]:
        kind, value = node.get_type_name(), node.input_value(0) if squared is None else squared
        pooled = maps.setdefault((value.get_node().get_friendly_name(), value.get_index()), _Map(value))
        if kind.startswith("Adaptive"):
            cells = [dimension.get_length() for dimension in list(node.get_output_partial_shape(0))[2:]]
            made = pooled.cells(cells, "max" if kind == "AdaptiveMaxPool" else "average")
        elif pooled.stored is None or set(node.input_value(1).get_node().get_data().flatten()) != _AXES:
            made = None
        elif squared is not None:
            made = pooled.variance(node)
        else:
            made = pooled.over_all(node)
        if made is not None:
            node.output(0).replace(made)
    model.validate_nodes_and_infer_types()


class _Map:
    """A feature map that is pooled in several ways: whole numbers in uint8 and their factor, or floats."""

    def __init__(self, value: openvino.Output) -> None:
        self._value, self._made = value, dict[tuple[object, ...], openvino.Output]()
        self.stored: openvino.Output | None = None
        """The uint8 numbers that the map was restored from, where it was."""
        restored = value.get_node()
        if restored.get_type_name() == "Multiply" and restored.input_value(0).get_node().get_type_name() == "Convert":
            stored = restored.input_value(0).get_node().input_value(0)
            if stored.get_element_type() == openvino.Type.u8:
                self.stored, self._factor = stored, restored.input_value(1)

    def cells(self, counts: list[int], of: str) -> openvino.Output | None:
        """Averages, or maxima, over cells of a grid; None where they are not all equal."""
        cell = self._cell(counts)
        if cell is None:
            return None
        if self.stored is not None:
            return self._restored(self._averages(cell) if of == "average" else self._maxima(cell))
        if of == "average":
            return opset.avg_pool(self._value, cell, [0, 0], [0, 0], cell, exclude_pad=True).output(0)
        return opset.max_pool(self._value, cell, [1, 1], [0, 0], [0, 0], cell).output(0)

    def over_all(self, node: openvino.Node) -> openvino.Output | None:
        """What a mean or maximum over the whole map gives, from those of the cells of a grid."""
        cell = self._cell([GRID, GRID])
        if cell is None:
            return None
        keep = node.get_attributes()["keep_dims"]
        if node.get_type_name() == "ReduceMean":
            return self._restored(opset.reduce_mean(self._averages(cell), node.input_value(1), keep_dims=keep).output(0))
        return self._restored(opset.reduce_max(self._maxima(cell), node.input_value(1), keep_dims=keep).output(0))

    def variance(self, node: openvino.Node) -> openvino.Output | None:
        """The mean of (x − mean x)² as the mean of x² less that of x, squared: whole numbers, whose squares are exact."""
        cell = self._cell([GRID, GRID])
        if cell is None:
            return None
        axes = node.input_value(1)
        # a conversion for each operand: so both are read as uint8 where they are multiplied
        squares = opset.reduce_mean(opset.multiply(self._floats(), self._floats()), axes, keep_dims=False)
        mean = opset.reduce_mean(self._averages(cell), axes, keep_dims=False)
        return self._restored(self._restored(opset.subtract(squares, opset.multiply(mean, mean)).output(0)))

    def _cell(self, counts: list[int]) -> list[int] | None:
        sizes = [dimension.get_length() for dimension in list(self._value.get_partial_shape())[2:]]
        if any(size % count for size, count in zip(sizes, counts, strict=True)):
            return None
        return [size // count for size, count in zip(sizes, counts, strict=True)]

    def _averages(self, cell: list[int]) -> openvino.Output:
        """Of the whole numbers, by a convolution with ones: OpenVINO's own pooling would round them to whole numbers."""
        if ("average", *cell) not in self._made:
            channels = self._value.get_partial_shape()[1].get_length()
            ones = opset.convert(opset.constant(np.ones((channels, 1, 1, *cell), np.int8)), "f32")
            sums = opset.group_convolution(self._floats(), ones, cell, [0, 0], [0, 0], [1, 1])
            share = opset.constant(np.float32(1 / math.prod(cell)))
            self._made["average", *cell] = opset.multiply(sums, share).output(0)
        return self._made["average", *cell]

    def _maxima(self, cell: list[int]) -> openvino.Output:
        if ("max", *cell) not in self._made:
            pooled = opset.max_pool(self.stored, cell, [1, 1], [0, 0], [0, 0], cell).output(0)
            self._made["max", *cell] = opset.convert(pooled, "f32").output(0)
        return self._made["max", *cell]

    def _floats(self) -> openvino.Output:
        return opset.convert(self.stored, "f32").output(0)

    def _restored(self, value: openvino.Output) -> openvino.Output:
        return opset.multiply(value, self._factor).output(0)


def _squared_deviation(node: openvino.Node) -> openvino.Output | None:
    """x, where the node is a mean of (x − mean x)²."""
    product = node.input_value(0).get_node()
    if product.get_type_name() != "Multiply" or product.input_value(0) != product.input_value(1):
        return None
    difference = product.input_value(0).get_node()
    if difference.get_type_name() != "Subtract":
        return None
    value, mean = difference.input_value(0), difference.input_value(1).get_node()
    return value if mean.get_type_name() == "ReduceMean" and mean.input_value(0) == value else None
