"""A network's stages as OpenVINO graphs, and the whole network joined from them.

Stages are converted one by one: converted together they would come to share shape computations, and a stage cut out would carry
half the network with it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from offramp_model.bundle import Preprocessing
from offramp_model.graphs import EARLIER, FEATURES, LOGITS, PIXELS, ROUTER, SURVIVORS
from offramp_model.network import MultiExitNetwork
from offramp_training.graphs.toolkit import openvino


class _Stage(nn.Module):
    """Stage `exit`; the first takes uint8 pixels, shape (N, H, W, channels), and normalises them."""

    def __init__(self, network: MultiExitNetwork, exit: int, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.network, self._exit = network, exit
        # (x / 255 − mean) / std as one subtraction and one multiplication
        self._shift_C = 255 * torch.tensor(preprocessing.mean)
        self._scale_C = 1 / (255 * torch.tensor(preprocessing.std))

    def forward(self, features: Tensor, earlier_NEC: Tensor | None = None) -> tuple[Tensor, ...]:
        if earlier_NEC is None:
            features = ((features.float() - self._shift_C) * self._scale_C).permute(0, 3, 1, 2)
            earlier_NEC = features.new_zeros(features.shape[0], 0, self.network.config.classes)
        stage = self.network.stage(self._exit, features, earlier_NEC)
        return (stage.features_NCHW, stage.logits_NEC, *([] if stage.router_output is None else [stage.router_output]))


class _StageOfInputs(nn.Module):
    """The same with weights as inputs, so that the conversion can't fold them into one another."""

    def __init__(self, stage: _Stage, names: Sequence[str]) -> None:
        super().__init__()
        self._stage, self._names = [stage], names  # in a list, so that no weight counts as this module's own

    def forward(self, inputs: tuple[Tensor, ...], weights: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        for name, weight in zip(self._names, weights, strict=True):
            owner, _, leaf = name.rpartition(".")
            module = self._stage[0].network.get_submodule(owner)
            delattr(module, leaf)
            setattr(module, leaf, weight)
        outputs: tuple[Tensor, ...] = self._stage[0](*inputs)
        return outputs


def convert(network: MultiExitNetwork, preprocessing: Preprocessing, *, with_weights: bool) -> list[openvino.Model]:
    """A graph for every stage, with the inputs and outputs that offramp_model.graphs names, survivors at the last exit too.

    Without weights, each of the network's tensors that a stage needs is an input, named as in the bundle's weights.
    """
    inputs: tuple[Tensor, ...] = (_blank(network),)
    models = []
    for exit in range(1, network.config.exits + 1):
        stage = _Stage(network, exit, preprocessing).eval()
        names = [PIXELS] if exit == 1 else [FEATURES, EARLIER]
        if with_weights:
            model = _trace(stage, inputs, inputs)
        else:
            weights = {name: tensor for name, tensor in network.state_dict().items() if tensor.is_floating_point()}
            copied = _StageOfInputs(_Stage(deepcopy(network), exit, preprocessing), list(weights)).eval()
            model = _trace(copied, (inputs, tuple(weights.values())), inputs, tuple(weights.values()))
            names += weights
        models.append(_named(model, network, exit, names))
        with torch.no_grad():
            inputs = stage(*inputs)[:2]
    return models


def join(stages: Sequence[openvino.Model]) -> openvino.Model:
    """Every stage in a row, whose outputs are survivors1, logits1, router1, survivors2, …; the stages are used up."""
    results, parameters = [], dict[str, openvino.Node]()
    before: dict[str, openvino.Output] = {}
    for exit, stage in enumerate(stages, 1):
        for parameter in stage.get_parameters():
            name = parameter.output(0).get_any_name()
            source = before.get({FEATURES: SURVIVORS, EARLIER: LOGITS}.get(name, ""))
            if source is None:
                # weights that several stages name would be several inputs of one name
                source = parameters.setdefault(name, parameter).output(0)
            if source.get_node().get_name() != parameter.get_name():
                for reader in parameter.output(0).get_target_inputs():
                    reader.replace_source_output(source)
        before = {result.output(0).get_any_name(): result.input_value(0) for result in stage.get_results()}
        results += [(f"{name}{exit}", result) for name, result in zip(before, stage.get_results(), strict=True)]
    for name, result in results:
        result.output(0).get_tensor().set_names({name})
    return openvino.Model([result for _, result in results], list(parameters.values()), "whole")


def _trace(module: nn.Module, example: object, *shaped: tuple[Tensor, ...]) -> openvino.Model:
    """Converted at these shapes, but for any number of rows of the first inputs; of what follows the shapes are fixed."""
    rows, *fixed = shaped
    shapes = [openvino.PartialShape([-1, *tensor.shape[1:]]) for tensor in rows]
    shapes += [openvino.PartialShape(list(tensor.shape)) for tensors in fixed for tensor in tensors]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # tracing is deprecated, and this is how OpenVINO reads a module
        model: openvino.Model = openvino.convert_model(module, example_input=example, input=shapes)
    return model


def _blank(network: MultiExitNetwork) -> Tensor:
    config = network.config
    return torch.zeros(2, config.input_size, config.input_size, config.input_channels, dtype=torch.uint8)


def _named(model: openvino.Model, network: MultiExitNetwork, exit: int, inputs: Sequence[str]) -> openvino.Model:
    """With names of inputs and outputs and no others on tensors; nodes are told from those of other stages by their names."""
    for node in model.get_ops():
        node.set_friendly_name(f"stage{exit}/{node.get_friendly_name()}")
        for output in node.outputs():
            output.get_tensor().set_names(set())
    outputs = [SURVIVORS, LOGITS, *([ROUTER] if exit <= len(network.routers) else [])]
    for parameter, name in zip(model.get_parameters(), inputs, strict=True):
        parameter.output(0).get_tensor().set_names({name})
        if not parameter.output(0).get_target_inputs():
            model.remove_parameter(parameter)
    for result, name in zip(model.get_results(), outputs, strict=True):
        result.output(0).get_tensor().set_names({name})
    return model
