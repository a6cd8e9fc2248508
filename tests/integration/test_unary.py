"""Classify, ModelService, health and reflection on a real server."""

from __future__ import annotations

import asyncio
import io

import grpc
import grpc.aio
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status
from PIL import Image

from offramp.v1 import classification_pb2 as pb
from offramp.v1 import classification_pb2_grpc, model_pb2, model_pb2_grpc
from offramp_server.app import Server
from offramp_server.config import Settings
from tests.integration.conftest import Gate, failure, until
from tests.integration.messages import bad_frame, control, frame
from tests.unit.server.rpc.manifests import CLASSES, EXITS, SIZE, tiny_manifest

Stub = classification_pb2_grpc.ClassificationServiceStub
COSTS = tiny_manifest().costs


async def test_a_frame_is_classified_and_its_answer_is_whole(stub: Stub) -> None:
    request = pb.ClassifyRequest(frame=frame(7, policy=pb.POLICY_FIXED, max_exit=2), top_k=3)
    result = (await stub.Classify(request)).result
    assert (result.frame_id, result.timestamp_us) == (7, 7000)
    answer = result.classification
    assert (answer.exit, answer.reason) == (2, pb.EXIT_REASON_MAX_EXIT)
    assert (answer.cost_ratio, answer.cost_macs) == (COSTS.ratios[1], COSTS.exit_macs[1])
    assert (answer.model, answer.version) == ("tiny", "2")
    assert len(answer.top) == 3
    probabilities = [each.probability for each in answer.top]
    assert probabilities == sorted(probabilities, reverse=True)
    assert {each.name for each in answer.top} <= {"cat", "dog", "frog", "ship"}
    assert len(answer.halting_probabilities) == 2
    assert answer.compute_ms > 0
    assert (answer.control.policy, answer.control.max_exit, answer.control.min_exit) == (pb.POLICY_FIXED, 2, 1)


@pytest.mark.parametrize(("asked", "given"), [(0, 1), (1, 1), (CLASSES, CLASSES), (1000, CLASSES)])
async def test_top_k_is_at_least_one_and_at_most_all(stub: Stub, asked: int, given: int) -> None:
    response = await stub.Classify(pb.ClassifyRequest(frame=frame(), top_k=asked))
    assert len(response.result.classification.top) == given
    if given == CLASSES:
        assert sum(each.probability for each in response.result.classification.top) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("fields", "exit", "reason"),
    [
        ({"lambda_": 1e6}, 1, pb.EXIT_REASON_POLICY),
        ({"lambda_": 1e300}, 1, pb.EXIT_REASON_POLICY),
        ({"lambda_": 0.0, "threshold": 1.0}, EXITS, pb.EXIT_REASON_LAST_EXIT),
        ({"lambda_": 1e6, "min_exit": 3}, 3, pb.EXIT_REASON_POLICY),
        ({"threshold": 1.0, "lambda_": 0.0, "max_exit": 2}, 2, pb.EXIT_REASON_MAX_EXIT),
        ({"threshold": 1.0, "lambda_": 0.0, "max_cost": COSTS.ratios[2]}, 3, pb.EXIT_REASON_MAX_COST),
        ({"policy": pb.POLICY_ENTROPY, "threshold": 1.0}, 1, pb.EXIT_REASON_POLICY),
        ({"policy": pb.POLICY_CONFIDENCE, "exit_thresholds": [1.0, 0.01, 1.0]}, 2, pb.EXIT_REASON_POLICY),
        ({"policy": pb.POLICY_FIXED}, EXITS, pb.EXIT_REASON_LAST_EXIT),
    ],
)
async def test_the_control_decides_the_exit(stub: Stub, fields: dict[str, object], exit: int, reason: int) -> None:
    answer = (await stub.Classify(pb.ClassifyRequest(frame=frame(**fields)))).result.classification
    assert (answer.exit, answer.reason) == (exit, reason)


