"""What the protocol has and this server does not: answered with UNIMPLEMENTED and the reason."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from offramp_server.errors import UnsupportedError
from offramp_server.rpc.oip.tensors import SHARED_MEMORY


def _refuse(reason: str) -> Callable[[Any, Any, Any], Awaitable[Any]]:
    async def refuse(self: object, request: object, context: object) -> None:
        raise UnsupportedError(reason)

    return refuse


class UnsupportedMethods:
    """RPCs that are refused."""

    SystemSharedMemoryStatus = SystemSharedMemoryRegister = SystemSharedMemoryUnregister = _refuse(SHARED_MEMORY)
    CudaSharedMemoryStatus = CudaSharedMemoryRegister = CudaSharedMemoryUnregister = _refuse(SHARED_MEMORY)
    TraceSetting = _refuse("trace settings can't be read or changed over the wire")
    LogSettings = _refuse(
        "log settings can't be read or changed over the wire: start the server with --log-level and --log-format"
    )
