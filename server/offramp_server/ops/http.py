"""The HTTP side: /metrics, /livez and /readyz, read-only, by uvicorn on the server's own loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from prometheus_client import CollectorRegistry, make_asgi_app

CLOSE_TIMEOUT_S = 1


def make_app(registry: CollectorRegistry, is_ready: Callable[[], bool]) -> Any:
    """An ASGI application: metrics of `registry`, alive as long as it answers, ready when `is_ready` says so."""
    metrics = make_asgi_app(registry)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["method"] not in ("GET", "HEAD"):
            await _send_text(send, 405, "only GET and HEAD are served here", (b"allow", b"GET, HEAD"))
        elif scope["path"] == "/metrics":
            await metrics(scope, receive, send)
        elif scope["path"] == "/livez":
            await _send_text(send, 200, "alive")
        elif scope["path"] == "/readyz":
            ready = is_ready()
            await _send_text(send, 200 if ready else 503, "ready" if ready else "not ready")
        else:
            await _send_text(send, 404, "there are /metrics, /livez and /readyz")

    return app


async def _send_text(send: Any, status: int, text: str, *more: tuple[bytes, bytes]) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"cache-control", b"no-store"), *more]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": f"{text}\n".encode()})


class HttpServer:
    """uvicorn as a task of the running loop."""

    def __init__(self, app: Any) -> None:
        config = uvicorn.Config(
            app,
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=CLOSE_TIMEOUT_S,
        )
        self._server = _QuietServer(config)
        self._task: asyncio.Task[None] | None = None

    def start(self, host: str, port: int) -> int:
        """Listen, port 0 meaning a free one, and serve; returns the port. Raises OSError."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family)
        self._task = asyncio.create_task(self._server.serve([listener]), name="http")
        bound: int = listener.getsockname()[1]
        return bound

    async def stop(self) -> None:
        """Close the port and idle connections; those that are being answered get CLOSE_TIMEOUT_S seconds."""
        if self._task is not None:
            self._server.should_exit = True
            await self._task


class _QuietServer(uvicorn.Server):
    """The application owns the signals: uvicorn would otherwise take SIGTERM away from the gRPC side's drain."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
