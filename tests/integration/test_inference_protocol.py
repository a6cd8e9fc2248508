"""The Open Inference Protocol on a real server, by stubs of our own."""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import AsyncIterator, Iterable

import grpc
import grpc.aio
import httpx
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from PIL import Image

from inference import grpc_service_pb2 as oip
from inference import grpc_service_pb2_grpc, model_config_pb2
from offramp.v1 import classification_pb2 as pb
from offramp.v1 import classification_pb2_grpc
from offramp_server.app import Server
from offramp_server.config import Settings
from offramp_server.rpc.oip import stream
from tests.integration.conftest import PATIENCE_S, Gate, until
from tests.integration.messages import control
from tests.integration.messages import frame as native_frame
from tests.unit.server.rpc.manifests import CLASSES, EXITS, SIZE, tiny_manifest

Stub = grpc_service_pb2_grpc.GRPCInferenceServiceStub
RATIOS = tiny_manifest().costs.ratios
RANDOM = np.random.default_rng(1)
DTYPES = {"FP32": "<f4", "INT32": "<i4", "INT64": "<i8"}


@pytest.fixture
def infer(channel: grpc.aio.Channel) -> Stub:
    return Stub(channel)


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


@contextlib.asynccontextmanager
async def started(server: Server) -> AsyncIterator[Server]:
    """A server that the test stops by itself, and that is stopped in any case."""
    try:
        await server.startup()
        yield server
    finally:
        await server.shutdown()


async def failure(call: grpc.aio.Call) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


# --- what the server and its models are -------------------------------------------------------------------------------


async def ready_by_every_probe(server: Server, channel: grpc.aio.Channel) -> set[bool]:
    async with httpx.AsyncClient(base_url=f"http://{server.http_address}", trust_env=False) as client:
        http = (await client.get("/readyz")).status_code == 200
    stub, health = Stub(channel), health_pb2_grpc.HealthStub(channel)
    answers = {http, (await stub.ServerReady(oip.ServerReadyRequest())).ready}
    for service in ("", "inference.GRPCInferenceService"):
        response = await health.Check(health_pb2.HealthCheckRequest(service=service))
        answers.add(response.status == health_pb2.HealthCheckResponse.SERVING)
    return answers


async def test_every_probe_says_the_same(server: Server, channel: grpc.aio.Channel) -> None:
    assert (await Stub(channel).ServerLive(oip.ServerLiveRequest())).live
    assert await ready_by_every_probe(server, channel) == {True}


async def test_nothing_is_ready_before_the_warm_up_ends(settings: Settings, gate: Gate) -> None:
    load = gate.load

    def load_closed(bundle: object, device: str) -> object:
        backend = load(bundle, device)  # type: ignore[arg-type]
        backend.gate.clear()
        return backend

    server = Server(settings, load_closed)  # type: ignore[arg-type]
    starting = asyncio.create_task(server.startup())
    await until(lambda: bool(server.grpc_address))
    async with grpc.aio.insecure_channel(server.grpc_address) as channel:
        assert (await Stub(channel).ServerLive(oip.ServerLiveRequest())).live
        assert await ready_by_every_probe(server, channel) == {False}
        assert not (await Stub(channel).ModelReady(oip.ModelReadyRequest(name="tiny"))).ready
        assert (await failure(Stub(channel).ModelInfer(request()))).code() is grpc.StatusCode.UNAVAILABLE
        await until(lambda: bool(gate.backends))
        gate.open()
        await starting
        assert await ready_by_every_probe(server, channel) == {True}
    await server.shutdown()


@pytest.mark.parametrize(
    ("name", "version", "ready"), [("tiny", "", True), ("tiny", "2", True), ("tiny", "1", False), ("nobody", "", False)]
)
async def test_a_model_is_ready_when_it_is_loaded(infer: Stub, name: str, version: str, ready: bool) -> None:
    assert (await infer.ModelReady(oip.ModelReadyRequest(name=name, version=version))).ready is ready


