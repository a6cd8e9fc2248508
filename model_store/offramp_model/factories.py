"""Networks on stages of any make: a factory, a function named `package.module:function`, returns them as a list of modules.

    def stages() -> list[nn.Module]: ...    # each (N, C, H, W) → (N, C', H', W'), the first from normalised images

Importing a factory runs code. So a name that comes with a bundle is worth nothing: a factory is imported only where whoever
runs the process has allowed it by name.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Sequence
from copy import deepcopy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from offramp_model.config import FactoryError, FactoryNotAllowedError, NetworkConfig
from offramp_model.network import MultiExitNetwork, MultiExitResNet


def build_network(config: NetworkConfig, allowed_factories: Collection[str] = ()) -> MultiExitNetwork:
    """An untrained network of this configuration: a ResNet, or one on a factory's stages.

    Raises FactoryError where the factory is not allowed or can't be used, or its stages are not those that were measured.
    """
    if config.factory is None:
        return MultiExitResNet(config)
    stages = _load_stages(config.factory, allowed_factories)
    if _measure(stages, config) != config:
        raise FactoryError(f"{config.factory} returns other stages now than those that the network was trained with")
    return MultiExitNetwork(config, nn.Identity(), stages)


def measure_stages(config: NetworkConfig, allowed_factories: Collection[str]) -> NetworkConfig:
    """The configuration with the widths, sizes and MACs of its factory's stages, from a dry run. Raises FactoryError."""
    assert config.factory is not None
    return _measure(_load_stages(config.factory, allowed_factories), config)


def _load_stages(factory: str, allowed: Collection[str]) -> list[nn.Module]:
    if factory not in allowed:
        raise FactoryNotAllowedError(factory)
    module_name, _, function_name = factory.partition(":")
    try:
        stages = getattr(importlib.import_module(module_name), function_name)()
    except Exception as error:  # foreign code: whatever it raises, the factory can't be used
        raise FactoryError(f"{factory} can't be used: {type(error).__name__}: {' '.join(str(error).split())}") from error
    if not isinstance(stages, Sequence | nn.Sequential | nn.ModuleList) or not len(stages):
        raise FactoryError(f"{factory} must return a list of at least one stage, and returns {type(stages).__name__}")
    if foreign := [type(stage).__name__ for stage in stages if not isinstance(stage, nn.Module)]:
        raise FactoryError(f"{factory} must return torch modules, and returns {foreign[0]} among them")
    return list(stages)


@torch.no_grad()
def _measure(stages: Sequence[nn.Module], config: NetworkConfig) -> NetworkConfig:
    """Run one image through the stages, convolutions and matrix products counted as torch.utils.flop_counter does."""
    features = torch.zeros(1, config.input_channels, config.input_size, config.input_size)
    widths, sizes, macs = [], [], []
    for number, stage in enumerate(stages, start=1):
        try:
            with FlopCounterMode(display=False) as counter:
                features = deepcopy(stage).eval()(features)  # one image is no batch to normalise over
        except Exception as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise FactoryError(f"{config.factory}: stage {number} can't take what comes before it: {reason}") from error
        if not isinstance(features, torch.Tensor) or features.ndim != 4 or features.shape[2] != features.shape[3]:
            shape = tuple(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
            raise FactoryError(f"{config.factory}: stage {number} must give a square map (N, C, H, H), and gives {shape}")
        if not counter.get_total_flops():
            raise FactoryError(f"{config.factory}: stage {number} has no convolution or matrix product: join it to another")
        widths.append(features.shape[1])
        sizes.append(features.shape[2])
        macs.append(counter.get_total_flops() // 2)
    found = {"widths": tuple(widths), "blocks": (), "stage_sizes": tuple(sizes), "stage_macs": tuple(macs)}
    return config.model_copy(update=found)
