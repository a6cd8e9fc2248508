"""The sections of the offline job's configuration: frozen objects, each with the settings of one or two steps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from offramp_training.utilities import Utility

Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""λ."""
Precision = Literal["32-true", "bf16-mixed"]
"""bf16 helps where the processor has it (AMX, AVX512-BF16, CUDA); elsewhere it is far slower than float32."""


class Section(BaseModel):
    """Nothing in it can be changed, and nothing unknown stands in it."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DataConfig(Section):
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
    select_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.4
    """Share of the held-out images, stratified, that neither heads nor routers see: operating points are chosen on it."""
    note: str = ""
    """One sentence about the data that every report and model card repeats."""


class SizePhase(Section):
    """Some epochs at one image size (progressive resizing)."""

    size: PositiveInt
    epochs: PositiveInt


class JointConfig(Section):
    """How the exits are trained together with the backbone (docs/joint.md)."""

    lambdas: tuple[Price, ...] = Field(default=(0, 0.5, 1, 2), min_length=1)
    """λ of the E-step, in nats per full network's compute; the responsibilities are means over them."""
    floor: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Least weight of any exit on any image; their mean over the exits is 1."""
    distillation: Annotated[float, Field(ge=0, le=1)] = 0.3
    """Weight of the plain full network's softmax as the target of every exit; the label has the rest."""
    distillation_temperature: PositiveFloat = 3.0


class TeacherConfig(Section):
    """A trained network that the plain one learns from (teacher.py)."""

    weights: Path
    """Of a network of the same shape, trained on the same data: another run's backbone.safetensors, or a bundle's
    weights.safetensors. Keep its seed too, as with `start_from`."""
    share: Annotated[float, Field(ge=0, le=1)] = 0.8
    """Weight of its softmax as the target; the label has the rest."""
    temperature: PositiveFloat = 3.0
    """Softens both sides of the distillation (Hinton et al. 2015)."""


class BackboneConfig(Section):
    """One-cycle SGD with Nesterov momentum."""

    phases: tuple[SizePhase, ...]
    """None, `[]`, takes the weights of `start_from` as they are."""
    joint: JointConfig | None = None
    """Trains heads together with the backbone; where not given, the backbone is trained alone and the exits wait."""
    teacher: TeacherConfig | None = None
    """Whom the backbone learns from besides the labels; not with `joint`, where the full network teaches the exits."""
    start_from: Path | None = None
    """Weights to go on from: another run's backbone.safetensors, or a bundle's weights.safetensors. On the same data keep the
    seed too, or images that are held out now were trained on before."""
    batch_size: PositiveInt = 256
    peak_rate: PositiveFloat = 0.2
    warmup_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    momentum: NonNegativeFloat = 0.9
    weight_decay: NonNegativeFloat = 5e-4
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    crop_padding: Annotated[int, Field(ge=0)] = 4
    """Pixels at full size by which a random crop may move."""
    flip: bool = True
    cut_out: NonNegativeInt = 0
    """Side of the square that is blanked in every training image, in pixels at full size; 0 for none."""
    pruning: Annotated[float, Field(ge=0, lt=1)] = 0
    """Probability with which an image whose last loss lies under the mean sits out an epoch (pruning.py); 0 for never."""
    precision: Literal["auto"] | Precision = "32-true"
    """`auto` takes bf16 where the processor has it."""
    convolution: Literal["auto", "torch", "winograd"] = "auto"
    """`auto` takes Winograd's where torch's would run in float32 on a CPU and g++ is there; see winograd.py."""
    compile: bool = False
    """Whether torch.compile makes kernels of its own for it: for a GPU, which waits for the launches of many small ones."""
    devices: PositiveInt = 1
    accelerator: str = "auto"

    @model_validator(mode="after")
    def _has_weights(self) -> BackboneConfig:
        if not self.phases and self.start_from is None:
            raise ValueError("phases is empty: name at least one, or the weights to take as they are in start_from")
        if not self.phases and self.joint is not None:
            raise ValueError("phases is empty: joint training needs at least one")
        if self.joint is not None and self.teacher is not None:
            raise ValueError("teacher: give it where the backbone is trained alone, without joint")
        return self