async def test_metadata_and_configuration_agree(infer: Stub) -> None:
    server = await infer.ServerMetadata(oip.ServerMetadataRequest())
    assert server.name == "offramp"
    assert {"statistics", "model_repository", "parameters"} <= set(server.extensions)
    metadata = await infer.ModelMetadata(oip.ModelMetadataRequest(name="tiny"))
    assert (metadata.name, list(metadata.versions), metadata.platform) == ("tiny", ["2"], "offramp_torch")
    assert [(each.name, each.datatype, list(each.shape)) for each in metadata.inputs] == [("image", "UINT8", [-1, SIZE, SIZE, 3])]
    config = (await infer.ModelConfig(model_config_pb2.ModelConfigRequest(name="tiny"))).config
    assert config.max_batch_size > 1
    assert not config.model_transaction_policy.decoupled
    for described, configured in ((metadata.inputs, config.input), (metadata.outputs, config.output)):
        assert [(each.name, list(each.shape)[1:]) for each in described] == [(each.name, list(each.dims)) for each in configured]
    assert config.parameters["exits"].string_value == str(EXITS)
    assert config.parameters["labels"].string_value == "cat,dog,frog,ship"


async def test_what_is_not_loaded_is_not_found(infer: Stub) -> None:
    calls = [
        infer.ModelMetadata(oip.ModelMetadataRequest(name="nobody")),
        infer.ModelConfig(model_config_pb2.ModelConfigRequest(name="tiny", version="9")),
        infer.ModelStatistics(oip.ModelStatisticsRequest(name="nobody")),
        infer.ModelInfer(request(version="1")),
    ]
    for call in calls:
        assert (await failure(call)).code() is grpc.StatusCode.NOT_FOUND


async def test_what_is_not_served_says_so_with_a_reason(infer: Stub) -> None:
    calls = [
        infer.SystemSharedMemoryStatus(oip.SystemSharedMemoryStatusRequest()),
        infer.SystemSharedMemoryRegister(oip.SystemSharedMemoryRegisterRequest()),
        infer.SystemSharedMemoryUnregister(oip.SystemSharedMemoryUnregisterRequest()),
        infer.CudaSharedMemoryStatus(oip.CudaSharedMemoryStatusRequest()),
        infer.CudaSharedMemoryRegister(oip.CudaSharedMemoryRegisterRequest()),
        infer.CudaSharedMemoryUnregister(oip.CudaSharedMemoryUnregisterRequest()),
        infer.TraceSetting(oip.TraceSettingRequest()),
        infer.LogSettings(oip.LogSettingsRequest()),
    ]
    for call in calls:
        error = await failure(call)
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED
        assert "shared memory" in error.details() or "settings" in error.details()


# --- one request ------------------------------------------------------------------------------------------------------


async def test_the_answer_is_that_of_our_own_service(
    infer: Stub, stub: classification_pb2_grpc.ClassificationServiceStub
) -> None:
    pixels = pictures(3)
    response = await infer.ModelInfer(request(pixels, id="a", policy="fixed", max_exit=2))
    assert (response.model_name, response.model_version, response.id) == ("tiny", "2", "a")
    got = tensors(response)
    for index, picture in enumerate(pixels):
        image = pb.RawImage(data=picture.tobytes(), height=SIZE, width=SIZE)
        frame = pb.Frame(rgb8=image, control=control(policy=pb.POLICY_FIXED, max_exit=2))
        answer = (await stub.Classify(pb.ClassifyRequest(frame=frame, top_k=CLASSES))).result.classification
        probabilities = {each.label: each.probability for each in answer.top}
        assert dict(enumerate(got["probabilities"][index].tolist())) == pytest.approx(probabilities, abs=1e-5)
        assert got["label_index"][index] == answer.top[0].label
        assert got["exit"][index] == answer.exit == 2
        assert got["compute"][index] == pytest.approx(answer.cost_ratio)


