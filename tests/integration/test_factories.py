"""A bundle on a user's own stages is served where the operator allows its factory, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import grpc.aio
import pytest

from offramp.v1 import classification_pb2 as pb
from offramp.v1 import classification_pb2_grpc
from offramp_model.costs import cost_table
from offramp_model.factories import build_network, measure_stages
from offramp_model.weights import publish_bundle
from offramp_server.app import Server, StartupError
from offramp_server.config import Settings
from tests import stages
from tests.integration.messages import frame
from tests.unit.server.rpc.manifests import tiny_manifest

THREE = "tests.stages:three"


@pytest.fixture
def own(settings: Settings, tmp_path: Path) -> Settings:
    """Settings with a store that holds the model `own`, random weights on three stages of no ResNet."""
    tiny = tiny_manifest(name="own")
    network = measure_stages(tiny.network.model_copy(update={"factory": THREE}), {THREE})
    changes = {
        "architecture": "multi-exit-stages",
        "network": network,
        "costs": cost_table(network),
        "exit_accuracies": (0.6, 0.7, 0.9),
    }
    publish_bundle(tmp_path, tiny.model_copy(update=changes), build_network(network, {THREE}).state_dict(), {})
    return settings.model_copy(update={"store": tmp_path})


async def test_a_server_runs_no_code_that_a_bundle_names(own: Settings) -> None:
    calls = len(stages.imports)
    for allowed in ((), ("tests.stages:changed",)):
        with pytest.raises(StartupError, match=r"stages come from tests\.stages:three.* --allow-factory"):
            async with Server(own.model_copy(update={"allow_factory": allowed})):
                pass
    assert len(stages.imports) == calls


async def test_it_serves_what_the_operator_allowed(own: Settings) -> None:
    async with (
        Server(own.model_copy(update={"allow_factory": (THREE,)})) as server,
        grpc.aio.insecure_channel(server.grpc_address) as channel,
    ):
        stub = classification_pb2_grpc.ClassificationServiceStub(channel)
        request = pb.ClassifyRequest(model="own", frame=frame(policy=pb.POLICY_FIXED, max_exit=2))
        answer = (await stub.Classify(request)).result.classification
    assert (answer.model, answer.exit) == ("own", 2)
