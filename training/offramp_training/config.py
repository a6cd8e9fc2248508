"""The offline job's configuration: one frozen object, read from a YAML file or a preset."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated, Literal

import yaml
from offramp_model.network import NetworkConfig
from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

PRESETS = ("cifar10", "smoke")


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataConfig(_Section):
    """Where the labelled images come from; exactly one of the three sources, chosen by `kind`."""

    kind: Literal["folder", "hub", "synthetic"] = "folder"
    root: Path | None = None
    """`folder`: a tree train/<class>/*, test/<class>/*; the environment variable OFFRAMP_DATA overrides it."""
    hub_name: str | None = None
    """`hub`: a data set on the Hugging Face hub, such as `uoft-cs/cifar10`."""
    hub_image: str = "img"
    hub_label: str = "label"
    synthetic_train: PositiveInt = 600
    synthetic_test: PositiveInt = 200
    held_out_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the training images held out, stratified by class, for calibration, routers and every choice."""
    note: str = ""
    """One sentence about the data that every report and model card repeats."""


class SizePhase(_Section):
    """Some epochs at one image size (progressive resizing)."""

    size: PositiveInt
    epochs: PositiveInt


class BackboneConfig(_Section):
    """One-cycle SGD with Nesterov momentum."""

    phases: tuple[SizePhase, ...] = Field(min_length=1)
    batch_size: PositiveInt = 256
    peak_rate: PositiveFloat = 0.2
    warmup_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    momentum: NonNegativeFloat = 0.9
    weight_decay: NonNegativeFloat = 5e-4
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    crop_padding: Annotated[int, Field(ge=0)] = 4
    """Pixels at full size by which a random crop may move."""
    flip: bool = True
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    """bf16 helps where the processor has it (AMX, AVX512-BF16, CUDA); elsewhere it is far slower than float32."""
    devices: PositiveInt = 1
    accelerator: str = "auto"


class CacheConfig(_Section):
    views: PositiveInt = 4
    """Views of each training and held-out image: the plain one, its mirror, then random crops."""
    batch_size: PositiveInt = 250


class HeadsConfig(_Section):
    epochs: PositiveInt = 30
    batch_size: PositiveInt = 512
    peak_rate: PositiveFloat = 3e-3
    weight_decay: NonNegativeFloat = 1e-2


class RoutersConfig(_Section):
    """EM (paper, sections 4.3 and 4.4) for every λ of the grid at once."""

    lambdas: tuple[Annotated[float, Field(ge=0)], ...] = Field(min_length=2)
    m_step: Literal["exact", "unweighted"] = "exact"
    """`exact` weighs each sample's BCE at router k by its survival mass; `unweighted` is the paper's wording."""
    iterations: PositiveInt = 20
    """At most this many E- and M-steps."""
    tolerance: PositiveFloat = 1e-4
    """Stop when no λ's objective rises by more than this many nats a sample."""
    m_epochs: PositiveInt = 40
    """Gradient steps on the full table in one M-step."""
    rate: PositiveFloat = 3e-3
    weight_decay: NonNegativeFloat = 1e-3
    select_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.4
    """Share of the held-out frames kept from the routers, on which operating points are chosen."""


class PublishConfig(_Section):
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    version: PositiveInt = 1
    store: Path = Path("model_store/bundles")


class JobConfig(_Section):
    """The whole offline job."""

    seed: int = 0
    data: DataConfig
    network: NetworkConfig = NetworkConfig()
    backbone: BackboneConfig
    cache: CacheConfig = CacheConfig()
    heads: HeadsConfig = HeadsConfig()
    routers: RoutersConfig
    publish: PublishConfig

    @model_validator(mode="after")
    def _routers_come_later(self) -> JobConfig:
        if self.network.router_lambdas:
            raise ValueError("network.router_lambdas is filled in by training: give routers.lambdas instead")
        return self


def load_config(source: str) -> JobConfig:
    """Read a preset by name or a YAML file by path.

    Raises FileNotFoundError for an unknown source and pydantic.ValidationError, which names the field, for a bad value.
    """
    if source in PRESETS:
        text = (resources.files(__package__) / "presets" / f"{source}.yaml").read_text()
    elif Path(source).is_file():
        text = Path(source).read_text()
    else:
        raise FileNotFoundError(f"no configuration at {source!r}: give a YAML file or one of the presets {', '.join(PRESETS)}")
    return JobConfig.model_validate(yaml.safe_load(text))