@pytest.mark.parametrize(
    ("parameters", "exit"),
    [
        ({"lambda": 1e6}, 1),
        ({"lambda": "1e6"}, 1),
        ({"lambda": 1_000_000}, 1),
        ({"lambda": 0, "threshold": 1.0}, EXITS),
        ({"lambda": 1e6, "min_exit": "3"}, 3),
        ({"lambda": 0, "threshold": 1, "max_exit": 2.0}, 2),
        ({"lambda": "0", "threshold": "1", "max_cost": RATIOS[2]}, 3),
        ({"policy": "confidence", "exit_thresholds": "1.0,0.01,1.0"}, 2),
    ],
)
async def test_parameters_decide_the_exit(infer: Stub, parameters: dict[str, object], exit: int) -> None:
    response = await infer.ModelInfer(request(**parameters))
    assert tensors(response)["exit"].tolist() == [exit]
    assert tensors(response)["compute"].tolist() == pytest.approx([RATIOS[exit - 1]])
    if "lambda" in parameters:
        assert response.parameters["lambda"].double_param == float(parameters["lambda"])  # type: ignore[arg-type]


async def test_the_same_picture_in_every_form_gets_the_same_answer(infer: Stub) -> None:
    pixels = pictures()
    file = io.BytesIO()
    Image.fromarray(pixels[0]).save(file, "PNG")
    encoded = oip.ModelInferRequest()
    encoded.inputs.add(name="image", datatype="BYTES", shape=[1]).contents.bytes_contents.append(file.getvalue())
    values = ((pixels / np.float32(255) - np.float32(0.5)) / np.float32(0.25)).transpose(0, 3, 1, 2)
    normalised = oip.ModelInferRequest(raw_input_contents=[values.astype("<f4").tobytes()])
    normalised.inputs.add(name="image", datatype="FP32", shape=values.shape)
    plain = oip.ModelInferRequest()
    plain.inputs.add(name="image", datatype="UINT8", shape=pixels.shape).contents.uint_contents.extend(pixels.ravel().tolist())
    probabilities = []
    for form in (request(pixels), encoded, normalised, plain):
        form.parameters["policy"].string_param = "fixed"
        probabilities.append(tensors(await infer.ModelInfer(form))["probabilities"])
    for other in probabilities[1:]:
        np.testing.assert_allclose(other, probabilities[0], atol=1e-4)


async def test_only_what_is_asked_for_is_sent(infer: Stub) -> None:
    response = await infer.ModelInfer(request(outputs=["exit"]))
    assert [tensor.name for tensor in response.outputs] == ["exit"]
    assert len(response.raw_output_contents) == 1


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (request(lambda_=-1.0), "parameters.lambda"),
        (request(threshold=2), "parameters.threshold"),
        (request(max_mean_cost=0.5), "parameters.max_mean_cost"),
        (request(lamda=1.0), "parameters.lamda"),
        (request(pixels=np.zeros((1, 4, 4, 4), np.uint8)), "inputs[0].shape"),
        (request(outputs=["depth"]), "outputs[0].name"),
    ],
)
async def test_a_request_that_is_wrong_is_refused_by_its_field(infer: Stub, message: oip.ModelInferRequest, field: str) -> None:
    error = await failure(infer.ModelInfer(message))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error.details().startswith(field)


async def test_one_bad_picture_fails_its_request_and_leaves_nothing_in_flight(server: Server, infer: Stub) -> None:
    file = io.BytesIO()
    Image.new("RGB", (SIZE, SIZE)).save(file, "PNG")
    message = oip.ModelInferRequest()
    message.inputs.add(name="image", datatype="BYTES", shape=[3]).contents.bytes_contents.extend([file.getvalue(), b"x", b"y"])
    error = await failure(infer.ModelInfer(message))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "neither a JPEG nor a PNG" in error.details()
    await until(lambda: server.in_flight == 0)


