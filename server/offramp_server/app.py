"""The server as a whole: run → serve → startup, wait for a signal, shutdown."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Protocol

import uvloop
from prometheus_client import CollectorRegistry

from offramp_model.bundle import Bundle, BundleError, BundleNotFoundError, BundleStore
from offramp_server.backends import BATCHES_A_SHARE, Wish, load_backend
from offramp_server.config import DEFAULT_MODEL, Settings
from offramp_server.engine.engine import Engine
from offramp_server.engine.types import Backend, EngineLimits
from offramp_server.ops.drift import DriftWindow
from offramp_server.ops.http import HttpServer, make_app
from offramp_server.ops.logging import configure_logging
from offramp_server.ops.metrics import MetricFamilies, ModelMetrics, register_process_metrics
from offramp_server.registry import ModelRegistry
from offramp_server.rpc.call import Tracing, current_fields
from offramp_server.rpc.classification import ClassificationLimits
from offramp_server.rpc.control import ModelControls, price_table_of
from offramp_server.rpc.images import ImageReader
from offramp_server.rpc.models import Catalogue, ServedModel
from offramp_server.rpc.oip.service import ServerIdentity
from offramp_server.rpc.server import Doors, GrpcServer
from offramp_server.rpc.stream import StreamLimits
from offramp_server.security.certificates import CertificateError, ServerCertificates
from offramp_server.security.tokens import Tokens, TokensError

logger = logging.getLogger(__name__)

PENDING_CALLS = 10_000
"""Beyond the streams that are open, how many calls may wait for the event loop."""


class CloseableTracing(Tracing, Protocol):
    """Tracing that the server closes when it stops."""

    def close(self) -> None:
        """Send what has not been sent; may block."""
        ...


class StartupError(Exception):
    """The server can't start; the message is one line."""