class CacheConfig(Section):
    """Views of an image are the plain one, its mirror, then random crops, as many as asked for."""

    train_views: PositiveInt = 1
    held_out_views: PositiveInt = 4
    """Routers learn from the held-out images alone, which are few: more views make up for some of that."""
    feature_maps: bool = False
    """Whether 8×8 maps of averages of each exit but the last are kept too, which `conv` heads are trained on: 57 kB more an
    image and view for ResNet-18, six times as much as without."""
    batch_size: PositiveInt = 250
    stored_as: Literal["float16", "float32"] = "float16"
    precision: Precision = "32-true"
    """Of the forward pass; the server's features are float32."""


class HeadsConfig(Section):
    """AdamW with a one-cycle rate; each exit's weight decay, dropout and epoch are picked by held-out likelihood."""

    epochs: PositiveInt = 30
    batch_size: PositiveInt = 512
    peak_rate: PositiveFloat = 3e-3
    weight_decays: tuple[NonNegativeFloat, ...] = Field(default=(1e-2, 0.3), min_length=1)
    """Candidates; every one is tried with every candidate of dropout."""
    dropouts: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = Field(default=(0.0,), min_length=1)
    """Candidates for the share of a head's inputs, and of its hidden units, that each training step leaves out."""
    views: PositiveInt | None = None
    """How many of the cached views of a training image to learn from; all of them where not given."""
    distillation: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Weight of the plain full network's softmax as the target; the label has the rest."""
    distillation_temperature: PositiveFloat = 3.0
    """Softens both sides of the distillation (Hinton et al. 2015)."""


class ForecastConfig(Section):
    """How the routers of `network.router_kind: forecast` are fitted."""

    utility: Utility = "probability"
    """What they forecast of each exit, on a scale from 0 to 1: `probability`, that it is right, or `log_likelihood`, what it
    gives to the label, at least 0.05. λ is in these units per full network's compute: accuracy, or 3.0 nats."""
    steps: PositiveInt = 600
    batch_size: PositiveInt = 2048
    rate: PositiveFloat = 1e-2
    weight_decays: tuple[NonNegativeFloat, ...] = Field(default=(0.01, 0.1, 1.0), min_length=1)
    """Candidates, of which each exit takes the one with the least cross-validated loss on the fit part."""
    folds: Annotated[int, Field(ge=2)] = 5
    temperatures: tuple[PositiveFloat, ...] = Field(default=(0.003, 0.01, 0.03), min_length=1)
    """Candidates for τ_s, of which the one with the best accuracy over cost, likewise cross-validated, is taken. Beyond these a
    frame goes on for less than λ says: the accuracy at a cost may stay the same, but λ loses its meaning."""


class RoutersConfig(Section):
    """λ to report, and the EM (paper, sections 4.3 and 4.4) of `network.router_kind: bank`, for every λ at once."""

    lambdas: tuple[Price, ...] = Field(min_length=2)
    """The bank's grid, in nats per full network's compute; for `forecast`, in accuracy per full network's compute, the λ that
    tables and plots show."""
    prior: Literal["learned", "uniform"] = "learned"
    """The E-step's p(z|x): `learned` takes the routers of the iteration before, as the paper does; `uniform` keeps 1/K."""
    m_step: Literal["exact", "unweighted"] = "exact"
    """`exact` weighs each sample's BCE at router k by its survival mass; `unweighted` is the paper's wording."""
    hidden_layers: Literal["training", "held_out"] = "training"
    """Where the routers' hidden layers are learned: on the many training images, after which EM on the held-out ones sets the
    output layers alone, or together with the output layers on the few held-out images, which overfits."""
    training_images: PositiveInt = 20_000
    """At most this many training images for the hidden layers."""
    training_iterations: PositiveInt = 5
    iterations: PositiveInt = 20
    """At most this many E- and M-steps."""
    tolerance: PositiveFloat = 1e-4
    """Stop when no λ's objective rises by more than this many nats a sample."""
    m_epochs: PositiveInt = 40
    """Gradient steps on the full table in one M-step."""
    rate: PositiveFloat = 1e-2
    weight_decay: NonNegativeFloat = 1e-3

    @model_validator(mode="after")
    def _ascending(self) -> RoutersConfig:
        if any(a >= b for a, b in zip(self.lambdas, self.lambdas[1:], strict=False)):
            raise ValueError("lambdas must be strictly ascending")
        return self


