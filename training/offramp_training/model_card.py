"""The model card that goes into a bundle as README.md."""

from __future__ import annotations

from typing import Any

from offramp_training.config import JobConfig
from offramp_training.report import paper_markdown, proof_markdown, table
from offramp_training.run_directory import RunDirectory

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
        _how(job, results),
        _limits(job),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _what(job: JobConfig, results: dict[str, Any]) -> str:
    network = job.network
    classes = ", ".join(results["backbone"]["classes"])
    widths, blocks = ", ".join(map(str, network.widths)), ", ".join(map(str, network.blocks))
    routers = "one router for every λ" if network.router_kind == "forecast" else "a router for every λ of a grid"
    return f"""\
A residual network (widths {widths}; blocks {blocks}) for {network.input_size}×{network.input_size} RGB images
of {network.classes} classes: {classes}.
It has an exit after every residual group, and at each of them but the last {routers}, which decides
frame by frame whether to leave there. The caller sets how dear compute is (λ) and how sure a router must be (τ)."""


def _figures(job: JobConfig, results: dict[str, Any], metrics: dict[str, Any]) -> str:
    control, heads = metrics["default_control"], results["heads"]
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

{proof_markdown(metrics).replace("## ", "### ")}

{paper_markdown(job, metrics).replace("## ", "### ")}![accuracy over cost](plots/pareto.png)

![exit distribution over λ](plots/exits_over_lambda.png)

![all baselines](plots/baselines.png)"""


def _how(job: JobConfig, results: dict[str, Any]) -> str:
    config, backbone, heads = job.backbone, results["backbone"], results["heads"]
    phases = ", ".join(f"{phase.epochs} at {phase.size} pixels" for phase in config.phases)
    cut_out = f", cut-out of {config.cut_out} pixels" if config.cut_out else ""
    earlier = ", going on from weights trained before" if config.start_from else ""
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

- Backbone: SGD with Nesterov momentum {config.momentum:g}, one-cycle rate up to {config.peak_rate:g}, batches of
  {config.batch_size}, weight decay {config.weight_decay:g}, label smoothing {config.label_smoothing:g}, random crop
  and flip{cut_out}; epochs: {phases}{earlier}. Frozen from then on.
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


def _heads(job: JobConfig, heads: dict[str, Any]) -> str:
    network = job.network
    seen = "average" if network.head_kind == "gap_mlp" else ", ".join(network.head_pooling)
    cascade = ", and the earlier exits' log-probabilities" if network.head_cascade else ""
    loss = "cross-entropy"
    if job.heads.distillation:
        loss += f" and, at weight {job.heads.distillation:g}, distillation from the plain full network"
    return f"""\
Heads: two layers, {network.head_hidden} hidden units, on statistics of the exit's feature map over the training images ({seen};
  of the last exit the average alone){cascade}; {loss}. Weight decay, dropout and epoch were picked on
  {heads["fit_images"]:,} held-out images, the fit part, on which each exit's temperature was set too."""


def _routers(job: JobConfig, routers: dict[str, Any]) -> str:
    if job.network.router_kind == "forecast":
        return f"""\
Routers: forecasts of which exits will be right, fitted on the fit part in {job.cache.held_out_views} views; at most
  {max(routers["parameters"]):,} parameters an exit; temperature τ_s = {routers["temperature"]:g}, by cross-validation."""
    hidden = ""
    if job.routers.hidden_layers == "training":
        hidden = "\n  Their hidden layers were learned before that in the same way on training images, and then frozen."
    grid = ", ".join(f"{value:g}" for value in job.routers.lambdas)
    return f"""\
Routers: expectation–maximisation on the fit part, {routers["iterations"]} iterations, {job.routers.prior} prior,
  {job.routers.m_step} M-step, λ = {grid}.{hidden}"""


def _limits(job: JobConfig) -> str:
    return f"""\
## Intended use and limits

For trying, measuring and teaching adaptive compute. It knows its {job.network.classes} classes only, and gives one of them
for any picture whatever. Probabilities are calibrated on images like those it was trained on; elsewhere (other cameras,
smoke, blur) they are not, exits then come too early or too late, and a default that loses little here may lose more. Exit
and latency tell an observer something about the frame. Not for any decision about health or safety."""
