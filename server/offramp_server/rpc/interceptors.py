"""What every call of ours passes through: a request id, the error map, and a count of calls that are open."""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import grpc
import grpc.aio
from grpc_status import rpc_status

from offramp_server.errors import ExecutionError, OfframpError
from offramp_server.rpc.calls import OpenCalls
from offramp_server.rpc.status import write_status

logger = logging.getLogger(__name__)

REQUEST_ID_HEADER = "x-request-id"
REQUEST_ID_PATTERN = re.compile(r"[!-~]{1,128}")  # what may stand in a header and on one line of a log

_request_id: ContextVar[str] = ContextVar("request_id", default="")

Handler = Callable[[Any, grpc.aio.ServicerContext[Any, Any]], Awaitable[Any]]


def current_request_id() -> str:
    """The id of the call that is being served, empty outside a call."""
    return _request_id.get()


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Gives every call an id (the caller's, or a new one), which goes back in the trailing metadata and into every log line.

    Errors become the status that rpc/status.py says; what is no OfframpError is logged and becomes INTERNAL, without a word
    of it on the wire. Health and reflection pass untouched.
    """

    def __init__(self, services: frozenset[str], open_calls: OpenCalls) -> None:
        """`services` are the full names of those to wrap."""
        self._services, self._open_calls = services, open_calls

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wrap the handler of a call."""
        handler = await continuation(handler_call_details)
        if handler is None or handler_call_details.method.split("/")[1] not in self._services:
            return handler
        make: Callable[..., grpc.RpcMethodHandler[Any, Any]]
        behaviour: Any  # the stubs know the synchronous kind alone
        if handler.stream_stream is not None:
            make, behaviour = grpc.stream_stream_rpc_method_handler, handler.stream_stream
        else:
            make, behaviour = grpc.unary_unary_rpc_method_handler, handler.unary_unary
        return make(self._wrap(behaviour), handler.request_deserializer, handler.response_serializer)

    def _wrap(self, behaviour: Handler) -> Handler:
        async def serve(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            request_id = _take_request_id(context)
            _request_id.set(request_id)  # each call is a task of its own, so nothing needs resetting
            context.set_trailing_metadata(((REQUEST_ID_HEADER, request_id),))
            with self._open_calls:
                try:
                    return await behaviour(request, context)
                except grpc.aio.AbortError:
                    raise
                except OfframpError as error:
                    await _abort(context, error, request_id)
                except Exception:
                    logger.exception("a call failed")
                    await _abort(
                        context, ExecutionError(f"the server failed; its log has the reason under {request_id}"), request_id
                    )

        return serve


def _take_request_id(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    for key, value in context.invocation_metadata() or ():
        if key == REQUEST_ID_HEADER and isinstance(value, str) and REQUEST_ID_PATTERN.fullmatch(value):
            return value
    return uuid.uuid4().hex


async def _abort(context: grpc.aio.ServicerContext[Any, Any], error: OfframpError, request_id: str) -> None:
    status = rpc_status.to_status(write_status(error))
    await context.abort(status.code, status.details, (*status.trailing_metadata, (REQUEST_ID_HEADER, request_id)))
