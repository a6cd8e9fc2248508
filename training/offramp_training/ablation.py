"""What each setting of the heads is worth: variants trained on one run's cache, measured on the select part alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

from offramp_model.config import NetworkConfig
from offramp_model.costs import cost_table
from offramp_model.costs import head_macs as macs_of_head
from offramp_training.assembly import load_backbone
from offramp_training.cache import Features, open_features
from offramp_training.calibration import quality
from offramp_training.comparison.at_cost import sweep
from offramp_training.comparison.rules import ConfidenceThreshold
from offramp_training.comparison.table import ExitTable
from offramp_training.config import ConfigError, JobConfig, validate
from offramp_training.heads import STEP as HEADS
from offramp_training.heads import fit_and_select, train_exits, training_views
from offramp_training.policies import area_under, on_hull, upper_hull
from offramp_training.run_directory import RunDirectory, read_json, say, write_json
from offramp_training.steps import check_config

STEP = "ablation"
NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")

Variants = Mapping[str, Mapping[str, Any]]
"""By name, what differs from the job's configuration: dotted fields and their values."""


def load_variants(source: Path | None = None) -> dict[str, dict[str, Any]]:
    """Read variants from a YAML file, or the list beside the presets. Raises ConfigError."""
    beside = resources.files(__package__) / "presets" / "ablation.yaml"
    if source is not None and not source.is_file():
        raise ConfigError(f"no variants at {str(source)!r}: give a YAML file of names, each with its settings")
    try:
        content = yaml.safe_load(beside.read_text() if source is None else source.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict) or not content or not all(isinstance(value, dict) for value in content.values()):
        raise ConfigError(f"{source}: expected names, each with its settings")
    return {str(name): settings for name, settings in content.items()}


def ablate(job: JobConfig, run: RunDirectory, variants: Variants, out: Path) -> None:
    """Train and measure each variant into <out>/<variant>.json, and write <out>/ablation.md.

    Of the run only backbone and cache are read. A finished variant is skipped, a cut-off one resumed: its heads lie in
    <out>/<variant>/. Convolutional heads are left out where the cache holds no feature maps. Raises JobError before anything
    is trained where a variant can't be, or has results of other settings.
    """
    for step in ("backbone", "cache"):
        check_config(job, run, step)
        run.result(step)
    train, held_out = (open_features(run.root / "cache", part, job.network.exits) for part in ("train", "held_out"))
    jobs = {}
    for name, settings in variants.items():
        if settings.get("network.head_kind") == "conv" and not job.cache.feature_maps:
            say(STEP, f"{name}: left out, since the cache of {run.root} holds no feature maps (cache.feature_maps)")
        else:
            jobs[name] = variant_job(job, name, settings)
    for name, variant in jobs.items():
        training_views(variant, train)
        check_config(variant, RunDirectory(out / name), HEADS)
    for name, variant in jobs.items():
        path, heads = out / f"{name}.json", RunDirectory(out / name)
        if path.exists() and heads.stored_config(HEADS):
            say(STEP, f"{name}: already done in {path}")
            continue
        say(STEP, f"{name}: training")
        heads.start(HEADS, variant)
        result = measure(variant, run, train, held_out, heads.folder(HEADS))
        write_json(path, {"variant": name, "settings": dict(variants[name]), **result})
        say(STEP, f"{name}: area {result['area']:.4f}")
    (out / "ablation.md").write_text(write_table([read_json(out / f"{name}.json") for name in jobs]))
    say(STEP, f"table in {out / 'ablation.md'}")


def variant_job(job: JobConfig, name: str, settings: Mapping[str, Any]) -> JobConfig:
    """The job with a variant's settings. Raises ConfigError naming the variant and the field."""
    if not NAME.fullmatch(name):
        raise ConfigError(f"variant {name!r}: a name is lower-case letters, digits, dots, hyphens and underscores")
    content = job.model_dump(mode="json")
    for key, value in settings.items():
        section, _, field = key.partition(".")
        if section != "heads" and not key.startswith("network.head_"):
            raise ConfigError(f"variant {name!r}: {key} is not about heads: give network.head_… or heads.…")
        content[section][field] = value
    return validate(content, f"variant {name!r}")


