"""Winograd convolutions against torch's own, forwards and backwards."""

from __future__ import annotations

import shutil

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from offramp_model.config import NetworkConfig
from offramp_model.network import MultiExitResNet
from offramp_training.winograd import CompilerMissingError, convolve_3x3, use_winograd

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=3e-5 * float(expected.detach().abs().max()) + 1e-6)


@needs_compiler
@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(1, 5),
    channels=st.sampled_from([8, 16, 24]),
    outputs=st.sampled_from([8, 32]),
    height=st.integers(1, 13),
    width=st.integers(1, 13),
    channels_last=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_outputs_and_gradients_are_those_of_the_direct_convolution(
    count: int, channels: int, outputs: int, height: int, width: int, channels_last: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, channels, height, width, generator=generator)
    if channels_last:
        images = images.to(memory_format=torch.channels_last)
    weight = torch.randn(outputs, channels, 3, 3, generator=generator).requires_grad_()
    images.requires_grad_()
    upstream = torch.randn(count, outputs, height, width, generator=generator)
    expected = F.conv2d(images, weight, padding=1)
    found = convolve_3x3(images, weight)
    assert_close(found, expected)
    for a, b in zip(
        torch.autograd.grad(found, (images, weight), upstream),
        torch.autograd.grad(expected, (images, weight), upstream),
        strict=True,
    ):
        assert_close(a, b)


@needs_compiler
def test_a_whole_network_gives_the_same_logits_under_the_same_names() -> None:
    config = NetworkConfig(widths=(8, 16, 24), blocks=(2, 1, 1), classes=4, input_size=24)
    torch.manual_seed(0)
    network = MultiExitResNet(config).eval()
    images = torch.randn(3, 3, 24, 24)
    names = list(network.state_dict())
    with torch.no_grad():
        expected = network(images)
        use_winograd(network)
        found = network(images)
    assert list(network.state_dict()) == names
    assert any(type(module).__name__ == "_WinogradConv2d" for module in network.modules())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_missing_compiler_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch.utils.cpp_extension

    from offramp_training import winograd

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("Error building extension\nlong log")

    monkeypatch.setattr(torch.utils.cpp_extension, "load", fail)
    winograd._extension.cache_clear()
    try:
        with pytest.raises(CompilerMissingError, match=r"can.t be compiled here: Error building extension$"):
            use_winograd(MultiExitResNet(NetworkConfig(widths=(8,), blocks=(1,))))
    finally:
        winograd._extension.cache_clear()