class EvaluateConfig(Section):
    """How operating points are chosen on the select part."""

    tolerated_loss: Annotated[float, Field(gt=-1, lt=1)] = 0.01
    """Accuracy that a default may lose against the full network on select: 0.01 is one percentage point. Below 0 it must gain as
    much, so that a default which has a little to spare on select keeps the full network's accuracy elsewhere too."""
    confidence: Annotated[float, Field(ge=0.5, lt=1)] = 0.5
    """How sure it is, on one side, that a default keeps to that on other frames than those of select, of which there are few; 0.5
    takes the accuracies on select as they are."""
    router_threshold: Annotated[float, Field(gt=0, le=1)] = 0.5
    sweep_points: Annotated[int, Field(ge=3)] = 41
    """Thresholds of each sweep over entropy, confidence and τ."""
    recode_quality: Annotated[int, Field(ge=1, le=95)] | None = None
    """Quality of one more JPEG coding of the test images, of which accuracies are reported too; not measured where not given."""


class ProofConfig(Section):
    """What the published system is compared with, and how often it is trained."""

    replicas: PositiveInt = 1
    """Seeds of heads and routers; the first is published, whatever the others give."""
    beside: tuple[Literal["bank", "paper"], ...] = ()
    """`bank`: the paper's routers on the published heads; `paper`: the paper's heads and routers."""
    bank_lambdas: tuple[Price, ...] = (0, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2, 3, 20)
    """The grid of these banks, in nats per full network's compute."""
    bank_router_hidden: PositiveInt = 16
    """Hidden units of these banks' routers, whatever `network.router_hidden` is."""
    paper_head_hidden: PositiveInt = 128
    """Hidden units of the paper's heads, whatever `network.head_hidden` is."""
    reference: Path | None = None
    """Another run's directory, or a bundle, whose figures the report sets beside this run's."""
    costs: tuple[PositiveFloat, ...] = (0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.645, 0.75, 0.9)
    """Mean costs at which everything is compared; those that a system can't have stay empty."""
    rule_steps: NonNegativeInt = 400
    """Gradient steps of each rule that is fitted for the comparison, twice as many where one network learns every λ end to
    end; 0 leaves out all that has to be fitted for the comparison alone."""


class ExportConfig(Section):
    """OpenVINO graphs for the server on x86 (docs/backends.md)."""

    graphs: bool = True
    """Whether the bundle carries them."""
    calibration_images: PositiveInt = 300
    """At most this many held-out images, and half of the fit part, set the ranges of the int8 activations."""
    max_accuracy_loss: Annotated[float, Field(ge=0, lt=1)] = 0.003
    """What any exit may lose in int8: 0.003 is 0.3 percentage points."""
    min_same_exit: Annotated[float, Field(ge=0, le=1)] = 0.98
    """Least share of the images that leave at the same exit in int8 as in float32, under the default control."""
    max_megabytes: PositiveFloat = 16.0
    """Graphs larger than this many 10⁶ bytes are refused."""


class PublishConfig(Section):
    """Where the bundle goes: <store>/<name>/<version>/."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    version: PositiveInt = 1
    store: Path = Path("model_store/bundles")
    note: str = ""
    """A paragraph for the model card: what a reader must know that the configuration can't tell."""
    max_megabytes: PositiveFloat = 25.0
    """Weights larger than this many 10⁶ bytes are refused."""
