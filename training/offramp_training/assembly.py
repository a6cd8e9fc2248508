"""The frozen network put together from the steps' files, at the precision in which it is published.

A bundle's weights are half precision. So everything after the backbone works on weights that went through half precision
already: cached features, temperatures, routers and every reported figure are those of the very network that is served.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from offramp_model.config import NetworkConfig
from offramp_model.conv_trunk import ConvTrunk, by_channel
from offramp_model.factories import build_network
from offramp_model.network import Head, MultiExitNetwork
from offramp_model.routers import ForecastRouter, RouterBank
from offramp_model.weights import half_overflows
from offramp_training.config import JobConfig, JobError
from offramp_training.run_directory import RunDirectory

_AFTER_BACKBONE = ("heads.", "routers.")


def through_half(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as they come back from half precision. Raises JobError where a value is too large for it."""
    if overflowing := half_overflows(tensors):
        raise JobError(f"half precision can't hold {', '.join(overflowing[:3])}: train again with more weight decay")
    return {name: t.half().to(t.dtype) if t.is_floating_point() else t for name, t in tensors.items()}


def new_network(config: NetworkConfig) -> MultiExitNetwork:
    """An untrained network. A factory that the job names is allowed by that: its configuration is the operator's own."""
    return build_network(config, {config.factory} if config.factory else ())


def load_backbone(job: JobConfig, run: RunDirectory) -> MultiExitNetwork:
    """The trained backbone with its classifier, in evaluation mode; heads are not trained yet, routers absent."""
    run.result("backbone")
    network = new_network(job.network)
    tensors = load_file(run.root / "backbone" / "backbone.safetensors")
    trained = {name: tensor for name, tensor in tensors.items() if not name.startswith(_AFTER_BACKBONE)}
    network.load_state_dict(through_half(trained), strict=False)
    return network.eval().requires_grad_(False)


def load_joint_heads(job: JobConfig, run: RunDirectory) -> list[Head]:
    """The heads that were trained together with the backbone; none where it was trained alone, or with heads of another kind."""
    stored = run.result("backbone")["config"]
    if stored["backbone"].get("joint") is None or _head_fields(NetworkConfig(**stored["network"])) != _head_fields(job.network):
        return []
    heads = nn.ModuleList(Head(job.network, exit) for exit in range(1, job.network.exits + 1))
    tensors = load_file(run.root / "backbone" / "backbone.safetensors")
    prefix = "heads."
    heads.load_state_dict({name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)})
    return [head for head in heads if isinstance(head, Head)]


def _head_fields(config: NetworkConfig) -> dict[str, object]:
    return {name: value for name, value in config if name.startswith("head_")}


def load_with_heads(job: JobConfig, run: RunDirectory) -> MultiExitNetwork:
    """The backbone with its trained, calibrated heads."""
    run.result("heads")
    network = load_backbone(job, run)
    network.heads.load_state_dict(through_half(load_file(run.root / "heads" / "heads.safetensors")))
    return network


def load_whole(job: JobConfig, run: RunDirectory) -> MultiExitNetwork:
    """Backbone, heads and routers: what is evaluated and published."""
    result = run.result("routers")
    with_heads = load_with_heads(job, run)
    if job.network.router_kind == "forecast":
        trained = {"router_temperature": result["temperature"]}
    else:
        trained = {"router_lambdas": job.routers.lambdas}
    network = new_network(job.network.model_copy(update=trained))
    network.load_state_dict(with_heads.state_dict(), strict=False)
    network.routers.load_state_dict(through_half(load_file(run.root / "routers" / "routers.safetensors")))
    return network.eval().requires_grad_(False)


class Standardiser:
    """Channel-wise zero mean and unit deviation of a module's inputs, folded into the first linear layer once trained."""

    def __init__(self, features_NC: Tensor, map_columns: int = 0) -> None:
        """Where the first so many columns are a `conv` head's map, the cells of a channel share mean and deviation."""
        mean_C, deviation_C = features_NC.mean(0), features_NC.std(0)
        self.mean_C = by_channel(mean_C, map_columns)
        if map_columns:
            deviation_C = by_channel(deviation_C**2 + (mean_C - self.mean_C) ** 2, map_columns).sqrt()
        # a dead channel must not blow up its weights, which have to fit half precision
        self.deviation_C = deviation_C.clamp_min(0.01 * float(deviation_C.mean()) + 1e-6)

    def __call__(self, features_NC: Tensor) -> Tensor:
        """Standardised features of the same shape, (…, C)."""
        return (features_NC - self.mean_C) / self.deviation_C

    def fold_into(self, module: Head | RouterBank | ForecastRouter) -> None:
        """Change the module, trained on standardised features, so that it gives the same on the features as they are."""
        if isinstance(module, Head) and isinstance(module[0], ConvTrunk):
            module[0].fold(self.mean_C, self.deviation_C)
        else:
            fold(first_linear(module), self.mean_C, self.deviation_C)

    def unfold_from(self, module: Head) -> None:
        """The reverse: a module for features as they are then gives the same on standardised ones."""
        fold(first_linear(module), -self.mean_C / self.deviation_C, 1 / self.deviation_C)


def first_linear(module: Head | RouterBank | ForecastRouter) -> nn.Linear:
    """The layer that takes the module's inputs."""
    linear = module[0] if isinstance(module, Head) else module.hidden
    assert isinstance(linear, nn.Linear)
    return linear


@torch.no_grad()
def fold(linear: nn.Linear, mean_C: Tensor, deviation_C: Tensor) -> None:
    """Change a layer that takes (x − mean) / deviation so that it gives the same from x itself."""
    linear.weight.div_(deviation_C)
    linear.bias.sub_(linear.weight @ mean_C)
