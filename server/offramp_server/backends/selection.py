"""Which runtime and number format a bundle is served with: what was asked for, what the bundle carries, what the machine has."""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from offramp_model.bundle import Bundle, BundleError
from offramp_server.backends.openvino_backend import OpenVinoBackend, OpenVinoPrecision, openvino_capabilities
from offramp_server.engine.types import Backend

if TYPE_CHECKING:
    from offramp_server.backends.torch_backend import TorchPrecision

logger = logging.getLogger(__name__)

BackendName = Literal["torch", "openvino"]
Precision = Literal["int8", "bf16", "f32"]


class ChoiceError(ValueError):
    """What was asked for can't be had; the message names the setting and the reason."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What the operator asked for."""

    backend: Literal["auto", "torch", "openvino"] = "auto"
    precision: Literal["auto", "int8", "bf16", "f32"] = "auto"
    device: str = "auto"
    openvino_threads: int = 0
    torch_threads: int = 0


@dataclass(frozen=True, slots=True)
class Machine:
    """What there is to run on."""

    cuda: bool
    cuda_bf16: bool
    x86: bool
    openvino: bool
    """Whether the library is installed."""
    bf16: bool
    """Whether OpenVINO finds the CPU to be fast in bfloat16."""

    @classmethod
    def look(cls) -> Machine:
        """This machine."""
        cuda, cuda_bf16 = _look_for_cuda()
        openvino = importlib.util.find_spec("openvino") is not None
        return cls(
            cuda=cuda,
            cuda_bf16=cuda_bf16,
            x86=platform.machine().lower() in ("x86_64", "amd64"),
            openvino=openvino,
            bf16=openvino and "BF16" in openvino_capabilities(),
        )


@dataclass(frozen=True, slots=True)
class Choice:
    """What a bundle is served with, and why."""

    backend: BackendName
    precision: Precision
    device: str
    reason: str


def load_backend(bundle: Bundle, wish: Wish) -> Backend:
    """Choose and load, and log the choice. Raises BundleError, also where the wish can't be met with this bundle."""
    try:
        choice = choose(wish, bundle.manifest.graphs is not None, Machine.look())
    except ChoiceError as error:
        raise BundleError(bundle.path, str(error)) from error
    backend: Backend
    if choice.backend == "openvino":
        backend = OpenVinoBackend(bundle, choice.precision, wish.openvino_threads, choice.reason)
    else:
        from offramp_server.backends.torch_backend import TorchBackend

        precision = cast("TorchPrecision", choice.precision)
        backend = TorchBackend(bundle, choice.device, precision, choice.reason, wish.torch_threads)
    model = f"{bundle.manifest.name}:{bundle.manifest.version}"
    logger.info(
        "backend chosen",
        extra={"model": model, "backend": backend.name, "device": backend.device_description, "reason": choice.reason},
    )
    return backend


def choose(wish: Wish, has_graphs: bool, machine: Machine) -> Choice:
    """`auto` takes OpenVINO in int8 where a bundle carries graphs and the device is an x86 CPU, else torch.

    Raises ChoiceError where what was asked for can't be had.
    """
    device = ("cuda" if machine.cuda else "cpu") if wish.device == "auto" else wish.device
    on_cpu = device.partition(":")[0] == "cpu"
    obstacle = None
    if not on_cpu:
        obstacle = f"OpenVINO serves the CPU and the device is {device}"
    elif not has_graphs:
        obstacle = "the bundle carries no OpenVINO graphs"
    elif not machine.openvino:
        obstacle = "openvino is not installed"
    elif not machine.x86 and wish.backend == "auto":
        obstacle = "the CPU is not an x86 one"
    if wish.backend == "openvino" and obstacle is not None:
        raise ChoiceError(f"backend openvino can't be had: {obstacle}")
    if wish.backend == "torch" or obstacle is not None:
        why = "backend torch was asked for" if wish.backend == "torch" else obstacle
        if wish.precision == "int8":
            raise ChoiceError(f"precision int8 takes OpenVINO: {why}")
        precision, because = _torch_precision(wish, on_cpu, machine)
        return Choice("torch", precision, device, f"{why}; {because}")
    why = "backend openvino was asked for" if wish.backend == "openvino" else "the bundle carries OpenVINO graphs for this CPU"
    choice, because = _openvino_precision(wish, machine)
    return Choice("openvino", choice, device, f"{why}; {because}")


def _torch_precision(wish: Wish, on_cpu: bool, machine: Machine) -> tuple[TorchPrecision, str]:
    if wish.precision in ("bf16", "f32"):
        return wish.precision, f"precision {wish.precision} was asked for"
    if on_cpu:
        return "f32", "torch runs float32 on a CPU"
    if machine.cuda_bf16:
        return "bf16", "the GPU has bfloat16"
    return "f32", "the GPU has no bfloat16"


def _openvino_precision(wish: Wish, machine: Machine) -> tuple[OpenVinoPrecision, str]:
    if wish.precision == "auto":
        return "int8", "its int8 graphs passed the quality gate when they were published"
    if wish.precision == "bf16" and not machine.bf16:
        return "f32", "precision bf16 was asked for and this CPU has no bfloat16"
    return wish.precision, f"precision {wish.precision} was asked for"


def _look_for_cuda() -> tuple[bool, bool]:
    """Whether torch finds a device that it calls CUDA, NVIDIA's or AMD's, and whether that has bfloat16.

    torch, which takes seconds to import, is asked only where one's driver is there: without it torch finds none.
    """
    if not (_has_nvidia_driver() or Path("/dev/kfd").exists()):
        return False, False
    import torch

    cuda = torch.cuda.is_available()
    return cuda, cuda and torch.cuda.is_bf16_supported(including_emulation=False)


def _has_nvidia_driver() -> bool:
    try:
        ctypes.CDLL("nvcuda.dll" if platform.system() == "Windows" else "libcuda.so.1")
    except OSError:
        return False
    return True
