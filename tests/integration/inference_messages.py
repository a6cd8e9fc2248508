"""Short ways to write what a caller of the Open Inference Protocol sends, and to read what comes back."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from inference import grpc_service_pb2 as oip
from inference import grpc_service_pb2_grpc
from tests.unit.server.rpc.manifests import SIZE

Stub = grpc_service_pb2_grpc.GRPCInferenceServiceStub
RANDOM = np.random.default_rng(1)
DTYPES = {"FP32": "<f4", "INT32": "<i4", "INT64": "<i8"}


def pictures(images: int = 1) -> np.ndarray:
    return RANDOM.integers(0, 256, (images, SIZE, SIZE, 3), np.uint8)


def request(
    pixels: np.ndarray | None = None, id: str = "", version: str = "", outputs: Iterable[str] = (), **parameters: object
) -> oip.ModelInferRequest:
    pixels = pictures() if pixels is None else pixels
    message = oip.ModelInferRequest(model_name="tiny", model_version=version, id=id)
    message.inputs.add(name="image", datatype="UINT8", shape=pixels.shape)
    message.raw_input_contents.append(pixels.tobytes())
    for name in outputs:
        message.outputs.add(name=name)
    for name, value in parameters.items():
        form = {float: "double_param", int: "int64_param", str: "string_param"}[type(value)]
        setattr(message.parameters[name.rstrip("_")], form, value)
    return message


def tensors(response: oip.ModelInferResponse) -> dict[str, np.ndarray]:
    """Every output that is not BYTES."""
    return {
        tensor.name: np.frombuffer(raw, DTYPES[tensor.datatype]).reshape(tensor.shape)
        for tensor, raw in zip(response.outputs, response.raw_output_contents, strict=True)
        if tensor.datatype != "BYTES"
    }


async def exchange(stub: Stub, requests: Iterable[oip.ModelInferRequest], **call: object) -> list[oip.ModelStreamInferResponse]:
    return [response async for response in stub.ModelStreamInfer(iter(requests), **call)]
