"""The loaded models as servicers see them, and their lookup by name and version."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from offramp_model.bundle import Manifest
from offramp_server.engine.types import Answer, Frame
from offramp_server.errors import ModelNotFoundError, UnavailableError
from offramp_server.rpc.control import ModelControls


class FrameEngine(Protocol):
    """What servicers need of an engine."""

    frames_answered: int

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
        """A frame was refused before it reached the engine: `invalid` or `overloaded`."""
        ...


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One loaded model version."""

    manifest: Manifest
    controls: ModelControls
    engine: FrameEngine
    metrics: CallMetrics
    backend: str
    """Runtime, such as `torch`."""
    device: str
    """Device and number format, such as `cpu, float32`."""

    @property
    def name(self) -> str:
        """The model's name."""
        return self.manifest.name

    @property
    def version(self) -> str:
        """The model's version as the wire has it."""
        return str(self.manifest.version)


class Catalogue:
    """The loaded models; empty until the server is ready."""

    def __init__(self) -> None:
        self.models: tuple[ServedModel, ...] = ()
        """Every loaded model version, by name, newest version first."""
        self._default = ""

    def publish(self, models: Sequence[ServedModel]) -> None:
        """Serve these, the first of which is the default model."""
        self.models = tuple(sorted(models, key=lambda model: (model.name, -model.manifest.version)))
        self._default = models[0].name

    def find(self, name: str, version: str) -> ServedModel:
        """The model of that name and version; empty strings mean the default model and its newest version.

        Raises ModelNotFoundError, or UnavailableError while no model is ready.
        """
        if not self.models:
            raise UnavailableError("no model is ready yet: wait until the health service says SERVING")
        wanted = name or self._default
        versions = [model for model in self.models if model.name == wanted]
        if not versions:
            loaded = ", ".join(sorted({model.name for model in self.models}))
            raise ModelNotFoundError(f"no model {wanted!r} is loaded: there is {loaded}")
        if not version:
            return versions[0]
        for model in versions:
            if model.version == version:
                return model
        loaded = ", ".join(model.version for model in versions)
        raise ModelNotFoundError(f"model {wanted!r} has no version {version!r} loaded: there is {loaded}")
