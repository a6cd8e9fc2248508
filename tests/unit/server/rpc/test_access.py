"""Every method of every service has its place in the table of scopes."""

from __future__ import annotations

from inference import grpc_service_pb2
from offramp.v1 import classification_pb2, model_pb2
from offramp_server.rpc.access import CLASSIFY, OPEN, find_scope

METHODS = {
    f"/{service.full_name}/{method.name}"
    for module in (classification_pb2, model_pb2, grpc_service_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
ADMIN = {
    "RepositoryIndex",
    "RepositoryModelLoad",
    "RepositoryModelUnload",
    "SystemSharedMemoryStatus",
    "SystemSharedMemoryRegister",
    "SystemSharedMemoryUnregister",
    "CudaSharedMemoryStatus",
    "CudaSharedMemoryRegister",
    "CudaSharedMemoryUnregister",
    "TraceSetting",
    "LogSettings",
}


def test_the_table_names_methods_that_there_are() -> None:
    assert METHODS >= CLASSIFY | OPEN
    assert not CLASSIFY & OPEN


def test_what_changes_or_shows_the_servers_own_state_needs_admin() -> None:
    assert {method.rpartition("/")[2] for method in METHODS if find_scope(method) == "admin"} == ADMIN


def test_a_method_that_nobody_thought_of_needs_admin() -> None:
    assert find_scope("/inference.GRPCInferenceService/New") == "admin"
    assert find_scope("/offramp.v1.ClassificationService/ServerLive") == "admin"