async def test_the_same_picture_in_every_form_gets_the_same_answer(stub: Stub) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    normalised = ((pixels / np.float32(255) - np.float32(0.5)) / np.float32(0.25)).transpose(2, 0, 1)
    forms = [
        pb.Frame(rgb8=pb.RawImage(data=pixels.tobytes(), height=SIZE, width=SIZE)),
        pb.Frame(encoded=file.getvalue()),
        pb.Frame(tensor=pb.FloatTensor(data=normalised.astype("<f4").tobytes(), shape=normalised.shape)),
    ]
    top = []
    for form in forms:
        form.control.CopyFrom(control(policy=pb.POLICY_FIXED))
        response = await stub.Classify(pb.ClassifyRequest(frame=form, top_k=CLASSES))
        top.append({each.label: each.probability for each in response.result.classification.top})
    assert top[1] == pytest.approx(top[0], abs=1e-5)
    assert top[2] == pytest.approx(top[0], abs=1e-4)


@pytest.mark.parametrize(
    ("request_", "code", "field"),
    [
        (pb.ClassifyRequest(), grpc.StatusCode.INVALID_ARGUMENT, "frame"),
        (pb.ClassifyRequest(frame=pb.Frame()), grpc.StatusCode.INVALID_ARGUMENT, "frame.image"),
        (pb.ClassifyRequest(frame=bad_frame()), grpc.StatusCode.INVALID_ARGUMENT, "frame.rgb8.data"),
        (pb.ClassifyRequest(frame=frame(lambda_=-1.0)), grpc.StatusCode.INVALID_ARGUMENT, "frame.control.lambda"),
        (pb.ClassifyRequest(model="nobody", frame=frame()), grpc.StatusCode.NOT_FOUND, None),
        (pb.ClassifyRequest(version="9", frame=frame()), grpc.StatusCode.NOT_FOUND, None),
    ],
)
async def test_an_error_has_its_code_its_details_and_a_request_id(
    stub: Stub, request_: pb.ClassifyRequest, code: grpc.StatusCode, field: str | None
) -> None:
    call = stub.Classify(request_, metadata=(("x-request-id", "abc-1"),))
    error = await failure(call)
    assert error.code() is code
    assert dict(error.trailing_metadata())["x-request-id"] == "abc-1"
    status = await rpc_status.aio.from_call(call)
    if field is None:
        assert "tiny" in error.details() or "version" in error.details()
    else:
        detail = error_details_pb2.BadRequest()
        assert status.details[0].Unpack(detail)
        assert detail.field_violations[0].field == field


async def test_a_call_without_a_request_id_gets_one_of_its_own(stub: Stub) -> None:
    ids = set()
    for metadata in ((), (), (("x-request-id", "not one token"),)):
        call = stub.Classify(pb.ClassifyRequest(frame=frame()), metadata=metadata)
        await call
        ids.add(dict(await call.trailing_metadata())["x-request-id"])
    assert len(ids) == 3
    assert "not one token" not in ids


async def test_versions_are_chosen_and_the_newest_is_the_default(tiny_settings_both: Settings) -> None:
    async with Server(tiny_settings_both) as server, grpc.aio.insecure_channel(server.grpc_address) as channel:
        stub = Stub(channel)
        for asked, given in (("", "2"), ("1", "1"), ("2", "2")):
            response = await stub.Classify(pb.ClassifyRequest(version=asked, frame=frame()))
            assert response.result.classification.version == given
        models = (await model_pb2_grpc.ModelServiceStub(channel).ListModels(model_pb2.ListModelsRequest())).models
        assert [(m.name, m.version, m.is_default, m.frames_classified) for m in models] == [
            ("tiny", "2", True, 2),
            ("tiny", "1", False, 1),
        ]


@pytest.fixture
def tiny_settings_both(settings: Settings) -> Settings:
    return settings.model_copy(update={"models": ("tiny:1", "tiny:2")})


