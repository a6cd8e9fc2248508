"""What is chosen, and why, for every kind of wish, bundle and machine."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
import torch

from offramp_model.bundle import BundleError, open_bundle
from offramp_server.backends import selection
from offramp_server.backends.selection import Choice, ChoiceError, Machine, Wish, choose, load_backend
from tests.conftest import HAS_NNCF

BARE = Machine(cuda=False, cuda_bf16=False, x86=True, openvino=True, bf16=False)
AMX = Machine(cuda=False, cuda_bf16=False, x86=True, openvino=True, bf16=True)
GPU = Machine(cuda=True, cuda_bf16=True, x86=True, openvino=True, bf16=False)
OLD_GPU = Machine(cuda=True, cuda_bf16=False, x86=True, openvino=True, bf16=False)
ARM = Machine(cuda=False, cuda_bf16=False, x86=False, openvino=True, bf16=False)
WITHOUT_OPENVINO = Machine(cuda=False, cuda_bf16=False, x86=True, openvino=False, bf16=False)


@pytest.mark.parametrize(
    ("wish", "has_graphs", "machine", "backend", "precision", "device", "reason"),
    [
        (Wish(), True, BARE, "openvino", "int8", "cpu", "carries OpenVINO graphs .* passed the quality gate"),
        (Wish(), True, AMX, "openvino", "int8", "cpu", "passed the quality gate"),
        (Wish(), False, BARE, "torch", "f32", "cpu", "carries no OpenVINO graphs"),
        (Wish(), True, WITHOUT_OPENVINO, "torch", "f32", "cpu", "openvino is not installed"),
        (Wish(), True, ARM, "torch", "f32", "cpu", "not an x86 one"),
        (Wish(backend="openvino"), True, ARM, "openvino", "int8", "cpu", "backend openvino was asked for"),
        (Wish(), True, GPU, "torch", "bf16", "cuda", "the device is cuda; the GPU has bfloat16"),
        (Wish(), True, OLD_GPU, "torch", "f32", "cuda", "the GPU has no bfloat16"),
        (Wish(device="cpu"), True, GPU, "openvino", "int8", "cpu", "carries OpenVINO graphs"),
        (Wish(device="cuda:1"), True, GPU, "torch", "bf16", "cuda:1", "the device is cuda:1"),
        (Wish(backend="torch"), True, BARE, "torch", "f32", "cpu", "backend torch was asked for"),
        (Wish(backend="torch", precision="bf16"), True, BARE, "torch", "bf16", "cpu", "precision bf16 was asked for"),
        (Wish(precision="f32"), True, AMX, "openvino", "f32", "cpu", "precision f32 was asked for"),
        (Wish(precision="bf16"), True, AMX, "openvino", "bf16", "cpu", "precision bf16 was asked for"),
        (Wish(precision="bf16"), True, BARE, "openvino", "f32", "cpu", "this CPU has no bfloat16"),
    ],
)
def test_what_is_chosen(
    wish: Wish, has_graphs: bool, machine: Machine, backend: str, precision: str, device: str, reason: str
) -> None:
    choice = choose(wish, has_graphs, machine)
    assert (choice.backend, choice.precision, choice.device) == (backend, precision, device)
    assert re.search(reason, choice.reason), choice.reason


@pytest.mark.parametrize(
    ("wish", "has_graphs", "machine", "reason"),
    [
        (Wish(backend="openvino"), False, BARE, "backend openvino can't be had: the bundle carries no OpenVINO graphs"),
        (Wish(backend="openvino"), True, WITHOUT_OPENVINO, "backend openvino can't be had: openvino is not installed"),
        (Wish(backend="openvino", device="cuda"), True, GPU, "backend openvino can't be had: OpenVINO serves the CPU"),
        (Wish(precision="int8"), False, BARE, "precision int8 takes OpenVINO: the bundle carries no OpenVINO graphs"),
        (Wish(precision="int8"), True, GPU, "precision int8 takes OpenVINO: OpenVINO serves the CPU and the device is cuda"),
        (Wish(backend="torch", precision="int8"), True, BARE, "precision int8 takes OpenVINO: backend torch was asked for"),
    ],
)
def test_what_cannot_be_had_is_refused_with_the_reason(wish: Wish, has_graphs: bool, machine: Machine, reason: str) -> None:
    with pytest.raises(ChoiceError, match=f"^{reason}"):
        choose(wish, has_graphs, machine)


@pytest.mark.skipif(not HAS_NNCF, reason="the bundle gets its graphs from openvino and nncf, which are not installed")
def test_the_choice_is_logged_and_told(smoke_store: Path, caplog: pytest.LogCaptureFixture) -> None:
    bundle = open_bundle(smoke_store / "smoke" / "1")
    with caplog.at_level(logging.INFO):
        backend = load_backend(bundle, Wish(device="cpu", openvino_threads=1))
    expected = choose(Wish(device="cpu"), True, Machine.look())
    assert backend.reason == expected.reason
    (record,) = [record for record in caplog.records if record.message == "backend chosen"]
    assert record.__dict__["reason"] == expected.reason
    assert record.__dict__["backend"] == backend.name == expected.backend


def test_a_wish_that_this_bundle_cannot_meet_names_the_bundle(smoke_store: Path) -> None:
    bundle = open_bundle(smoke_store / "smoke" / "1")
    with pytest.raises(BundleError, match=r"smoke/1: precision int8 takes OpenVINO: backend torch was asked for"):
        load_backend(bundle, Wish(backend="torch", precision="int8"))


def test_bfloat16_on_torch_is_near_float32(smoke_store: Path) -> None:
    import numpy as np

    bundle = open_bundle(smoke_store / "smoke" / "2")
    frames = list(np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8))
    logits = []
    for precision in ("f32", "bf16"):
        backend = load_backend(bundle, Wish(backend="torch", device="cpu", precision=precision))  # type: ignore[arg-type]
        logits_NEC, routers = backend.run_whole(backend.prepare(frames))  # type: ignore[attr-defined]
        assert logits_NEC.shape == (4, backend.exits, backend.classes)
        assert len(routers) == backend.exits - 1
        logits.append(logits_NEC)
    assert float(np.sqrt(np.square(logits[0] - logits[1]).mean())) < 0.05 * float(logits[0].std())


def test_a_choice_says_everything_once() -> None:
    assert choose(Wish(), True, BARE) == Choice(
        "openvino",
        "int8",
        "cpu",
        "the bundle carries OpenVINO graphs for this CPU; its int8 graphs passed the quality gate when they were published",
    )


@pytest.mark.parametrize("driver", [True, False])
def test_torch_is_asked_for_a_gpu_where_there_is_a_driver_for_one(driver: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(selection, "_has_nvidia_driver", lambda: driver)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: asked.append(True) or True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    machine = Machine.look()
    assert (machine.cuda, machine.cuda_bf16, bool(asked)) == (driver, driver, driver)
