"""What Triton's own client sees of a server; run by test_tritonclient.py in an environment of its own, prints one JSON object.

`python triton_session.py ADDRESS SIZE`: the server serves the model `tiny` in version 1, at SIZE pixels, and may load
version 2; version 3 of its store is broken.
"""

from __future__ import annotations

import asyncio
import json
import queue
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import numpy as np
from google.protobuf.descriptor import Descriptor
from tritonclient import grpc as triton
from tritonclient.grpc import aio, model_config_pb2, service_pb2
from tritonclient.utils import InferenceServerException

MODEL = "tiny"
OUTPUTS = ("label_index", "probabilities", "exit", "compute")


def make_input(size: int, images: int = 1, seed: int = 0) -> triton.InferInput:
    pixels = np.random.default_rng(seed).integers(0, 256, (images, size, size, 3), np.uint8)
    tensor = triton.InferInput("image", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels)
    return tensor


def show(result: Any) -> dict[str, Any]:
    response = result.get_response()
    shown: dict[str, Any] = {name: result.as_numpy(name).tolist() for name in OUTPUTS}
    shown["label"] = [label.decode() for label in result.as_numpy("label").tolist()]
    shown["id"], shown["version"] = response.id, response.model_version
    shown["lambda"] = response.parameters["lambda"].double_param
    shown["final"] = response.parameters["triton_final_response"].bool_param
    return shown


def refusal(call: Callable[..., Any], *arguments: Any, **keywords: Any) -> tuple[str, str]:
    try:
        call(*arguments, **keywords)
    except InferenceServerException as error:
        return str(error.status()), str(error.message())
    raise AssertionError(f"{call.__name__} was not refused")