async def test_a_model_tells_what_to_expect_of_it(channel: grpc.aio.Channel) -> None:
    model = (await model_pb2_grpc.ModelServiceStub(channel).GetModel(model_pb2.GetModelRequest())).model
    manifest = tiny_manifest()
    assert (model.name, model.version, model.input_height, model.input_width) == ("tiny", "2", SIZE, SIZE)
    assert tuple(model.labels) == manifest.labels
    assert [each.macs for each in model.exits] == list(manifest.costs.exit_macs)
    assert [each.accuracy for each in model.exits] == list(manifest.exit_accuracies)
    assert model.full_macs == manifest.costs.full_macs
    assert list(model.router_lambdas) == [0.0, 0.5, 2.0]
    assert {each.policy: each.threshold for each in model.default_thresholds} == {1: 0.5, 2: 0.3, 3: 0.9}
    assert [point.mean_cost for point in model.operating_points] == [0.3, 0.9]
    assert getattr(model.operating_points[0].control, "lambda") == 2.0
    assert (model.backend, model.device) == ("torch", "cpu, float32")
    assert model.default_control.policy == pb.POLICY_ROUTER


async def test_an_operating_points_control_can_be_sent_as_it_came(stub: Stub, channel: grpc.aio.Channel) -> None:
    model = (await model_pb2_grpc.ModelServiceStub(channel).GetModel(model_pb2.GetModelRequest())).model
    sent = frame()
    sent.control.CopyFrom(model.operating_points[0].control)
    answer = (await stub.Classify(pb.ClassifyRequest(frame=sent))).result.classification
    assert answer.control == sent.control


async def test_too_much_in_flight_is_refused_with_a_time_to_come_back(settings: Settings, gate: Gate) -> None:
    small = settings.model_copy(update={"max_in_flight": 2})
    async with Server(small, gate.load) as server, grpc.aio.insecure_channel(server.grpc_address) as channel:
        stub = Stub(channel)
        gate.close()
        calls = [stub.Classify(pb.ClassifyRequest(frame=frame())) for _ in range(2)]
        await until(lambda: server.in_flight == 2)
        refused = stub.Classify(pb.ClassifyRequest(frame=frame()))
        error = await failure(refused)
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        status = await rpc_status.aio.from_call(refused)
        detail = error_details_pb2.RetryInfo()
        assert status.details[0].Unpack(detail)
        assert detail.retry_delay.ToMilliseconds() > 0
        gate.open()
        assert all(response.result.classification.exit for response in await asyncio.gather(*calls))


async def test_a_cancelled_call_leaves_nothing_in_flight(settings: Settings, gate: Gate) -> None:
    async with Server(settings, gate.load) as server, grpc.aio.insecure_channel(server.grpc_address) as channel:
        gate.close()
        call = Stub(channel).Classify(pb.ClassifyRequest(frame=frame()))
        await until(lambda: server.in_flight == 1)
        call.cancel()
        gate.open()
        await until(lambda: server.in_flight == 0)


async def test_a_fault_of_ours_is_internal_and_tells_nothing(settings: Settings, gate: Gate) -> None:
    async with Server(settings, gate.load) as server, grpc.aio.insecure_channel(server.grpc_address) as channel:

        def fail(*_: object) -> None:
            raise RuntimeError("secret")

        gate.backends[0].run_stage = fail  # type: ignore[method-assign,assignment]
        error = await failure(Stub(channel).Classify(pb.ClassifyRequest(frame=frame())))
        assert error.code() is grpc.StatusCode.INTERNAL
        assert "secret" not in error.details()


async def test_health_is_serving_for_the_server_and_each_service(channel: grpc.aio.Channel) -> None:
    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", "offramp.v1.ClassificationService", "offramp.v1.ModelService"):
        response = await health.Check(health_pb2.HealthCheckRequest(service=service))
        assert response.status == health_pb2.HealthCheckResponse.SERVING
    assert (await failure(health.Check(health_pb2.HealthCheckRequest(service="nobody")))).code() is grpc.StatusCode.NOT_FOUND


async def test_reflection_lists_the_services(channel: grpc.aio.Channel) -> None:
    call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
    await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
    listed = {service.name for service in (await call.read()).list_services_response.service}
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
    assert {"offramp.v1.ClassificationService", "offramp.v1.ModelService", "grpc.health.v1.Health"} <= listed
