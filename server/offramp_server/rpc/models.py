"""The loaded models as servicers see them, and their lookup by name and version."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from offramp_model.bundle import Manifest
from offramp_server.engine.types import Answer, Frame
from offramp_server.errors import ModelNotFoundError, UnavailableError
from offramp_server.rpc.calls import OpenCalls
from offramp_server.rpc.control import ModelControls
from offramp_server.rpc.statistics import RequestStatistics

LATEST = "latest"
"""The version that a stream asks for in order to move to newer ones as they are loaded."""


class FrameEngine(Protocol):
    """What servicers need of an engine."""

    frames_answered: int
    batches_entered: int
    """Batches that ran stage 1."""

    @property
    def in_flight(self) -> int:
        """Frames admitted and not yet answered or dropped."""
        ...

    async def close(self) -> None:
        """Stop; frames still in flight fail."""
        ...

    def submit(self, frame: Frame) -> asyncio.Future[Answer]:
        """Admit a frame. Raises OverloadedError or UnavailableError; the future may fail with another OfframpError."""
        ...


class CallMetrics(Protocol):
    """What servicers report about one model beside what its engine reports."""

    def stream_opened(self) -> None:
        """A stream was configured."""
        ...

    def stream_closed(self) -> None:
        """A stream that was opened ended."""
        ...

    def frame_refused(self, reason: str) -> None:
        """A frame was refused before it reached the engine: `invalid`, `overloaded`, or `limited` by what its client may."""
        ...

    def model_retired(self) -> None:
        """The model version is no longer loaded."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class ServedModel:
    """One loaded model version. Whoever uses it across an `await` is counted in `calls`, and it lives until none is."""

    manifest: Manifest
    controls: ModelControls
    engine: FrameEngine
    metrics: CallMetrics
    backend: str
    """Runtime, such as `torch`."""
    device: str
    """Device and number format, such as `cpu, float32`."""
    backend_reason: str = ""
    """Why that runtime and number format were chosen."""
    calls: OpenCalls = field(default_factory=OpenCalls)
    """Calls and frames that use this version."""
    statistics: RequestStatistics = field(default_factory=RequestStatistics)

    @property
    def name(self) -> str:
        """The model's name."""
        return self.manifest.name

    @property
    def version(self) -> str:
        """The model's version as the wire has it."""
        return str(self.manifest.version)


class Catalogue:
    """The loaded models, of all services; empty until the server is ready."""

    def __init__(self) -> None:
        self.models: tuple[ServedModel, ...] = ()
        """Every loaded model version, by name, newest version first."""
        self._default = ""

    def publish(self, models: Sequence[ServedModel]) -> None:
        """Serve these, the first of which is the default model."""
        self._default = models[0].name
        self.models = tuple(sorted(models, key=lambda model: (model.name, -model.manifest.version)))

    def replace(self, name: str, models: Sequence[ServedModel]) -> None:
        """Serve these versions of a model and no others of it."""
        others = [model for model in self.models if model.name != name]
        self.models = tuple(sorted((*others, *models), key=lambda model: (model.name, -model.manifest.version)))

    def find(self, name: str, version: str) -> ServedModel:
        """The model of that name and version; empty strings mean the default model and its newest version, as does `latest`.

        Raises ModelNotFoundError, or UnavailableError while no model is ready.
        """
        if not self.models:
            raise UnavailableError("no model is ready: wait until the health service says SERVING")
        wanted = name or self._default
        versions = [model for model in self.models if model.name == wanted]
        if not versions:
            loaded = ", ".join(sorted({model.name for model in self.models}))
            raise ModelNotFoundError(f"no model {wanted!r} is loaded: there is {loaded}")
        if version in ("", LATEST):
            return versions[0]
        for model in versions:
            if model.version == version:
                return model
        loaded = ", ".join(model.version for model in versions)
        raise ModelNotFoundError(f"model {wanted!r} has no version {version!r} loaded: there is {loaded}")
