"""Bundles: published whole or not at all, and refused with the file's name where anything is off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from offramp_model.bundle import (
    MANIFEST,
    WEIGHTS,
    Bundle,
    BundleError,
    BundleNotFoundError,
    BundleStore,
    Control,
    Manifest,
    OperatingPoint,
    Preprocessing,
    Provenance,
    open_bundle,
    sha256,
)
from offramp_model.config import NetworkConfig
from offramp_model.costs import cost_table
from offramp_model.factories import build_network, measure_stages
from offramp_model.network import MultiExitResNet
from offramp_model.weights import half_overflows, load_network, publish_bundle
from tests import stages

CONFIG = NetworkConfig(
    widths=(4, 8), blocks=(1, 1), classes=3, input_size=8, head_hidden=5, router_hidden=3, router_lambdas=(0.0, 1.0)
)


def make_manifest(**changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "name": "tiny",
        "version": 1,
        "network": CONFIG,
        "labels": ("a", "b", "c"),
        "preprocessing": Preprocessing(mean=(0.5,) * 3, std=(0.25,) * 3),
        "costs": cost_table(CONFIG),
        "default_control": Control(policy="router", lambda_=1.0),
        "default_thresholds": {"router": 0.5, "entropy": 0.3, "confidence": 0.9},
        "full_accuracy": 0.9,
        "exit_accuracies": (0.5, 0.9),
        "operating_points": (
            OperatingPoint(control=Control(policy="router"), accuracy=0.9, mean_cost=1.0, exit_fractions=(0.1, 0.9)),
        ),
        "provenance": Provenance(created="2026-01-01T00:00:00+00:00", seed=0, data_note="none", tool="test"),
        "files": {},
    }
    return Manifest(**(fields | changes))


@pytest.fixture
def network() -> MultiExitResNet:
    torch.manual_seed(0)
    return MultiExitResNet(CONFIG).eval()


@pytest.fixture
def bundle(tmp_path: Path, network: MultiExitResNet) -> Bundle:
    card = tmp_path / "card.md"
    card.write_text("# tiny\n")
    return publish_bundle(tmp_path / "store", make_manifest(), network.state_dict(), {"README.md": card, "plots/card.md": card})


def rewrite_manifest(bundle: Bundle, change: dict[str, Any]) -> None:
    path = bundle.path / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def test_round_trip(bundle: Bundle, network: MultiExitResNet, tmp_path: Path) -> None:
    opened = BundleStore(tmp_path / "store").open("tiny")
    assert opened.manifest == bundle.manifest
    assert set(opened.manifest.files) == {WEIGHTS, "README.md", "plots/card.md"}
    images = torch.randn(2, 3, 8, 8)
    loaded = load_network(opened)
    assert not loaded.training
    for ours, theirs in zip(network.stages(images), loaded.stages(images), strict=True):
        torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-2, atol=1e-2)
    for name, tensor in loaded.state_dict().items():
        if tensor.is_floating_point():
            assert torch.equal(tensor, network.state_dict()[name].half().float()), name


def test_every_file_can_be_read_by_other_users(bundle: Bundle) -> None:
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in bundle.path.rglob("*"))


def test_a_published_version_is_never_overwritten(bundle: Bundle, network: MultiExitResNet, tmp_path: Path) -> None:
    before = sha256(bundle.path / WEIGHTS)
    with pytest.raises(FileExistsError, match="already published"):
        publish_bundle(tmp_path / "store", make_manifest(), network.state_dict(), {})
    assert sha256(bundle.path / WEIGHTS) == before


def test_a_failed_publication_leaves_nothing_behind(tmp_path: Path, network: MultiExitResNet) -> None:
    with pytest.raises(FileNotFoundError):
        publish_bundle(tmp_path / "store", make_manifest(), network.state_dict(), {"README.md": tmp_path / "absent"})
    tensors = network.state_dict()
    tensors.pop("classifier.bias")
    with pytest.raises(BundleError, match=r"classifier\.bias"):
        publish_bundle(tmp_path / "store", make_manifest(), tensors, {})
    assert list((tmp_path / "store" / "tiny").iterdir()) == []
    assert BundleStore(tmp_path / "store").names() == []


def test_a_damaged_byte_names_the_file(bundle: Bundle) -> None:
    path = bundle.path / WEIGHTS
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"weights\.safetensors.*sha256"):
        open_bundle(bundle.path)


def test_a_truncated_file_names_the_file(bundle: Bundle) -> None:
    path = bundle.path / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BundleError, match=r"weights\.safetensors.*damaged"):
        open_bundle(bundle.path)


@pytest.mark.parametrize("name", ["README.md", "plots/card.md", WEIGHTS])
def test_a_missing_file_is_named(bundle: Bundle, name: str) -> None:
    (bundle.path / name).unlink()
    with pytest.raises(BundleError, match="is missing") as caught:
        open_bundle(bundle.path)
    assert caught.value.path == bundle.path / name


def test_a_missing_manifest_is_named(bundle: Bundle) -> None:
    (bundle.path / MANIFEST).unlink()
    with pytest.raises(BundleError, match=r"manifest\.json: can't be read"):
        open_bundle(bundle.path)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"hello": 1}', "\x00\x01"])
def test_a_foreign_manifest_is_refused(bundle: Bundle, content: str) -> None:
    (bundle.path / MANIFEST).write_text(content)
    with pytest.raises(BundleError, match=r"manifest\.json: not a manifest of format 1"):
        open_bundle(bundle.path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format_version": 2}, "format_version"),
        ({"architecture": "transformer"}, "architecture"),
        ({"architecture": "multi-exit-stages"}, "architecture is multi-exit-stages and the network's is multi-exit-resnet"),
        ({"labels": ["a"]}, "labels names 1 classes"),
        ({"exit_accuracies": [0.5]}, "exit_accuracies has 1 entries"),
        ({"costs": {"full_macs": 5, "exit_macs": [1, 5]}}, "cost table"),
        ({"preprocessing": {"mean": [0.5], "std": [0.5]}}, "mean and std of 3 channels"),
        ({"default_thresholds": {"router": 0.5}}, "lacks confidence, entropy"),
        ({"files": {}}, r"lists no digest of weights\.safetensors"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_an_inconsistent_manifest_is_refused(bundle: Bundle, change: dict[str, Any], reason: str) -> None:
    rewrite_manifest(bundle, change)
    with pytest.raises(BundleError, match=reason) as caught:
        open_bundle(bundle.path)
    assert caught.value.path == bundle.path / MANIFEST


def test_a_manifest_from_before_there_were_other_networks_reads_the_same(bundle: Bundle) -> None:
    content = json.loads((bundle.path / MANIFEST).read_text())
    for field in ("block", "stem", "factory", "stage_sizes", "stage_macs"):
        del content["network"][field]
    (bundle.path / MANIFEST).write_text(json.dumps(content))
    assert open_bundle(bundle.path).manifest == bundle.manifest


def test_a_bundle_on_foreign_stages_needs_its_factory_allowed(tmp_path: Path) -> None:
    factory, store, images = "tests.stages:three", tmp_path / "store", torch.randn(2, 3, 8, 8)
    config = measure_stages(CONFIG.model_copy(update={"factory": factory}), {factory})
    network = build_network(config, {factory}).eval()
    fields = {"network": config, "costs": cost_table(config), "exit_accuracies": (0.5, 0.6, 0.9)}
    bundle = publish_bundle(store, make_manifest(architecture="multi-exit-stages", **fields), network.state_dict(), {})

    calls, complaint = len(stages.imports), r"manifest\.json: the network's stages come from tests\.stages:three"
    for allowed in ((), {"tests.stages:changed"}):
        with pytest.raises(BundleError, match=complaint):
            open_bundle(bundle.path, allowed)
        with pytest.raises(BundleError, match=complaint):
            BundleStore(store, allowed).open("tiny")
    with pytest.raises(BundleError, match=complaint):
        load_network(Bundle(bundle.path, bundle.manifest))
    assert len(stages.imports) == calls, "a bundle that was refused ran its code"

    loaded = load_network(BundleStore(store, {factory}).open("tiny"))
    for ours, theirs in zip(network.stages(images), loaded.stages(images), strict=True):
        torch.testing.assert_close(ours.logits, theirs.logits, rtol=1e-2, atol=1e-2)


FRONTIER = {
    "points": [{"lambda_": 0.0, "mean_cost": 0.8, "accuracy": 0.9, "exit_fractions": [0.4, 0.6], "losses": 3}],
    "frames": 200,
}


def test_a_manifest_may_carry_a_frontier(bundle: Bundle) -> None:
    assert bundle.manifest.frontier is None
    rewrite_manifest(bundle, {"frontier": FRONTIER})
    read = open_bundle(bundle.path).manifest.frontier
    assert read is not None
    assert (read.frames, read.points[0].losses) == (200, 3)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"frontier": {"points": [], "frames": 200}}, "frontier"),
        (
            {"frontier": {"points": [FRONTIER["points"][0] | {"exit_fractions": [1.0]}], "frames": 200}},
            "exit_fractions of 2 exits",
        ),
        ({"frontier": FRONTIER, "default_control": {"policy": "confidence", "threshold": 0.9}}, "make that policy `router`"),
        ({"frontier": FRONTIER, "default_control": {"policy": "router", "max_exit": 1}}, "without max_exit"),
        ({"frontier": FRONTIER, "default_control": {"policy": "router", "threshold": 0.6}}, "one threshold"),
    ],
)
def test_a_frontier_that_does_not_fit_its_bundle_is_refused(bundle: Bundle, change: dict[str, Any], reason: str) -> None:
    rewrite_manifest(bundle, change)
    with pytest.raises(BundleError, match=reason):
        open_bundle(bundle.path)


@pytest.mark.parametrize("name", ["../card.md", "/etc/hostname", "plots/../../escape"])
def test_a_path_that_leaves_the_bundle_is_refused(bundle: Bundle, name: str) -> None:
    rewrite_manifest(bundle, {"files": bundle.manifest.files | {name: "0" * 64}})
    with pytest.raises(BundleError, match="outside the bundle"):
        open_bundle(bundle.path)


def test_a_link_that_leaves_the_bundle_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    (bundle.path / "README.md").unlink()
    (bundle.path / "README.md").symlink_to(tmp_path / "card.md")
    with pytest.raises(BundleError, match=r"outside the bundle: README\.md"):
        open_bundle(bundle.path)


def test_weights_of_another_shape_are_refused(bundle: Bundle) -> None:
    path = bundle.path / WEIGHTS
    tensors = load_file(path)
    tensors["classifier.weight"] = torch.zeros(7, 8).half()
    save_file(tensors, path)
    rewrite_manifest(bundle, {"files": bundle.manifest.files | {WEIGHTS: sha256(path)}})
    with pytest.raises(BundleError, match=r"weights\.safetensors: tensor classifier\.weight has shape \(7, 8\)"):
        load_network(open_bundle(bundle.path))


def test_a_pickle_in_the_place_of_weights_is_refused(bundle: Bundle) -> None:
    path = bundle.path / WEIGHTS
    torch.save({"classifier.weight": torch.zeros(1)}, path)
    rewrite_manifest(bundle, {"files": bundle.manifest.files | {WEIGHTS: sha256(path)}})
    with pytest.raises(BundleError, match="not a safetensors file"):
        load_network(open_bundle(bundle.path))


def test_lookup_by_name_and_version(bundle: Bundle, network: MultiExitResNet, tmp_path: Path) -> None:
    store = BundleStore(tmp_path / "store")
    publish_bundle(store.root, make_manifest(version=12), network.state_dict(), {})
    assert store.names() == ["tiny"]
    assert store.versions("tiny") == [1, 12]
    assert store.open("tiny").manifest.version == 12
    assert store.open("tiny", 1).manifest.version == 1
    with pytest.raises(BundleNotFoundError, match="it has 1, 12"):
        store.open("tiny", 3)
    with pytest.raises(BundleNotFoundError, match="it holds tiny"):
        store.open("other")
    with pytest.raises(BundleNotFoundError):
        store.open("../tiny")
    assert [store.versions(name) for name in ("../tiny", "tiny/", "tiny\n", "t" * 5000)] == [[]] * 4


def test_a_bundle_in_the_wrong_folder_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    bundle.path.rename(bundle.path.with_name("7"))
    with pytest.raises(BundleError, match="is of tiny version 1, and lies in the folder of tiny version 7"):
        BundleStore(tmp_path / "store").open("tiny", 7)


def test_an_empty_store_holds_nothing(tmp_path: Path) -> None:
    store = BundleStore(tmp_path / "absent")
    assert store.names() == []
    with pytest.raises(BundleNotFoundError, match="it holds nothing"):
        store.open("tiny")


def test_overflow_of_half_precision_is_found() -> None:
    assert half_overflows({"a": torch.tensor([7e4]), "b": torch.tensor([6e4]), "c": torch.tensor([10**6])}) == ["a"]
