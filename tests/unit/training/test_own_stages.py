"""Networks other than ResNet-18: bottleneck blocks, the ImageNet stem, and stages that a factory returns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from offramp_model.bundle import BundleError, BundleStore
from offramp_model.costs import cost_table
from offramp_model.weights import load_network
from offramp_server.backends import OpenVinoBackend
from offramp_server.backends.torch_backend import TorchBackend
from offramp_server.engine.execution import no_logits
from offramp_training.config import ConfigError, load_config
from offramp_training.run_directory import RunDirectory
from offramp_training.steps import run_steps
from tests import stages
from tests.conftest import HAS_NNCF

THREE = "tests.stages:three"
needs_nncf = pytest.mark.skipif(not HAS_NNCF, reason="openvino and nncf, of the extra `train`, are not installed")
QUICK = ("data.synthetic_train=400", "backbone.batch_size=20", "backbone.phases=[{size: 16, epochs: 2}]", "cache.train_views=1")


@pytest.mark.parametrize(
    "network",
    [
        "{widths: [16, 24, 32, 48], blocks: [3, 4, 6, 3], block: bottleneck, input_size: 16, classes: 4}",
        "{widths: [8, 16, 24, 32], blocks: [3, 4, 6, 3], stem: imagenet, input_size: 40, classes: 4}",
    ],
    ids=["ResNet-50, narrow", "ResNet-34, narrow, on the ImageNet stem"],
)
def test_deeper_residual_networks_train(network: str, tmp_path: Path) -> None:
    size = 16 if "bottleneck" in network else 40
    phases = f"backbone.phases=[{{size: {size}, epochs: 2}}]"
    job = load_config("smoke", [*QUICK, f"network={network}", "backbone.joint={}", phases])
    run = RunDirectory(tmp_path)
    run_steps(job, run, ("backbone", "cache"))
    losses = [epoch["loss"] for epoch in run.result("backbone")["history"]]
    assert losses[1] < losses[0]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a bundle on a factory's stages, trained the whole road."""
    root = tmp_path_factory.mktemp("own")
    overrides = [
        f"network.factory={THREE}",
        "network.head_kind=pooled_stats",
        "network.router_kind=forecast",
        "routers.lambdas=[0, 0.1, 1]",
        "forecast.steps=20",
        "heads.epochs=3",
        "proof.rule_steps=0",
        f"export.graphs={HAS_NNCF}",
        "export.max_accuracy_loss=0.2",  # after two epochs, and on 48 images: that int8 is good enough is tested elsewhere
        "export.min_same_exit=0.5",
        f"publish.store={root / 'store'}",
        "publish.name=own",
    ]
    run_steps(load_config("smoke", [*QUICK, *overrides]), RunDirectory(root / "run"))
    return root / "store"


@pytest.mark.parametrize("runtime", ["torch", pytest.param("openvino", marks=needs_nncf)])
def test_stages_of_any_make_are_trained_published_and_served(store: Path, runtime: str) -> None:
    bundle = BundleStore(store, {THREE}).open("own")
    manifest = bundle.manifest
    assert (manifest.architecture, manifest.network.widths) == ("multi-exit-stages", (12, 20, 32))
    assert manifest.costs == cost_table(manifest.network)
    assert THREE in (bundle.path / "README.md").read_text()
    pixels, network = [np.full((16, 16, 3), 90, np.uint8)] * 2, load_network(bundle)
    with torch.inference_mode():
        expected_NEC = list(network.stages(TorchBackend(bundle, device="cpu").prepare(pixels)))[-1].logits_NEC
    backend = TorchBackend(bundle, device="cpu") if runtime == "torch" else OpenVinoBackend(bundle, "f32")
    features, logits_NEC = backend.prepare(pixels), no_logits(2, 4)
    for exit in range(1, 4):
        result = backend.run_stage(exit, features, logits_NEC)
        features, logits_NEC = result.features, result.logits_NEC
    assert logits_NEC.shape == (2, 3, 4)
    np.testing.assert_allclose(logits_NEC, expected_NEC, rtol=0, atol=1e-4)


@needs_nncf
def test_a_boundary_that_is_quantised_channel_by_channel_stays_in_float(store: Path) -> None:
    backend = OpenVinoBackend(BundleStore(store, {THREE}).open("own"), "int8")
    features, logits_NEC = backend.prepare([np.full((16, 16, 3), 90, np.uint8)]), no_logits(1, 4)
    for exit in (1, 2):  # the next stage begins with a depthwise convolution
        result = backend.run_stage(exit, features, logits_NEC)
        features, logits_NEC = result.features, result.logits_NEC
        assert features.dtype == np.float32


def test_a_store_without_permission_refuses_it_and_runs_nothing(store: Path) -> None:
    calls = len(stages.imports)
    with pytest.raises(BundleError, match=r"manifest\.json: the network's stages come from tests\.stages:three"):
        BundleStore(store).open("own")
    assert len(stages.imports) == calls


def test_a_factory_that_is_no_good_is_named_when_the_configuration_is_read() -> None:
    with pytest.raises(ConfigError, match=r"smoke: network: tests\.stages:raising can't be used: RuntimeError") as caught:
        load_config("smoke", ["network.factory=tests.stages:raising"])
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"network\.factory"):
        load_config("smoke", ["network.factory=tests/stages.py"])
    with pytest.raises(ConfigError, match="at least two exits"):
        load_config("smoke", ["network.factory=tests.stages:one"])