async def test_too_many_pictures_are_refused_as_too_many_frames_are(settings: Settings) -> None:
    async with (
        Server(settings.model_copy(update={"max_batch_frames": 2})) as server,
        grpc.aio.insecure_channel(server.grpc_address) as channel,
    ):
        assert len(tensors(await Stub(channel).ModelInfer(request(pictures(2))))["exit"]) == 2
        assert (await failure(Stub(channel).ModelInfer(request(pictures(3))))).code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_timeout_drops_what_waited_too_long(settings: Settings, gate: Gate) -> None:
    async with Server(settings, gate.load) as server, grpc.aio.insecure_channel(server.grpc_address) as channel:
        gate.close()
        ahead = Stub(channel).ModelInfer(request())
        await until(lambda: server.in_flight == 1)
        call = Stub(channel).ModelInfer(request(timeout=1))
        await until(lambda: server.in_flight == 2)
        gate.open()
        assert (await failure(call)).code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert tensors(await ahead)["exit"].shape == (1,)


# --- statistics -------------------------------------------------------------------------------------------------------


async def test_statistics_count_what_was_sent_through_any_service(
    infer: Stub, stub: classification_pb2_grpc.ClassificationServiceStub
) -> None:
    (before,) = (await infer.ModelStatistics(oip.ModelStatisticsRequest())).model_stats
    assert (before.inference_count, before.execution_count, before.last_inference) == (0, 0, 0)
    await infer.ModelInfer(request(pictures(3)))
    await infer.ModelInfer(request())
    await stub.Classify(pb.ClassifyRequest(frame=native_frame()))
    await failure(infer.ModelInfer(request(lambda_=-1.0)))
    (after,) = (await infer.ModelStatistics(oip.ModelStatisticsRequest(name="tiny", version="2"))).model_stats
    counted = after.inference_stats
    assert (after.name, after.version, after.inference_count) == ("tiny", "2", 5)
    assert 3 <= after.execution_count <= 5
    assert after.last_inference > 1_600_000_000_000
    assert (counted.success.count, counted.fail.count) == (3, 1)
    parts = (counted.queue, counted.compute_input, counted.compute_infer, counted.compute_output)
    assert all(part.count == 3 and part.ns > 0 for part in parts)
    assert sum(part.ns for part in parts) <= counted.success.ns


# --- a stream ---------------------------------------------------------------------------------------------------------


async def exchange(stub: Stub, requests: Iterable[oip.ModelInferRequest], **call: object) -> list[oip.ModelStreamInferResponse]:
    return [response async for response in stub.ModelStreamInfer(iter(requests), **call)]


async def test_answers_come_in_order_each_final_with_its_id(infer: Stub) -> None:
    responses = await exchange(infer, [request(id=str(n), lambda_=float(n % 3 * 1000)) for n in range(20)])
    assert [response.infer_response.id for response in responses] == [str(n) for n in range(20)]
    assert not any(response.error_message for response in responses)
    for n, response in enumerate(responses):
        assert response.infer_response.parameters["triton_final_response"].bool_param
        assert response.infer_response.parameters["lambda"].double_param == n % 3 * 1000


async def test_an_error_stays_in_the_stream_and_names_the_id(infer: Stub) -> None:
    nobody = request(id="gone")
    nobody.model_name = "nobody"
    responses = await exchange(infer, [request(id="a"), request(id="bad", lambda_=-1.0), nobody, request(id="z")])
    assert [response.infer_response.id for response in responses] == ["a", "bad", "gone", "z"]
    assert [bool(response.error_message) for response in responses] == [False, True, True, False]
    assert "[request id: bad] INVALID_ARGUMENT: parameters.lambda" in responses[1].error_message
    assert "[request id: gone] NOT_FOUND" in responses[2].error_message


async def test_a_caller_may_have_the_first_error_as_the_calls_status(infer: Stub) -> None:
    call = infer.ModelStreamInfer(
        iter([request(id="a"), request(id="bad", lambda_=-1.0), request(id="z")]), metadata=(("triton_grpc_error", "true"),)
    )
    assert (await call.read()).infer_response.id == "a"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.details().startswith("parameters.lambda")


