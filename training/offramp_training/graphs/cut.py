"""Cuts a whole graph between its stages, where it is quantised in the quantised type (docs/adr/0008)."""

from __future__ import annotations

import numpy as np

from offramp_model.graphs import EARLIER, FEATURES, LOGITS, ROUTER, SURVIVORS
from offramp_training.graphs.toolkit import openvino, opset

LEVELS = 256


def quantise_boundaries(model: openvino.Model, exits: int) -> None:
    """Make every stage but the last end in uint8, read by whatever follows: the next stage and its own exit alike.

    NNCF puts a fake quantiser before each of the next stage's convolutions, all of the same range, and leaves the exit's
    pooling beside them. One real quantiser takes their place. A boundary stays in float where it has no quantiser, or one with a
    range a channel, as a depthwise convolution gets.
    """
    for exit in range(1, exits):
        source = _source(model, f"{SURVIVORS}{exit}")
        quantisers = [i.get_node() for i in source.get_target_inputs() if i.get_node().get_type_name() == "FakeQuantize"]
        if not quantisers or any(len(bound) > 1 for node in quantisers for bound in _range(node)):
            continue
        ((low,), (high,)) = _range(quantisers[0])
        assert all(_range(node) == ((low,), (high,)) for node in quantisers), "NNCF gave one tensor several ranges"
        readers = [reader for node in quantisers for reader in node.output(0).get_target_inputs()]
        readers += [reader for reader in source.get_target_inputs() if reader.get_node().get_type_name() != "FakeQuantize"]
        levels = opset.fake_quantize(source, *map(_scalar, (low, high, 0.0, LEVELS - 1.0)), LEVELS)
        stored = opset.convert(levels, "u8")
        restored = opset.convert(stored, "f32")
        if low:
            restored = opset.subtract(restored, _scalar(round(-low * (LEVELS - 1) / (high - low))))
        restored = opset.multiply(restored, _scalar((high - low) / (LEVELS - 1)))
        for reader in readers:
            is_result = reader.get_node().get_type_name() == "Result"
            reader.replace_source_output(stored.output(0) if is_result else restored.output(0))
    model.validate_nodes_and_infer_types()


def cut(model: openvino.Model, exit: int, exits: int) -> openvino.Model:
    """Stage `exit` by itself.

    Inputs: pixels for stage 1, else the features that the stage before gives and the class logits of the exits before.
    Outputs: features for the next stage, class logits of every exit so far, and the router's output where there is one.
    """
    model = model.clone()
    if exit > 1:
        for name, here in ((FEATURES, f"{SURVIVORS}{exit - 1}"), (EARLIER, f"{LOGITS}{exit - 1}")):
            source = _source(model, here)
            parameter = opset.parameter(source.get_partial_shape(), source.get_element_type(), name)
            parameter.output(0).get_tensor().set_names({name})
            for reader in source.get_target_inputs():
                reader.replace_source_output(parameter.output(0))
    names = (*([SURVIVORS] if exit < exits else []), LOGITS, ROUTER)
    return _part(model, {name: f"{name}{exit}" for name in names}, f"stage{exit}")


def uncut(model: openvino.Model, exits: int) -> openvino.Model:
    """Every stage in one graph. Outputs: class logits of every exit, and each router's output as router1, router2, …"""
    routers = [f"{ROUTER}{exit}" for exit in range(1, exits)]
    return _part(model.clone(), {LOGITS: f"{LOGITS}{exits}"} | dict(zip(routers, routers, strict=True)), "full")


def _part(model: openvino.Model, wanted: dict[str, str], name: str) -> openvino.Model:
    """What the wanted outputs need, an output being given its new name; those that the graph doesn't have are left out."""
    there = {each for output in model.outputs for each in output.get_names()}
    results = []
    for new_name, old_name in wanted.items():
        if old_name in there:
            result = opset.result(_source(model, old_name))
            result.set_friendly_name(new_name)
            results.append(result)
    parameters = [node for node in ancestors(results) if node.get_type_name() == "Parameter"]
    part = openvino.Model(results, sorted(parameters, key=lambda node: node.get_friendly_name()), name)
    for output, new_name in zip(part.outputs, [n for n, old in wanted.items() if old in there], strict=True):
        output.get_tensor().set_names({new_name})
    return part


def ancestors(nodes: list[openvino.Node]) -> list[openvino.Node]:
    """These nodes and every node that they are computed from, each once."""
    seen: dict[str, openvino.Node] = {}
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        if node.get_name() not in seen:
            seen[node.get_name()] = node
            waiting += [value.get_node() for value in node.input_values()]
    return list(seen.values())


def _source(model: openvino.Model, name: str) -> openvino.Output:
    """The value that the output of that name shows."""
    return model.output(name).get_node().input_value(0)


def _range(quantiser: openvino.Node) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Least and greatest value, one each for the whole tensor or one a channel."""
    low, high = (tuple(quantiser.input_value(index).get_node().get_data().ravel().tolist()) for index in (1, 2))
    return low, high


def _scalar(value: float) -> openvino.Node:
    return opset.constant(np.float32(value))
