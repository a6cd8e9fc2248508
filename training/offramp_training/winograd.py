"""Faster training on CPUs without bf16: 3×3 convolutions by Winograd's F(4×4, 3×3) (Lavin and Gray 2016).

Same sums as torch's direct convolution up to float32 rounding, at a quarter of the multiplications; see winograd.cpp, and
bench/training_step.py for what it brings. The extension is compiled by g++ at first use, which takes about a minute.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

_G = torch.tensor([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
_G_SQUARE = torch.kron(_G, _G)  # flattened G g Gᵀ as one product: (36, 9)
_CHUNK_BYTES = 4 * 2**20  # the transformed tiles of a chunk; measured best for 64 to 256 channels
_WIDE_CHUNK_BYTES = 64 * 2**20  # wide layers: few large chunks, since each chunk passes over all the weights


class CompilerMissingError(Exception):
    """The extension can't be compiled here."""


@functools.cache
def _extension() -> Any:
    # ninja lies beside this interpreter, which need not be on the path: a virtual environment works without activation
    os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    try:
        from torch.utils.cpp_extension import load  # needs setuptools, which only this module wants

        source = str(Path(__file__).with_suffix(".cpp"))
        return load("offramp_winograd", [source], extra_cflags=["-O3", "-march=native", "-ffast-math", "-fopenmp"])
    except (ImportError, OSError, RuntimeError) as error:
        raise CompilerMissingError(f"Winograd convolutions can't be compiled here: {str(error).splitlines()[0]}") from error


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images_NCHW: Tensor, weight_OC33: Tensor) -> Tensor:
        outputs, channels = weight_OC33.shape[:2]
        weights = (_G_SQUARE @ weight_OC33.reshape(outputs * channels, 9).T).view(36, outputs, channels)
        height, width = images_NCHW.shape[2:]
        image_bytes = 4 * 36 * max(outputs, channels) * -(-height // 4) * -(-width // 4)
        ctx.chunk = _images_a_chunk(image_bytes, wide=channels >= 512)
        ctx.save_for_backward(images_NCHW, weights)
        return _extension().forward(images_NCHW, weights, ctx.chunk)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        images, weights = ctx.saved_tensors
        images_wanted = ctx.needs_input_grad[0]
        images_gradient, planes = _extension().backward(images, weights, gradients[0], ctx.chunk, images_wanted)
        outputs, channels = weights.shape[1:]
        weight_gradient = (_G_SQUARE.T @ planes.reshape(36, outputs * channels)).T
        return images_gradient if images_wanted else None, weight_gradient.reshape(outputs, channels, 3, 3)


def _images_a_chunk(image_bytes: int, wide: bool) -> int:
    """As many images as fit, a multiple of the threads, which share them out whole."""
    images, threads = (_WIDE_CHUNK_BYTES if wide else _CHUNK_BYTES) // image_bytes, torch.get_num_threads()
    return max(1, images - images % threads if images > threads else images)


def convolve_3x3(images_NCHW: Tensor, weight_OC33: Tensor) -> Tensor:
    """Convolution with stride 1 and padding 1 of float32 CPU tensors; channels must be multiples of 8.

    Raises CompilerMissingError where g++ is missing.
    """
    return _Convolution.apply(images_NCHW, weight_OC33)  # type: ignore[no-any-return,no-untyped-call]


class _WinogradConv2d(nn.Conv2d):
    def forward(self, images_NCHW: Tensor) -> Tensor:
        if images_NCHW.shape[-1] <= 2:  # most of a tile would be thrown away
            return super().forward(images_NCHW)
        return convolve_3x3(images_NCHW, self.weight)


def use_winograd(network: nn.Module) -> None:
    """Let every fitting 3×3 convolution of the network run through Winograd; parameters and their names stay.

    Raises CompilerMissingError where g++ is missing.
    """
    _extension()
    for module in network.modules():
        if type(module) is nn.Conv2d and _fits(module):
            module.__class__ = _WinogradConv2d


def _fits(conv: nn.Conv2d) -> bool:
    shape = (conv.kernel_size, conv.stride, conv.padding, conv.groups)
    return shape == ((3, 3), (1, 1), (1, 1), 1) and conv.bias is None and conv.in_channels % 8 == conv.out_channels % 8 == 0


def keep_freed_memory() -> None:
    """Tell glibc to keep large freed blocks: activations are then not mapped, and zeroed by the kernel, at every step."""
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        for parameter, value in (
            (-4, 0),
            (-1, 2**31 - 1),
            (-2, 2**28),
            (-8, 1),
        ):  # M_MMAP_MAX, _TRIM_THRESHOLD, _TOP_PAD, _ARENA_MAX
            libc.mallopt(parameter, value)
