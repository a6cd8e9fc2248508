"""The Open Inference Protocol on a real server, by stubs of our own."""

from __future__ import annotations

import asyncio
import io

import grpc
import grpc.aio
import httpx
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from PIL import Image

from inference import grpc_service_pb2 as oip
from inference import model_config_pb2
from offramp.v1 import classification_pb2 as pb
from offramp.v1 import classification_pb2_grpc
from offramp_server.app import Server
from offramp_server.config import Settings
from tests.integration.conftest import Gate, failure, until
from tests.integration.inference_messages import Stub, pictures, request, tensors
from tests.integration.messages import control
from tests.integration.messages import frame as native_frame
from tests.unit.server.rpc.manifests import CLASSES, EXITS, SIZE, tiny_manifest

RATIOS = tiny_manifest().costs.ratios


@pytest.fixture
def infer(channel: grpc.aio.Channel) -> Stub:
    return Stub(channel)


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
    server = Server(settings, gate.load_closed)
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
