"""ModelService: what is loaded and what it may be expected to give."""

from __future__ import annotations

from typing import Any

import grpc.aio

from offramp.v1 import model_pb2, model_pb2_grpc
from offramp_server.rpc.convert import write_model, write_summary
from offramp_server.rpc.models import Catalogue


class ModelServicer(model_pb2_grpc.ModelServiceServicer):
    """Implements offramp.v1.ModelService."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    async def ListModels(  # noqa: N802  # the wire's name
        self, request: model_pb2.ListModelsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> model_pb2.ListModelsResponse:
        """Every loaded model version; empty while none is ready."""
        models = self._catalogue.models
        default = self._catalogue.find("", "") if models else None
        return model_pb2.ListModelsResponse(models=[write_summary(model, model is default) for model in models])

    async def GetModel(  # noqa: N802  # the wire's name
        self, request: model_pb2.GetModelRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> model_pb2.GetModelResponse:
        """One model version. Raises ModelNotFoundError or UnavailableError."""
        return model_pb2.GetModelResponse(model=write_model(self._catalogue.find(request.model, request.version)))
