"""The connection to a server: single images, streams, models and health."""

from __future__ import annotations

import asyncio
import re
import weakref
from collections.abc import Awaitable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self, Unpack

import grpc
from grpc import aio  # type: ignore[attr-defined, unused-ignore]  # newer stubs leave it out
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped, unused-ignore]

from offramp.v1 import classification_pb2_grpc, model_pb2, model_pb2_grpc
from offramp_client import convert
from offramp_client.errors import CredentialsError, DeadlineExceededError, RequestError, UnavailableError
from offramp_client.streaming import Call, ClassificationStream, Frames, StreamOptions
from offramp_client.tls import Tls
from offramp_client.types import Classification, Control, ControlFields, Frame, Health, Image, Model, ModelSummary

VISIBLE = re.compile(r"[!-~]+")
OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)
"""Without it gRPC would share one connection among all clients of a server in a process."""


class Client:
    """A connection to one Offramp server, for one event loop.

    async with Client("localhost:50051") as client:
        async for result in client.stream(frames, lambda_=0.5):
            print(result.unwrap().name)

    Nothing is sent before the first call. Many calls and streams may run at the same time. Every method raises the
    subclass of `RequestError` that fits, when the server refuses or fails the call.
    """

    def __init__(
        self,
        address: str,
        *,
        timeout_s: float = 30.0,
        tls: Tls | None = None,
        token: str = "",
        metadata: Sequence[tuple[str, str]] = (),
    ) -> None:
        """Name a server.

        Args:
            address: `host:port`, or any other gRPC target.
            timeout_s: limit of every call but a stream.
            tls: whom to trust and what to show; None talks in the clear. `Tls()` trusts the public authorities.
            token: sent with every call, for a server that asks who is there. Without TLS it travels in the clear.
            metadata: sent with every call, such as a trace's `traceparent`.

        Raises:
            CredentialsError: a file of `tls` or the token is of no use.
        """
        self.address = address
        self._timeout_s, self._metadata = timeout_s, (*metadata, *_bearer(token))
        self._credentials = tls.credentials() if tls is not None else None
        self._options = [("grpc.ssl_target_name_override", tls.authority)] if tls is not None and tls.authority else []
        self._connected: _Stubs | None = None
        self._streams: weakref.WeakSet[ClassificationStream] = weakref.WeakSet()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def close(self) -> None:
        """End all streams and close the connection."""
        for stream in list(self._streams):
            await stream.aclose()
        connected, self._connected = self._connected, None
        if connected is not None:
            await connected.channel.close()

    def stream(
        self,
        frames: Frames,
        *,
        model: str = "",
        version: str = "",
        control: Control | None = None,
        ordered: bool = True,
        top_k: int = 1,
        window: int = 32,
        raise_errors: bool = False,
        timeout_s: float | None = None,
        **fields: Unpack[ControlFields],
    ) -> ClassificationStream:
        """Classify frames as they come; iterate over what is returned.

        Args:
            frames: images or `Frame`s, from any iterable or async iterable. One that is not a list, tuple or async
                iterable is read in a thread, so it may block.
            model: empty for the server's default.
            version: empty for the newest that is loaded; the stream stays with it. With `latest` it moves to newer ones.
            control: the stream's choice between accuracy and compute.
            ordered: whether results come in the order of frames, or as they finish.
            top_k: class probabilities in each result.
            window: frames that may be sent and not yet taken as results; the source is read no further than that.
            raise_errors: raise the error of a frame in place of returning it, which ends the stream.
            timeout_s: limit of the whole stream; None for none.
            fields: fields of `Control`, on top of `control`.

        Raises:
            InvalidRequestError: a value is not one that the wire can carry.

        While iterating it raises the source's own exceptions, and a `RequestError` when the stream as a whole fails.
        """
        options = StreamOptions(model, version, ordered, top_k, window, raise_errors)

        stream = ClassificationStream(
            partial(self.open_call, timeout_s), frames, (control or Control()).with_fields(**fields), options
        )
        self._streams.add(stream)
        return stream

    def open_call(self, timeout_s: float | None = None) -> Call:
        """Open a bare StreamClassify call, for a program that writes its messages itself, as the load generator does.

        Whoever opens it ends it.
        """
        call: Call = self._stubs.classification.StreamClassify(timeout=timeout_s, metadata=self._metadata)
        return call

    async def classify(
        self,
        image: Image | Frame,
        *,
        model: str = "",
        version: str = "",
        control: Control | None = None,
        top_k: int = 1,
        timeout_s: float | None = None,
        **fields: Unpack[ControlFields],
    ) -> Classification:
        """Classify one image; the arguments are those of `stream`. A `Frame`'s own control wins field by field.

        Raises:
            RequestError: the subclass that fits.
        """
        frame = image if isinstance(image, Frame) else Frame(image)
        message = convert.frame_to_wire(frame, frame.frame_id or 0)
        chosen = (control or Control()).with_fields(**fields).under(frame.control)
        message.control.CopyFrom(convert.control_to_wire(chosen, "frame.control"))
        request = convert.classify_to_wire(model, version, message, top_k)
        limit = self._timeout_s if timeout_s is None else timeout_s
        response = await _answer(self._stubs.classification.Classify(request, timeout=limit, metadata=self._metadata))
        return convert.result_from_wire(response.result, latency_ms=0.0).unwrap()

    async def models(self) -> list[ModelSummary]:
        """Return every loaded model version: sorted by name, newest version first."""
        request = model_pb2.ListModelsRequest()
        response = await _answer(self._stubs.models.ListModels(request, timeout=self._timeout_s, metadata=self._metadata))
        return [convert.summary_from_wire(summary) for summary in response.models]

    async def model(self, name: str = "", version: str = "") -> Model:
        """Return one model version with its costs and operating points; empty means the default, and the newest.

        Raises:
            NotFoundError: no such model or version is loaded.
        """
        request = model_pb2.GetModelRequest(model=name, version=version)
        response = await _answer(self._stubs.models.GetModel(request, timeout=self._timeout_s, metadata=self._metadata))
        return convert.model_from_wire(response.model)

    async def health(self, service: str = "") -> Health:
        """Return whether the server, or one named service of it, answers requests; does not raise when nobody listens."""
        request = health_pb2.HealthCheckRequest(service=service)
        try:
            response = await _answer(self._stubs.health.Check(request, timeout=self._timeout_s, metadata=self._metadata))
        except UnavailableError:
            return Health(False, "UNREACHABLE")
        except RequestError as error:
            if error.code != "NOT_FOUND":
                raise
            return Health(False, "SERVICE_UNKNOWN")
        return _health(response.status)

    async def wait_until_serving(self, timeout_s: float) -> None:
        """Return once the server answers requests, however late it starts listening.

        Raises:
            DeadlineExceededError: it did not within `timeout_s`.
        """
        try:
            async with asyncio.timeout(timeout_s):
                while not await self._watch_until_serving():
                    pass
        except TimeoutError:
            raise DeadlineExceededError(
                f"{self.address} is not serving after {timeout_s:g} s", code="DEADLINE_EXCEEDED"
            ) from None

    async def _watch_until_serving(self) -> bool:
        call = self._stubs.health.Watch(health_pb2.HealthCheckRequest(), wait_for_ready=True, metadata=self._metadata)
        try:
            async for response in call:
                if _health(response.status).serving:
                    return True
        except aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                raise convert.error_from_rpc(error) from None
        finally:
            call.cancel()
        return False

    @property
    def _stubs(self) -> _Stubs:
        # Made at the first call, since a channel belongs to the event loop that runs then.
        if self._connected is None:
            if self._credentials is None:
                channel = aio.insecure_channel(self.address, OWN_CONNECTION)
            else:
                channel = aio.secure_channel(self.address, self._credentials, (*OWN_CONNECTION, *self._options))
            self._connected = _Stubs(channel)
        return self._connected


class _Stubs:
    """A channel and the generated, untyped, callers on it."""

    def __init__(self, channel: aio.Channel) -> None:
        self.channel = channel
        self.classification: Any = classification_pb2_grpc.ClassificationServiceStub(channel)  # type: ignore[no-untyped-call]
        self.models: Any = model_pb2_grpc.ModelServiceStub(channel)  # type: ignore[no-untyped-call]
        self.health: Any = health_pb2_grpc.HealthStub(channel)


def _bearer(token: str) -> tuple[tuple[str, str], ...]:
    if not token:
        return ()
    if not VISIBLE.fullmatch(token):
        raise CredentialsError("the token holds blanks, line ends or letters beyond ASCII: give it as it was made")
    return (("authorization", f"Bearer {token}"),)


async def _answer(call: Awaitable[Any]) -> Any:
    try:
        return await call
    except aio.AioRpcError as error:
        raise convert.error_from_rpc(error) from None


def _health(status: int) -> Health:
    names = {value: name for name, value in health_pb2.HealthCheckResponse.ServingStatus.items()}
    return Health(status == health_pb2.HealthCheckResponse.SERVING, names.get(status, "UNKNOWN"))