class Server:
    """The server without its signals. `async with Server(settings) as server` has it ready inside and drained after."""

    def __init__(
        self,
        settings: Settings,
        load_backend: Callable[[Bundle, str], Backend] | None = None,
        clock: Callable[[], float] = time.monotonic,
        tracing: CloseableTracing | None = None,
    ) -> None:
        """`load_backend` takes a bundle and the device setting, in place of choosing by the settings; `clock` gives the seconds
        that deadlines are measured in; `tracing` is in place of what the setting says.
        """
        self._settings, self._load_backend, self._clock = settings, load_backend or self._choose_backend, clock
        self._registry = CollectorRegistry()
        self._catalogue = Catalogue()
        self._families: MetricFamilies | None = None
        self._http = HttpServer(make_app(self._registry, lambda: self._grpc is not None and self._grpc.is_ready))
        self._grpc: GrpcServer | None = None
        self._tracing = tracing
        # networks run off the loop, and engines take turns there: torch's batches one at a time, on all cores or a GPU,
        # OpenVINO's several at once
        self._device = ThreadPoolExecutor(1, "device")
        self._cores = ThreadPoolExecutor(BATCHES_A_SHARE * (os.cpu_count() or 1), "core")
        self._decoders = ThreadPoolExecutor(settings.decode_threads, "decode")
        # loading and warming up beside it, so that a new version keeps nobody waiting
        self._loader = ThreadPoolExecutor(1, "load")
        self._store = BundleStore(settings.store, settings.allow_factory)
        self._models = ModelRegistry(self._store, self._catalogue, self._start_model, self._loader, self._update_health)
        self.grpc_address = self.http_address = ""
        """host:port, once started."""

    @property
    def in_flight(self) -> int:
        """Frames admitted and not yet answered, of all models."""
        return self._models.in_flight

    async def __aenter__(self) -> Server:
        try:
            await self.startup()
        except BaseException:
            await self.shutdown()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.shutdown()

    async def startup(self) -> None:
        """Listen, not ready; load and warm up the models; then be ready. Raises StartupError."""
        register_process_metrics(self._registry, version("offramp"))
        await self._listen()
        await self._load_models()
        addresses = {"grpc": self.grpc_address, "http": self.http_address}
        if path := self._settings.ready_file:
            _write_whole(path, json.dumps(addresses) + "\n")
        models = ", ".join(f"{model.name}:{model.version}" for model in self._catalogue.models)
        logger.info("serving", extra={**addresses, "models": models})

    async def shutdown(self) -> None:
        """Be not ready, end streams, answer what is in flight within the drain timeout, close."""
        if path := self._settings.ready_file:
            path.unlink(missing_ok=True)
        if self._grpc is not None:
            await self._grpc.stop(self._settings.drain_timeout_s)
        await self._models.close()
        await self._http.stop()
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)  # sends what is left, to a collector that may be slow
        for executor in (self._device, self._cores, self._decoders, self._loader):
            executor.shutdown(wait=False, cancel_futures=True)
        logger.info("stopped")

    async def _listen(self) -> None:
        settings = self._settings
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        try:
            self.http_address = f"{host}:{self._http.start(settings.host, settings.http_port)}"
        except OSError as error:
            raise StartupError(f"http_port: can't listen on {host}:{settings.http_port}: {error.strerror}") from error
        images = ImageReader(self._decoders, settings.max_image_pixels, settings.max_in_flight)
        limits = ClassificationLimits(settings.max_streams, StreamLimits(settings.stream_window, settings.max_batch_frames))
        identity = ServerIdentity(version("offramp"), settings.model_control == "explicit")
        options = _channel_options(settings)
        if settings.tracing and self._tracing is None:
            self._tracing = _load_tracing()
        doors = _open_doors(settings, self._clock, self._tracing)
        self._grpc = GrpcServer(self._catalogue, self._models, images, limits, identity, options, self._clock, doors)
        try:
            self.grpc_address = f"{host}:{await self._grpc.start(host, settings.grpc_port)}"
        except RuntimeError as error:
            raise StartupError(f"grpc_port: can't listen on {host}:{settings.grpc_port}: is it taken?") from error

    async def _load_models(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            bundles = await loop.run_in_executor(self._loader, choose_models, self._store, self._settings.models)
            self._families = MetricFamilies(self._registry, max(bundle.manifest.network.exits for bundle in bundles))
            await self._models.start(bundles)
        except (BundleError, BundleNotFoundError) as error:
            raise StartupError(str(error)) from error
        except (RuntimeError, AssertionError) as error:  # what torch raises for a device that it doesn't know or have
            raise StartupError(f"device: {self._settings.device} can't be used: {str(error).splitlines()[0]}") from error

    async def _start_model(self, bundle: Bundle) -> ServedModel:
        """Build a model and warm it up, off the loop and off the device's thread."""
        loop = asyncio.get_running_loop()
        backend = await loop.run_in_executor(self._loader, self._load_backend, bundle, self._settings.device)
        assert self._families is not None
        manifest, costs, runtime = bundle.manifest, bundle.manifest.costs, (backend.name, backend.device_description)
        names = (manifest.name, str(manifest.version))
        controls = ModelControls(manifest)
        drift = DriftWindow(controls.default.frame_control, manifest.drift_histograms(), self._settings.drift_window)
        metrics = ModelMetrics(self._families, names, runtime, costs.exit_macs, costs.full_macs, drift, backend.reason)
        limits = EngineLimits(self._settings.max_batch, self._settings.max_in_flight, self._settings.max_stage_wait_ms)
        executor = self._cores if backend.name == "openvino" else self._device
        engine = Engine(backend, limits, metrics, executor, self._clock, price_table_of(manifest))
        await engine.start(self._loader)
        return ServedModel(manifest, controls, engine, metrics, *runtime, backend_reason=backend.reason)

    def _choose_backend(self, bundle: Bundle, device: str) -> Backend:
        settings = self._settings
        threads = settings.openvino_threads, settings.torch_threads
        return load_backend(bundle, Wish(settings.backend, settings.precision, device, *threads))

    async def _update_health(self) -> None:
        assert self._grpc is not None
        await self._grpc.update_health()


def run(settings: Settings) -> int:
    """Serve until told to stop; returns the exit code."""
    configure_logging(settings.log_level, settings.log_format, current_fields)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(serve(settings))


async def serve(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT, then drain; a second one ends the process at once."""
    signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, signals.put_nowait, number)
    server = Server(settings)
    signalled = asyncio.create_task(signals.get())
    startup = asyncio.create_task(server.startup())
    await asyncio.wait({startup, signalled}, return_when=asyncio.FIRST_COMPLETED)
    code = 0
    if not startup.done():
        startup.cancel()
    try:
        await startup
        await signalled
    except asyncio.CancelledError:
        pass
    except StartupError as error:
        logger.error("%s", error)
        code = 1
    if signalled.done():
        logger.info("draining", extra={"signal": signalled.result().name, "in_flight": server.in_flight})
    else:
        signalled.cancel()
    shutdown, again = asyncio.create_task(server.shutdown()), asyncio.create_task(signals.get())
    await asyncio.wait({shutdown, again}, return_when=asyncio.FIRST_COMPLETED)
    if not shutdown.done():
        logger.warning("told twice to stop: leaving %d frames unanswered", server.in_flight)
        logging.shutdown()
        os._exit(128 + again.result())
    again.cancel()
    await shutdown
    return code


def choose_models(store: BundleStore, wanted: tuple[str, ...]) -> list[Bundle]:
    """Open the bundles that the `models` setting names, or the default one. Raises BundleError or BundleNotFoundError."""
    if not wanted:
        names = store.names()
        wanted = (names[0] if len(names) == 1 else DEFAULT_MODEL,)
    bundles: dict[tuple[str, int], Bundle] = {}
    for model in wanted:
        name, _, version = model.partition(":")
        bundle = store.open(name, int(version) if version else None)
        bundles.setdefault((bundle.manifest.name, bundle.manifest.version), bundle)
    return list(bundles.values())


def _load_tracing() -> CloseableTracing:
    """Raises StartupError."""
    try:
        from offramp_server.ops.tracing import OpenTelemetry  # only here: who does not trace need not have it
    except ImportError as error:
        raise StartupError(f"tracing: needs an optional package, pip install 'offramp[otel]' ({error})") from None
    return OpenTelemetry(version("offramp"))


def _open_doors(settings: Settings, clock: Callable[[], float], tracing: Tracing | None) -> Doors:
    """Raises StartupError."""
    certificates = tokens = None
    try:
        if settings.tls_cert_file is not None and settings.tls_key_file is not None:
            certificates = ServerCertificates(settings.tls_cert_file, settings.tls_key_file, settings.tls_client_ca_file)
        if settings.tokens_file is not None:
            tokens = Tokens(settings.tokens_file, clock)
    except (CertificateError, TokensError) as error:
        raise StartupError(str(error)) from None
    return Doors(certificates, tokens, tracing)


def _channel_options(settings: Settings) -> list[tuple[str, int]]:
    options = [
        ("grpc.so_reuseport", 0),  # else a second server on a taken port would silently get half of its calls
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        # gRPC refuses at random between these two, and always beyond the second: both the same, so that the bound is one
        ("grpc.max_metadata_size", settings.max_metadata_bytes),
        ("grpc.absolute_max_metadata_size", settings.max_metadata_bytes),
        # calls that wait until the loop takes them; gRPC ends those beyond, by default from 1,000 on, as CANCELLED without a word
        ("grpc.server.max_pending_requests", settings.max_streams + PENDING_CALLS),
        ("grpc.server.max_pending_requests_hard_limit", settings.max_streams + PENDING_CALLS),
        ("grpc.keepalive_time_ms", round(settings.keepalive_time_s * 1000)),
        ("grpc.keepalive_timeout_ms", round(settings.keepalive_timeout_s * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", round(settings.min_ping_interval_s * 1000)),
    ]
    if settings.max_connection_age_s:
        options.append(("grpc.max_connection_age_ms", round(settings.max_connection_age_s * 1000)))
        options.append(("grpc.max_connection_age_grace_ms", round(settings.drain_timeout_s * 1000)))
    return options


def _write_whole(path: Path, text: str) -> None:
    """Write beside and rename, so that a reader sees all or nothing. Raises StartupError."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text)
        beside.replace(path)
    except OSError as error:
        raise StartupError(f"ready_file: can't write {path}: {error.strerror}") from error