def ask(client: triton.InferenceServerClient) -> dict[str, Any]:
    metadata = client.get_model_metadata(MODEL)
    config = client.get_model_config(MODEL).config
    return {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "models_ready": [client.is_model_ready(MODEL), client.is_model_ready("nobody")],
        "server": client.get_server_metadata().name,
        "inputs": [(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in metadata.inputs],
        "outputs": [(tensor.name, tensor.datatype, list(tensor.shape)) for tensor in metadata.outputs],
        "config": [config.name, config.max_batch_size, config.model_transaction_policy.decoupled, config.backend],
        "config_inputs": [(each.name, model_config_pb2.DataType.Name(each.data_type), list(each.dims)) for each in config.input],
    }


def infer_sync(client: triton.InferenceServerClient, size: int) -> dict[str, Any]:
    tensor = make_input(size, images=3)
    shown: dict[str, Any] = {}
    for name, value in {"double": 1e6, "integer": 1_000_000, "text": "1e6", "none": 0}.items():
        parameters = {"lambda": value, "threshold": 1.0 if name == "none" else 0.5}
        shown[name] = show(client.infer(MODEL, [tensor], request_id=name, parameters=parameters, priority=1, timeout=60_000_000))
    best = triton.InferRequestedOutput("probabilities", class_count=2)
    result = client.infer(MODEL, [tensor], outputs=[best])
    shown["best"] = [element.decode() for element in result.as_numpy("probabilities").ravel().tolist()]
    shown["others"] = [tensor.name for tensor in result.get_response().outputs]
    shown["wrong"] = refusal(client.infer, MODEL, [tensor], parameters={"lambda": -1.0})
    shown["unknown"] = refusal(client.infer, "nobody", [tensor])
    answers: queue.Queue[Any] = queue.Queue()
    client.async_infer(MODEL, [tensor], lambda result, error: answers.put((result, error)), request_id="later")
    result, error = answers.get(timeout=120)
    shown["later"] = str(error) if error else show(result)["id"]
    return shown


def stream_sync(client: triton.InferenceServerClient, size: int) -> list[dict[str, Any] | str]:
    answers: queue.Queue[Any] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for number in range(5):
        value = -1.0 if number == 2 else float(number)
        client.async_stream_infer(
            MODEL, [make_input(size)], request_id=f"r{number}", parameters={"lambda": value}, enable_empty_final_response=True
        )
    got = [answers.get(timeout=120) for _ in range(5)]
    client.stop_stream()
    return [str(error) if error else show(result) for result, error in got]


def stream_to_first_error(address: str, size: int) -> str:
    answers: queue.Queue[Any] = queue.Queue()
    with triton.InferenceServerClient(address) as client:
        client.start_stream(lambda result, error: answers.put((result, error)), headers={"triton_grpc_error": "true"})
        client.async_stream_infer(MODEL, [make_input(size)], parameters={"lambda": -1.0})
        _, error = answers.get(timeout=120)
        client.stop_stream()
    return str(error.status())


async def infer_aio(address: str, size: int) -> dict[str, Any]:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        for number in range(5):
            value: float | str = "nothing" if number == 2 else str(number)
            yield {
                "model_name": MODEL,
                "inputs": [make_input(size, images=2)],
                "request_id": f"a{number}",
                "parameters": {"lambda": value},
            }

    async with aio.InferenceServerClient(address) as client:
        unary = show(await client.infer(MODEL, [make_input(size, images=2)], request_id="aio"))
        streamed = [str(error) if error else show(result) async for result, error in client.stream_infer(requests())]
        ready = await client.is_model_ready(MODEL, "1")
    return {"unary": unary, "streamed": streamed, "ready": ready}


def refuse(client: triton.InferenceServerClient) -> dict[str, tuple[str, str]]:
    return {
        "system status": refusal(client.get_system_shared_memory_status),
        "system register": refusal(client.register_system_shared_memory, "region", "/key", 64),
        "system unregister": refusal(client.unregister_system_shared_memory),
        "cuda status": refusal(client.get_cuda_shared_memory_status),
        "cuda register": refusal(client.register_cuda_shared_memory, "region", b"", 0, 64),
        "cuda unregister": refusal(client.unregister_cuda_shared_memory),
        "trace": refusal(client.get_trace_settings),
        "trace update": refusal(client.update_trace_settings, MODEL, {"trace_level": ["OFF"]}),
        "log": refusal(client.get_log_settings),
        "log update": refusal(client.update_log_settings, {"log_verbose_level": 1}),
    }


def count(client: triton.InferenceServerClient) -> dict[str, int]:
    (stats,) = client.get_inference_statistics(MODEL).model_stats
    return {
        "frames": stats.inference_count,
        "batches": stats.execution_count,
        "answered": stats.inference_stats.success.count,
        "failed": stats.inference_stats.fail.count,
        "compute_ns": stats.inference_stats.compute_infer.ns,
    }


def manage(client: triton.InferenceServerClient, size: int) -> dict[str, Any]:
    def index() -> dict[str, str]:
        return {entry.version: entry.state for entry in client.get_model_repository_index().models}

    def version() -> str:
        return str(client.infer(MODEL, [make_input(size)]).get_response().model_version)

    def policy(number: int) -> str:
        return json.dumps({"version_policy": {"specific": {"versions": [number]}}})

    shown: dict[str, Any] = {"before": [version(), index()]}
    shown["broken"] = refusal(client.load_model, MODEL)
    shown["after_broken"] = version()
    client.load_model(MODEL, config=policy(2))
    shown["loaded"] = version()
    client.unload_model(MODEL)
    shown["unloaded"] = [client.is_server_ready(), client.is_model_ready(MODEL)]
    client.load_model(MODEL, config=policy(1))
    shown["back"] = [client.is_server_ready(), version()]
    shown["files"] = refusal(client.load_model, MODEL, config="{}", files={"file:1/weights": b"weights"})
    return shown


def describe_wire() -> dict[str, Any]:
    """Every message of the client's own protos: field numbers, types and labels."""

    def walk(message: Descriptor) -> Iterator[tuple[str, dict[str, Any]]]:
        yield message.full_name, {field.name: [field.number, field.type, field.is_repeated] for field in message.fields}
        for nested in message.nested_types:
            yield from walk(nested)

    wire: dict[str, Any] = {}
    for module in (service_pb2, model_config_pb2):
        for message in module.DESCRIPTOR.message_types_by_name.values():
            wire.update(walk(message))
    service = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    methods = {each.name: [each.input_type.full_name, each.output_type.full_name] for each in service.methods}
    types = {value.name: value.number for value in model_config_pb2.DESCRIPTOR.enum_types_by_name["DataType"].values}
    return {"messages": wire, "methods": methods, "types": types}


def main() -> None:
    address, size = sys.argv[1], int(sys.argv[2])
    seen: dict[str, Any] = {"wire": describe_wire()}
    with triton.InferenceServerClient(address) as client:
        seen["asked"] = ask(client)
        seen["sync"] = infer_sync(client, size)
        seen["stream"] = stream_sync(client, size)
        seen["first_error"] = stream_to_first_error(address, size)
        seen["aio"] = asyncio.run(infer_aio(address, size))
        seen["refused"] = refuse(client)
        seen["counted"] = count(client)
        seen["managed"] = manage(client, size)
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
