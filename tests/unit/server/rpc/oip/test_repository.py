"""Which versions a load asks for."""

from __future__ import annotations

import pytest

from inference import grpc_service_pb2 as oip
from offramp_server.errors import InvalidRequestError, ModelNotFoundError, UnsupportedError
from offramp_server.rpc.oip.repository import check_repository, read_load, read_unload, write_index
from offramp_server.rpc.repository import IndexEntry, VersionPolicy


def load(config: str | None = None, name: str = "tiny") -> VersionPolicy:
    request = oip.RepositoryModelLoadRequest(model_name=name)
    if config is not None:
        request.parameters["config"].string_param = config
    return read_load(request)


@pytest.mark.parametrize(
    ("config", "versions"),
    [
        (None, (4,)),
        ("{}", (4,)),
        ('{"name": "tiny", "version_policy": {"latest": {}}}', (4,)),
        ('{"version_policy": {"latest": {"num_versions": 2}}}', (3, 4)),
        ('{"versionPolicy": {"latest": {"numVersions": 9}}}', (1, 3, 4)),
        ('{"version_policy": {"all": {}}}', (1, 3, 4)),
        ('{"version_policy": {"specific": {"versions": [3, "1"]}}}', (3, 1)),
    ],
)
def test_the_policy_chooses_versions(config: str | None, versions: tuple[int, ...]) -> None:
    assert load(config).choose("tiny", [1, 3, 4]) == versions


@pytest.mark.parametrize("config", ["", "no json", '{"nonsense": 1}', '{"version_policy": {"specific": {}}}'])
def test_a_configuration_that_says_nothing_clear_is_refused(config: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"parameters\.config"):
        load(config)


@pytest.mark.parametrize("config", ['{"max_batch_size": 4}', '{"name": "another"}'])
def test_what_cannot_be_changed_is_unsupported(config: str) -> None:
    with pytest.raises(UnsupportedError, match=r"parameters\.config"):
        load(config)


def test_versions_that_the_store_lacks_are_not_found() -> None:
    with pytest.raises(ModelNotFoundError, match="there is 1, 2"):
        VersionPolicy(specific=(3,)).choose("tiny", [1, 2])
    with pytest.raises(ModelNotFoundError, match="no model"):
        VersionPolicy().choose("tiny", [])


def test_other_parameters_and_names_are_refused() -> None:
    request = oip.RepositoryModelLoadRequest(model_name="tiny")
    request.parameters["file:1/weights.safetensors"].bytes_param = b"weights"
    with pytest.raises(UnsupportedError, match="over the wire"):
        read_load(request)
    with pytest.raises(InvalidRequestError, match="model_name"):
        load(name="")
    with pytest.raises(UnsupportedError, match="repository_name"):
        check_repository("elsewhere")
    unload = oip.RepositoryModelUnloadRequest(model_name="tiny")
    unload.parameters["unload_dependents"].bool_param = True
    assert read_unload(unload) == "tiny"
    unload.parameters["now"].bool_param = True
    with pytest.raises(InvalidRequestError, match="now"):
        read_unload(unload)


def test_the_index_may_be_of_ready_models_alone() -> None:
    entries = [IndexEntry("tiny", 1, "UNAVAILABLE", "it is not loaded"), IndexEntry("tiny", 2, "READY", "")]
    whole = write_index(entries, ready=False).models
    assert [(entry.name, entry.version, entry.state, entry.reason) for entry in whole] == [
        ("tiny", "1", "UNAVAILABLE", "it is not loaded"),
        ("tiny", "2", "READY", ""),
    ]
    assert [entry.version for entry in write_index(entries, ready=True).models] == ["2"]
