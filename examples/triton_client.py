"""Triton's own Python client against Offramp: stream pictures at several λ, show what came back and what it cost.

    python -m venv triton && triton/bin/pip install 'tritonclient[grpc]'
    triton/bin/python examples/triton_client.py [--url localhost:50051] [--lambda 0 --lambda 0.3] [cat.jpg dog.png …]

It needs an environment of its own: tritonclient and our client bring the same protobuf package, and older gRPC pins.
Without pictures it sends noise.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
from tritonclient.grpc import InferInput, InferRequestedOutput, aio

OUTPUTS = ("label", "probabilities", "exit", "compute")
NOISE_FRAMES = 8


def make_input(pictures: list[bytes], size: int) -> list[InferInput]:
    """One tensor a picture: its file as BYTES [1], or where there are no pictures noise as UINT8 [1, size, size, 3]."""
    if not pictures:
        noise = np.random.default_rng(0).integers(0, 256, (NOISE_FRAMES, 1, size, size, 3), np.uint8)
        tensors = [InferInput("image", list(frame.shape), "UINT8") for frame in noise]
        for tensor, frame in zip(tensors, noise, strict=True):
            tensor.set_data_from_numpy(frame)
        return tensors
    tensors = [InferInput("image", [1], "BYTES") for _ in pictures]
    for tensor, picture in zip(tensors, pictures, strict=True):
        tensor.set_data_from_numpy(np.array([picture], np.object_))
    return tensors


async def stream_at(client: aio.InferenceServerClient, model: str, tensors: list[InferInput], lambda_: float) -> None:
    """Send every picture down one stream and print the answers as they come."""

    async def requests() -> AsyncIterator[dict[str, Any]]:
        for number, tensor in enumerate(tensors):
            yield {
                "model_name": model,
                "inputs": [tensor],
                "outputs": [InferRequestedOutput(name) for name in OUTPUTS],
                "request_id": str(number),
                "parameters": {"lambda": lambda_},
            }

    print(f"λ = {lambda_:g}")
    async for result, error in client.stream_infer(requests()):
        if error is not None:  # one bad picture is one error, which names its request; the stream lives on
            print(f"  {error}")
            continue
        label, exit, compute = (result.as_numpy(name)[0] for name in ("label", "exit", "compute"))
        probability = result.as_numpy("probabilities")[0].max()
        number = result.get_response().id
        print(f"  {number:>3}  {label.decode():<12} {probability:.2f}  exit {exit}  {compute:.2f} of the full network")


async def main() -> None:
    """Read the command line and stream."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", nargs="*", type=Path, help="JPEG or PNG files")
    parser.add_argument("--url", default="localhost:50051", help="host:port of the server")
    parser.add_argument("--model", default="resnet18-cifar10-joint", help="name of the model")
    parser.add_argument("--lambda", dest="lambdas", type=float, action="append", help="price of compute; may be repeated")
    arguments = parser.parse_args()
    async with aio.InferenceServerClient(arguments.url) as client:
        metadata = await client.get_model_metadata(arguments.model)
        tensors = make_input([path.read_bytes() for path in arguments.pictures], metadata.inputs[0].shape[1])
        for lambda_ in arguments.lambdas or (0.0, 0.1, 0.3):
            await stream_at(client, arguments.model, tensors, lambda_)


if __name__ == "__main__":
    asyncio.run(main())
