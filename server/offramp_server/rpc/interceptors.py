"""What every call of ours passes through: who calls, a request id, the error map, the line in the log, a count of open calls."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc
import grpc.aio
from grpc_status import rpc_status

from offramp_server.errors import ExecutionError, OfframpError
from offramp_server.rpc.access import Access
from offramp_server.rpc.call import Call, Tracing
from offramp_server.rpc.calls import OpenCalls
from offramp_server.rpc.status import find_code, write_status

logger = logging.getLogger(__name__)

REQUEST_ID_HEADER = "x-request-id"
REQUEST_ID_PATTERN = re.compile(r"[!-~]{1,128}")  # what may stand in a header and on one line of a log

Metadata = Sequence[tuple[str, str | bytes]]
Context = grpc.aio.ServicerContext[Any, Any]
Handler = Callable[[Any, Context], Awaitable[Any]]


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Knows who calls, and gives every call an id (the caller's, or a new one), for the trailing metadata, log and trace alike.

    Callers who may not call are refused before anything of what they send is read. Errors become the status that
    rpc/status.py says; what is no OfframpError is logged and becomes INTERNAL, without a word of it on the wire. A stream
    leaves a line with its totals in the log; so does any other call at level debug. Health and reflection pass untouched.
    """

    def __init__(self, services: frozenset[str], open_calls: OpenCalls, access: Access, tracing: Tracing | None) -> None:
        """`services` are the full names of those to wrap."""
        self._services, self._open_calls, self._access, self._tracing = services, open_calls, access, tracing

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wrap the handler of a call."""
        handler = await continuation(handler_call_details)
        method: str = handler_call_details.method
        if handler is None or method.split("/")[1] not in self._services:
            return handler
        metadata = tuple(handler_call_details.invocation_metadata or ())
        request_id = _take_request_id(metadata)
        try:
            caller = self._access.admit(method, metadata)
        except OfframpError as error:
            # a handler of streams whatever the method is: it ends the call without reading a request
            return grpc.stream_stream_rpc_method_handler(_refuse(method, request_id, error))
        call = Call(method, request_id, caller)
        make: Callable[..., grpc.RpcMethodHandler[Any, Any]]
        behaviour: Any  # the stubs know the synchronous kind alone
        read: Any = handler.request_deserializer
        write: Any = handler.response_serializer
        if handler.stream_stream is not None:
            make, behaviour, serve = grpc.stream_stream_rpc_method_handler, handler.stream_stream, self._serve_stream
        else:
            make, behaviour, serve = grpc.unary_unary_rpc_method_handler, handler.unary_unary, self._serve

        def deserialize(data: bytes) -> Any:
            call.received_bytes += len(data)
            return read(data)

        def serialize(message: Any) -> bytes:
            data: bytes = write(message)
            call.sent_bytes += len(data)
            return data

        async def answer(request: Any, context: Context) -> Any:
            call.client = caller.name or _certificate_name(context)
            if self._tracing is not None:
                call.trace = self._tracing.begin(method, metadata, request_id, call.client)
            call.enter()  # each call is a task of its own, so nothing needs resetting
            context.set_trailing_metadata(((REQUEST_ID_HEADER, request_id),))
            return await serve(behaviour, call, request, context)

        return make(answer, deserialize, serialize)

    async def _serve_stream(self, behaviour: Handler, call: Call, request: Any, context: Context) -> None:
        async def limited(request: Any, context: Context) -> None:
            call.caller.enter_stream()
            try:
                await behaviour(request, context)
            finally:
                call.caller.leave_stream()

        await self._serve(limited, call, request, context, logging.INFO)

    async def _serve(self, behaviour: Handler, call: Call, request: Any, context: Context, level: int = logging.DEBUG) -> Any:
        started, code = time.monotonic(), "CANCELLED"
        with self._open_calls:
            try:
                response = await behaviour(request, context)
                code = "OK"
                return response
            except grpc.aio.AbortError:
                raise
            except OfframpError as error:
                code = find_code(error).name
                await _abort(context, error, call.request_id)
            except Exception as error:
                if _is_of_a_call_that_is_over(error):
                    await context.abort(grpc.StatusCode.CANCELLED, "the call was over when the server wrote to it")
                code = "INTERNAL"
                logger.exception("a call failed")
                fault = ExecutionError(f"the server failed; its log has the reason under {call.request_id}")
                await _abort(context, fault, call.request_id)
            finally:
                if call.trace is not None:
                    call.trace.end(code)
                if logger.isEnabledFor(level):
                    seconds = round(time.monotonic() - started, 6)
                    fields = {"method": call.method, "code": code, "seconds": seconds, "peer": context.peer(), **call.totals()}
                    logger.log(level, "call ended", extra=fields)


def _is_of_a_call_that_is_over(error: BaseException) -> bool:
    """Whether a handler failed only because it wrote to a caller who has gone, before gRPC came to cancel it."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(_is_of_a_call_that_is_over, error.exceptions))
    return isinstance(error, grpc.aio.InternalError)


def _refuse(method: str, request_id: str, error: OfframpError) -> Handler:
    async def refuse(_: Any, context: Context) -> None:
        fields = {"method": method, "code": find_code(error).name, "peer": context.peer(), "request_id": request_id}
        logger.info("call refused: %s", error, extra=fields)
        await _abort(context, error, request_id)

    return refuse


def _take_request_id(metadata: Metadata) -> str:
    for key, value in metadata:
        if key == REQUEST_ID_HEADER and isinstance(value, str) and REQUEST_ID_PATTERN.fullmatch(value):
            return value
    return uuid.uuid4().hex


def _certificate_name(context: Context) -> str:
    """The common name of the certificate that a caller has shown, which mutual TLS has checked; else empty."""
    for name in context.auth_context().get("x509_common_name", ()):
        return name.decode(errors="replace")[:64]
    return ""


async def _abort(context: Context, error: OfframpError, request_id: str) -> None:
    status = rpc_status.to_status(write_status(error))
    await context.abort(status.code, status.details, (*status.trailing_metadata, (REQUEST_ID_HEADER, request_id)))
