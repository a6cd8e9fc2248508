"""The model card that goes into a bundle as README.md."""

from __future__ import annotations

from typing import Any

from offramp_model.config import NetworkConfig
from offramp_training.beside import beside_markdown, load_reference
from offramp_training.config import JobConfig
from offramp_training.recoding import recoded_markdown
from offramp_training.report import lambda_unit, paper_markdown, proof_markdown, table
from offramp_training.run_directory import RunDirectory
from offramp_training.sections import BackboneConfig, JointConfig, TeacherConfig
from offramp_training.utilities import Utility

_FORECAST: dict[Utility, str] = {
    "probability": "which exits will be right",
    "log_likelihood": "the log-likelihood that each exit will give to the label",
}
_STEPS = ("backbone", "cache", "heads", "routers", "evaluate")


def model_card(job: JobConfig, run: RunDirectory, metrics: dict[str, Any]) -> str:
    """What the model is, how it was made, what it can do and what it can't, in Markdown."""
    results = {step: run.result(step) for step in _STEPS}
    sections = [
        f"# {job.publish.name}, version {job.publish.version}",
        _what(job, results),
        job.data.note,
        job.publish.note,
        _figures(job, results, metrics),
        _graphs(metrics),
        _how(job, results),
        _limits(job),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _what(job: JobConfig, results: dict[str, Any]) -> str:
    network = job.network
    classes = ", ".join(results["backbone"]["classes"])
    routers = "one router for every λ" if network.router_kind == "forecast" else "a router for every λ of a grid"
    return f"""\
{_backbone(network)} for {network.input_size}×{network.input_size} RGB images
of {network.classes} classes: {classes}.
It has an exit after every stage, and at each of them but the last {routers}, which decides
frame by frame whether to leave there. The caller sets how dear compute is (λ) and how sure a router must be (τ)."""


def _backbone(network: NetworkConfig) -> str:
    widths, blocks = ", ".join(map(str, network.widths)), ", ".join(map(str, network.blocks))
    if network.factory is not None:
        return f"The stages that `{network.factory}` returns (widths {widths}), without whose code the bundle can't be loaded,"
    return f"A residual network (widths {widths}; {network.block} blocks {blocks}; {network.stem} stem)"


def _figures(job: JobConfig, results: dict[str, Any], metrics: dict[str, Any]) -> str:
    control, heads = metrics["default_control"], results["heads"]
    others = paper_markdown(job, metrics) + beside_markdown(metrics, load_reference(job))
    return f"""\
## What it does

{table(job, metrics["table"])}

Accuracy and cost are of the test split ({results["evaluate"]["test_images"]:,} images), on which nothing was chosen.
Cost is the mean share of the plain network's multiply-accumulates, heads and routers on the way counted; nominal cost is
the paper's k/K.

{metrics["routing_verdict"]}

Default: policy `{control["policy"]}`, λ = {control["lambda_"]:g}, τ = {control["threshold"]:g}. Rule: {metrics["rule"]}.
The manifest's accuracies and operating points are of the select part: {heads["select_images"]:,} held-out images that
neither heads nor routers saw. Weights are stored in half precision, and every figure here is of the network with exactly
those weights.

{recoded_markdown(metrics)}{proof_markdown(metrics).replace("## ", "### ")}

{others.replace("## ", "### ")}![accuracy over cost](plots/pareto.png)

![exit distribution over λ](plots/exits_over_lambda.png)

![all baselines](plots/baselines.png)"""


def _graphs(metrics: dict[str, Any]) -> str:
    """What the OpenVINO graphs give; empty where the bundle carries none."""
    graphs = metrics.get("graphs")
    if graphs is None:
        return ""
    measured = graphs["unseen"]
    rows = "\n".join(
        f"| {e['exit']} | {e['float32']:.4f} | {e['int8']:.4f} | {100 * (e['int8'] - e['float32']):+.2f} |"
        for e in measured["exits"]
    )
    kept = ", ".join(map(str, graphs["float_stages"]))
    kept = f" Left in float, because they would lose too much: stages {kept}." if kept else ""
    return f"""\
## OpenVINO graphs

{graphs["megabytes"]:g} MB in `openvino/`, int8 and float ({graphs["made_by"]}); ranges of the int8 activations were set on
{graphs["calibration_images"]:,} images of the fit part.{kept} Accuracy of each exit on the other {measured["images"]:,}
held-out images:

| exit | float32 | int8 | difference in points |
| --- | --- | --- | --- |
{rows}

Under the default control {measured["same_exit"]:.2%} of them leave at the same exit in int8 as in float32."""


def _backbone_training(config: BackboneConfig, result: dict[str, Any]) -> str:
    if not config.phases:
        return "weights trained before, taken as they are."
    phases = ", ".join(f"{phase.epochs} at {phase.size} pixels" for phase in config.phases)
    cut_out = f", cut-out of {config.cut_out} pixels" if config.cut_out else ""
    earlier = ", going on from weights trained before" if config.start_from else ""
    seen = [epoch["images"] for epoch in result["history"]]
    pruned = sum(images < max(seen) for images in seen)
    pruning = (
        f" In {pruned} of the epochs images whose last loss lay under the mean sat out with probability {config.pruning:g}."
        if pruned
        else ""
    )
    joint = f" {_joint(config.joint)}" if config.joint else ""
    teacher = f" {_teacher(config.teacher)}" if config.teacher else ""
    numbers = "bfloat16" if result["precision"] == "bf16-mixed" else "float32"
    return f"""\
SGD with Nesterov momentum {config.momentum:g}, one-cycle rate up to {config.peak_rate:g}, batches of
  {config.batch_size}, weight decay {config.weight_decay:g}, label smoothing {config.label_smoothing:g}, random crop
  and flip{cut_out}; epochs: {phases}{earlier}; {numbers}.{pruning}{teacher}{joint}"""


def _how(job: JobConfig, results: dict[str, Any]) -> str:
    config, backbone, heads = job.backbone, results["backbone"], results["heads"]
    calibration = "\n".join(
        f"| {e['exit']} | {e['weight_decay']:g} | {e['dropout']:g} | {e['epoch']} | {e['temperature']:.2f} "
        f"| {e['select_before']['ece']:.3f} | {e['select_after']['ece']:.3f} | {e['select_after']['accuracy']:.4f} |"
        for e in heads["exits"]
    )
    durations = "\n".join(
        f"| {step} | {result['duration_seconds']:,.0f} s | {result['machine']} |" for step, result in results.items()
    )
    return f"""\
## How it was made

Seed {job.seed}. {job.data.held_out_fraction:.0%} of the training images were held out, stratified by class.

- Backbone: {_backbone_training(config, backbone)} Frozen from then on.
  Held-out accuracy of the full network: {backbone["held_out_accuracy"]:.4f}; rounded to half precision, on the select part:
  {heads["full_select"]["accuracy"]:.4f}.
- {_heads(job, heads)}
- {_routers(job, results["routers"])}

| exit | weight decay | dropout | epoch | temperature | ece on select, before | after | accuracy on select |
| --- | --- | --- | --- | --- | --- | --- | --- |
{calibration}

| step | duration | machine |
| --- | --- | --- |
{durations}"""


def _teacher(config: TeacherConfig) -> str:
    return (
        f"Besides the labels it learned, with a share of {config.share:g} and at temperature {config.temperature:g}, "
        "from the softmax of a network trained before."
    )


def _joint(config: JointConfig) -> str:
    lambdas = ", ".join(f"{value:g}" for value in config.lambdas)
    return f"""\
Its heads were
  trained with it (responsibilities at λ = {lambdas} nats, at least {config.floor:g} of an even share; distillation
  {config.distillation:g} at temperature {config.distillation_temperature:g}; gradients in balance)."""


def _heads(job: JobConfig, heads: dict[str, Any]) -> str:
    network = job.network
    seen = {
        "gap_mlp": "average",
        "pooled_stats": ", ".join(network.head_pooling),
        "conv": "convolutions over an 8×8 map of averages",
    }[network.head_kind]
    cascade = ", and the earlier exits' log-probabilities" if network.head_cascade else ""
    joint = "\n  Epoch 0 stands for the head as it was trained with the backbone." if job.backbone.joint else ""
    loss = "cross-entropy"
    if job.heads.distillation:
        loss += f" and, at weight {job.heads.distillation:g}, distillation from the plain full network"
    return f"""\
Heads: two layers, {network.head_hidden} hidden units, on statistics of the exit's feature map over the training images ({seen};
  of the last exit the average alone){cascade}; {loss}. Weight decay, dropout and epoch were picked on
  {heads["fit_images"]:,} held-out images, the fit part, on which each exit's temperature was set too.{joint}"""


def _routers(job: JobConfig, routers: dict[str, Any]) -> str:
    if job.network.router_kind == "forecast":
        return f"""\
Routers: forecasts of {_FORECAST[job.forecast.utility]}, fitted on the fit part in
  {job.cache.held_out_views} views; at most {max(routers["parameters"]):,} parameters an exit; temperature
  τ_s = {routers["temperature"]:g}, by cross-validation. λ is in {lambda_unit(job)} per full network's compute."""
    hidden = ""
    if job.routers.hidden_layers == "training":
        hidden = "\n  Their hidden layers were learned before that in the same way on training images, and then frozen."
    grid = ", ".join(f"{value:g}" for value in job.routers.lambdas)
    return f"""\
Routers: expectation–maximisation on the fit part, {routers["iterations"]} iterations, {job.routers.prior} prior,
  {job.routers.m_step} M-step, λ = {grid} nats per full network's compute.{hidden}"""


def _limits(job: JobConfig) -> str:
    return f"""\
## Intended use and limits

For trying, measuring and teaching adaptive compute. It knows its {job.network.classes} classes only, and gives one of them
for any picture whatever. Probabilities are calibrated on images like those it was trained on; elsewhere (other cameras,
smoke, blur) they are not, exits then come too early or too late, and a default that loses little here may lose more. Exit
and latency tell an observer something about the frame. Not for any decision about health or safety."""
