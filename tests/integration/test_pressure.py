"""Deadlines and overload on the wire: early answers, a larger λ in place of a refusal, and several results in one message."""

from __future__ import annotations

import grpc.aio
import numpy as np
import pytest
from torch import Tensor

from offramp.v1 import classification_pb2 as pb
from offramp.v1 import classification_pb2_grpc
from offramp_model.bundle import Bundle
from offramp_server.app import Server
from offramp_server.backends.torch_backend import TorchBackend
from offramp_server.config import Settings
from offramp_server.engine.types import StageResult
from tests.integration.conftest import Gate, until
from tests.integration.messages import config, frame, send

Stub = classification_pb2_grpc.ClassificationServiceStub
LAST = pb.POLICY_FIXED


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class SlowBackend(TorchBackend):
    """Every stage takes a second of the clock that `load` was given."""

    def __init__(self, bundle: Bundle, clock: Clock) -> None:
        super().__init__(bundle, "cpu")
        self._clock = clock

    def run_stage(self, exit: int, features: Tensor, earlier_NEC: np.ndarray) -> StageResult:
        self._clock.now += 1.0
        return super().run_stage(exit, features, earlier_NEC)


@pytest.mark.parametrize(("budget_ms", "exit", "reason"), [(2500, 2, "DEADLINE"), (4500, 4, "LAST_EXIT")])
async def test_a_frame_is_answered_in_time_by_the_exit_that_it_has_reached(
    settings: Settings, budget_ms: int, exit: int, reason: str
) -> None:
    clock = Clock()
    async with (
        Server(settings, lambda bundle, device: SlowBackend(bundle, clock), clock) as server,
        grpc.aio.insecure_channel(server.grpc_address) as channel,
    ):
        asked = frame(policy=LAST, max_latency_ms=budget_ms, allow_early_answer=True)
        answer = (await Stub(channel).Classify(pb.ClassifyRequest(frame=asked))).result.classification
        assert (answer.exit, answer.reason) == (exit, pb.ExitReason.Value(f"EXIT_REASON_{reason}"))
        assert (answer.control.max_latency_ms, answer.control.allow_early_answer) == (budget_ms, True)
        patient = frame(threshold=1.0, max_latency_ms=500)
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await Stub(channel).Classify(pb.ClassifyRequest(frame=patient))
        assert refusal.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_overload_raises_lambda_for_those_who_allow_it_and_refuses_the_others(settings: Settings, gate: Gate) -> None:
    small = settings.model_copy(update={"max_in_flight": 4})
    async with Server(small, gate.load) as server, grpc.aio.insecure_channel(server.grpc_address) as channel:
        gate.close()
        call = Stub(channel).StreamClassify()
        await call.write(config(allow_degrade=True, threshold=1.0))
        for number in range(4):
            await call.write(send(frame(number)))
        await call.write(send(frame(4, allow_degrade=False)))
        for number in (5, 6):
            await call.write(send(frame(number)))
        await call.done_writing()
        await until(lambda: server.in_flight == 5)
        gate.open()
        results = [response.result async for response in call if response.HasField("result")]
    errors = {result.frame_id: result.error for result in results if result.HasField("error")}
    assert sorted(errors) == [4, 6]
    assert all(error.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0] and error.retry_after_ms for error in errors.values())
    answers = {result.frame_id: result.classification for result in results if result.HasField("classification")}
    used = [getattr(answers[number].control, "lambda") for number in (0, 1, 2, 3, 5)]
    # the asked-for 0.5 costs 0.75 by the operating points, λ = 2 costs 0.3; half-way between, λ = 1.25 costs 0.525
    assert used == pytest.approx([0.5, 0.5, 0.5, 1.25, 2.0])
    assert [answers[number].degraded for number in (0, 1, 2, 3, 5)] == [False, False, False, True, True]


@pytest.mark.parametrize("batched", [False, True])
async def test_results_that_are_ready_together_come_in_one_message_where_asked(
    settings: Settings, gate: Gate, batched: bool
) -> None:
    async with Server(settings, gate.load) as server, grpc.aio.insecure_channel(server.grpc_address) as channel:
        gate.close()
        asked = config(policy=LAST, max_exit=1)
        asked.config.batch_results = batched
        call = Stub(channel).StreamClassify()
        await call.write(asked)
        for number in range(8):
            await call.write(send(frame(number)))
        await call.done_writing()
        await until(lambda: server.in_flight == 8)
        gate.open()
        groups = [
            list(response.results.results) if response.HasField("results") else [response.result]
            async for response in call
            if not response.HasField("status")
        ]
    assert [result.frame_id for group in groups for result in group] == list(range(8))
    # the first frame may have entered a batch by itself, and all others went together
    assert (len(groups) <= 2) if batched else (len(groups) == 8)