async def test_a_stream_without_a_request_ends_well(infer: Stub) -> None:
    assert await exchange(infer, []) == []


async def test_a_batch_larger_than_the_window_still_goes_through(settings: Settings) -> None:
    async with (
        Server(settings.model_copy(update={"stream_window": 2})) as server,
        grpc.aio.insecure_channel(server.grpc_address) as channel,
    ):
        responses = await exchange(Stub(channel), [request(pictures(5), id=str(n)) for n in range(3)])
        assert [len(tensors(response.infer_response)["exit"]) for response in responses] == [5, 5, 5]


async def test_the_window_stops_the_reader(settings: Settings, gate: Gate) -> None:
    narrow = settings.model_copy(update={"stream_window": 3})
    async with Server(narrow, gate.load) as server, grpc.aio.insecure_channel(server.grpc_address) as channel:
        gate.close()
        call = Stub(channel).ModelStreamInfer(iter([request(id=str(n)) for n in range(10)]))
        reading = asyncio.create_task(collect(call))
        await until(lambda: server.in_flight == 3)
        unary = Stub(channel).ModelInfer(request())  # the engine has room: only the stream is held back
        await until(lambda: server.in_flight == 4)
        gate.open()
        assert [response.infer_response.id for response in await reading] == [str(n) for n in range(10)]
        await unary


async def collect(call: AsyncIterator[oip.ModelStreamInferResponse]) -> list[oip.ModelStreamInferResponse]:
    return [response async for response in call]


async def test_streams_of_both_services_share_their_bound(settings: Settings) -> None:
    async with (
        Server(settings.model_copy(update={"max_streams": 1})) as server,
        grpc.aio.insecure_channel(server.grpc_address) as channel,
    ):
        call = Stub(channel).ModelStreamInfer()
        await call.write(request(id="a"))
        assert (await call.read()).infer_response.id == "a"
        native = classification_pb2_grpc.ClassificationServiceStub(channel).StreamClassify()
        assert await native.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert len(await exchange(Stub(channel), [request()])) == 1


async def test_a_cancelled_stream_leaves_nothing_in_flight(settings: Settings, gate: Gate) -> None:
    async with Server(settings, gate.load) as server, grpc.aio.insecure_channel(server.grpc_address) as channel:
        gate.close()
        call = Stub(channel).ModelStreamInfer()
        await call.write(request(pictures(3)))
        await until(lambda: server.in_flight == 3)
        call.cancel()
        gate.open()
        await until(lambda: server.in_flight == 0)


async def test_draining_answers_what_was_read_and_refuses_the_rest_inside_the_stream(
    settings: Settings, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "CLOSE_GRACE_S", PATIENCE_S)
    async with started(Server(settings, gate.load)) as server, grpc.aio.insecure_channel(server.grpc_address) as channel:
        gate.close()
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        call = Stub(channel).ModelStreamInfer()
        for n in range(3):
            await call.write(request(id=str(n)))
        await until(lambda: server.in_flight == 3)
        stopping = asyncio.create_task(server.shutdown())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        await call.write(request(id="late"))
        gate.open()
        responses = [await call.read() for _ in range(4)]
        assert [response.infer_response.id for response in responses] == ["0", "1", "2", "late"]
        assert [bool(response.error_message) for response in responses] == [False, False, False, True]
        assert "[request id: late] UNAVAILABLE" in responses[3].error_message
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        await stopping


async def test_a_stream_that_its_caller_does_not_close_ends_as_unavailable(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "CLOSE_GRACE_S", 0.0)
    async with started(Server(settings)) as server, grpc.aio.insecure_channel(server.grpc_address) as channel:
        call = Stub(channel).ModelStreamInfer()
        await call.write(request(id="a"))
        assert (await call.read()).infer_response.id == "a"
        stopping = asyncio.create_task(server.shutdown())
        assert await call.code() is grpc.StatusCode.UNAVAILABLE
        await asyncio.wait_for(stopping, PATIENCE_S / 2)  # the drain timeout is PATIENCE_S