def area(points: Sequence[tuple[float, float]], cheapest: float, classes: int) -> float:
    """Mean over costs from `cheapest` to 1 of the accuracy that (cost, accuracy) points and mixtures of them reach at most.

    Guessing at cost 0 is one of the points: so every variant is measured over the same costs, and one whose first exit comes
    dearer pays for it.
    """
    hull = upper_hull([(0.0, 1 / classes), *points])
    inside = [point for point in hull if cheapest < point[0] < 1]
    return area_under([(cheapest, on_hull(hull, cheapest)), *inside, (1.0, on_hull(hull, 1.0))], cheapest, 1.0)


def measure(job: JobConfig, run: RunDirectory, train: Features, held_out: Features, folder: Path) -> dict[str, Any]:
    """Train a variant's heads in the folder, and what the network with them gives on the select part."""
    network = load_backbone(job, run)
    exits = train_exits(job, train, held_out, network.classifier, folder)
    network.heads.load_state_dict(load_file(folder / "heads.safetensors"))
    _, select_N = fit_and_select(job, held_out)
    statistics, labels_N = held_out.plain(select_N), held_out.labels_N[select_N]
    costs, macs = cost_table(job.network), head_macs(job.network)
    logits_NKC, _ = network.exits(statistics)
    table = ExitTable(logits_NKC, labels_N, torch.tensor(costs.ratios, dtype=torch.double))
    rule = ConfidenceThreshold()
    outcomes = [point.outcome for point in sweep(rule, table, rule.knobs(table))]
    curve = [(outcome.mean_cost, outcome.accuracy) for outcome in outcomes]
    cheapest = (costs.exit_macs[0] - macs[0]) / costs.full_macs
    return {
        "seed": job.seed,
        "select_images": len(select_N),
        "full_accuracy": quality(network.classifier(statistics[-1]), labels_N).rounded()["accuracy"],
        "area": round(area(curve, cheapest, job.network.classes), 5),
        "cheapest": cheapest,
        "cost_ratios": costs.ratios,
        "head_macs": macs,
        "head_share": sum(macs) / costs.full_macs,
        "exits": exits,
        "curve": [[round(cost, 5), round(accuracy, 5)] for cost, accuracy in curve],
    }


def head_macs(config: NetworkConfig) -> list[int]:
    """Multiply-accumulates of each exit's head."""
    return [macs_of_head(config, exit) for exit in range(1, config.exits + 1)]


def write_table(results: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table, one line a variant, in their order."""
    first = results[0]
    lines = [
        "# Heads compared",
        "",
        f"Measured on {first['select_images']:,} held-out images that set nothing of any head; the plain full network gets "
        f"{first['full_accuracy']:.4f} of them right. *Area*: mean over costs from {first['cheapest']:.4f} (the backbone up to "
        "exit 1, without a head) to 1 of the accuracy that the max-softmax policy reaches, mixtures of its settings and guessing "
        "at cost 0 included. *MACs* are those of all heads together and their share of the full network's. The rest is "
        "exit by exit, calibrated; AUROC is that of the confidence as a sign of being right.",
        "",
        "| variant | area | MACs | accuracy | nll | ECE | AUROC | weight decay | dropout |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for result in results:
        exits = result["exits"]
        cells = [
            result["variant"],
            f"{result['area']:.4f}",
            f"{sum(result['head_macs']):,} ({100 * result['head_share']:.2f}%)",
            *(
                " / ".join("–" if e["select_after"][name] is None else f"{e['select_after'][name]:.{digits}f}" for e in exits)
                for name, digits in (("accuracy", 4), ("nll", 3), ("ece", 3), ("auroc", 3))
            ),
            *(" / ".join(f"{e[name]:g}" for e in exits) for name in ("weight_decay", "dropout")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
