"""The offline job's configuration: one frozen object, read from a YAML file or a preset."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import NonNegativeInt, ValidationError, field_validator, model_validator

from offramp_model.config import NetworkConfig
from offramp_model.factories import measure_stages
from offramp_training.presets import PRESETS
from offramp_training.sections import (
    BackboneConfig,
    CacheConfig,
    DataConfig,
    EvaluateConfig,
    ExportConfig,
    ForecastConfig,
    HeadsConfig,
    ProofConfig,
    PublishConfig,
    RoutersConfig,
    Section,
)


class JobError(Exception):
    """Something that whoever runs the job must put right; its message is one line."""


class ConfigError(JobError):
    """A configuration that can't be used: names the field."""


class JobConfig(Section):
    """The whole offline job."""

    seed: int = 0
    replica: NonNegativeInt = 0
    """Heads and routers of another replica are trained from other seeds; data and backbone stay the same."""
    data: DataConfig
    network: NetworkConfig = NetworkConfig()
    backbone: BackboneConfig
    cache: CacheConfig = CacheConfig()
    heads: HeadsConfig = HeadsConfig()
    routers: RoutersConfig
    forecast: ForecastConfig = ForecastConfig()
    proof: ProofConfig = ProofConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    export: ExportConfig = ExportConfig()
    publish: PublishConfig

    @property
    def fit_seed(self) -> int:
        """The seed of this replica's heads and routers."""
        return self.seed + 1_000_003 * self.replica

    @field_validator("network")
    @classmethod
    def _measured(cls, network: NetworkConfig) -> NetworkConfig:
        """With what a dry run of the factory's stages finds; whoever writes the configuration allows the factory."""
        if network.factory is None or network.stage_macs:
            return network
        return measure_stages(network, {network.factory})

    @model_validator(mode="after")
    def _trainable(self) -> JobConfig:
        if self.network.router_lambdas:
            raise ValueError("network.router_lambdas is filled in by training: give routers.lambdas instead")
        if self.network.router_temperature is not None:
            raise ValueError("network.router_temperature is filled in by training: give forecast.temperatures instead")
        if self.network.head_kind == "conv" and not self.cache.feature_maps:
            raise ValueError("network.head_kind `conv` is trained on feature maps: set cache.feature_maps")
        if self.network.head_kind == "conv" and self.backbone.joint is not None:
            raise ValueError("backbone.joint trains heads of pooled statistics: choose another network.head_kind than `conv`")
        if self.network.exits < 2:
            raise ValueError("network.widths names one stage: routing needs at least two exits")
        return self


def load_config(source: str, overrides: Iterable[str] = ()) -> JobConfig:
    """Read a preset by name or a YAML file by path; each override is `section.field=value`, the value in YAML.

    Raises ConfigError naming the field, or the file that isn't there.
    """
    if source in PRESETS:
        text = (resources.files(__package__) / "presets" / f"{source}.yaml").read_text()
    elif Path(source).is_file():
        text = Path(source).read_text()
    else:
        raise ConfigError(f"no configuration at {source!r}: give a YAML file or one of the presets {', '.join(PRESETS)}")
    try:
        content = yaml.safe_load(text)
        if not isinstance(content, dict):
            raise ConfigError(f"{source}: holds no settings")
        for override in overrides:
            _apply(content, override)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not YAML: {' '.join(str(error).split())}") from error
    return validate(content, source)


def validate(content: dict[str, Any], source: str) -> JobConfig:
    """Check settings. Raises ConfigError naming the first field that is wrong."""
    try:
        return JobConfig.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "configuration"
        raise ConfigError(f"{source}: {field}: {first['msg'].removeprefix('Value error, ')}") from error


def _apply(content: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    *sections, field = key.split(".")
    if not equals or not all([*sections, field]):
        raise ConfigError(f"--set {override!r}: expected section.field=value")
    for section in sections:
        content = content.setdefault(section, {})
        if not isinstance(content, dict):
            raise ConfigError(f"--set {override!r}: {section} is not a section")
    content[field] = yaml.safe_load(value)
