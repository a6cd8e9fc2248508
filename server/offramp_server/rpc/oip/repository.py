"""The repository on the wire: which versions a load asks for, and the index."""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf import json_format

from inference import grpc_service_pb2 as oip
from inference import model_config_pb2
from offramp_server.errors import InvalidRequestError, UnsupportedError
from offramp_server.rpc.repository import IndexEntry, VersionPolicy

CONFIG_PATH = "parameters.config"


def check_repository(name: str) -> None:
    """Raises UnsupportedError where a repository is named: there is one, without a name."""
    if name:
        raise UnsupportedError("repository_name: this server has one repository, its store: leave the name out")


def read_load(request: oip.RepositoryModelLoadRequest) -> VersionPolicy:
    """The versions to serve. Raises InvalidRequestError or UnsupportedError."""
    _check_name(request.model_name)
    policy = VersionPolicy()
    for name, value in request.parameters.items():
        if name == "config":
            policy = _read_config(request.model_name, value.string_param)
        elif name.startswith("file:"):
            raise UnsupportedError(f"parameters.{name[:80]}: files are not taken over the wire: publish a bundle in the store")
        else:
            raise InvalidRequestError(f"parameters.{name}", "is no parameter of this server: give `config`")
    return policy


def read_unload(request: oip.RepositoryModelUnloadRequest) -> str:
    """The model to unload. Raises InvalidRequestError."""
    _check_name(request.model_name)
    for name in request.parameters:
        if name != "unload_dependents":  # there are no models made of others here
            raise InvalidRequestError(f"parameters.{name}", "is no parameter of this server")
    return request.model_name


def write_index(entries: Iterable[IndexEntry], ready: bool) -> oip.RepositoryIndexResponse:
    """All entries, or only those that are ready."""
    return oip.RepositoryIndexResponse(
        models=[
            oip.RepositoryIndexResponse.ModelIndex(
                name=entry.name, version=str(entry.version), state=entry.state, reason=entry.reason
            )
            for entry in entries
            if entry.state == "READY" or not ready
        ]
    )


def _check_name(name: str) -> None:
    if not name:
        raise InvalidRequestError("model_name", "is missing: name the model")


def _read_config(name: str, text: str) -> VersionPolicy:
    config = model_config_pb2.ModelConfig()
    try:
        json_format.Parse(text, config)
    except json_format.ParseError as error:
        reason = " ".join(str(error).split())[:200]
        raise InvalidRequestError(CONFIG_PATH, f"can't be read ({reason}): give JSON such as {EXAMPLE}") from None
    others = {field.name for field, _ in config.ListFields()} - {"name", "version_policy"}
    if others or config.name not in ("", name):
        what = ", ".join(sorted(others)) or "name"
        raise UnsupportedError(f"{CONFIG_PATH}: {what} can't be changed here: give version_policy alone, such as {EXAMPLE}")
    policy = config.version_policy
    match policy.WhichOneof("policy_choice"):
        case "specific":
            if not policy.specific.versions:
                raise InvalidRequestError(CONFIG_PATH, "names no version: give one, or unload the model")
            return VersionPolicy(specific=tuple(policy.specific.versions))
        case "all":
            return VersionPolicy(latest=None)
        case _:
            return VersionPolicy(latest=policy.latest.num_versions or 1)


EXAMPLE = '{"version_policy": {"specific": {"versions": [2]}}}'
