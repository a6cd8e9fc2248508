"""The model repository as servicers see it: what the store holds, in which state, and orders to load and unload."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from offramp_server.errors import ModelNotFoundError

State = Literal["READY", "LOADING", "UNLOADING", "UNAVAILABLE"]


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One model version of the store."""

    name: str
    version: int
    state: State
    reason: str
    """Why it is not ready."""


@dataclass(frozen=True, slots=True)
class VersionPolicy:
    """Which of a model's versions to serve."""

    latest: int | None = 1
    """So many of the newest; None for all."""
    specific: tuple[int, ...] = ()
    """These, where any is given."""

    def choose(self, name: str, available: Sequence[int]) -> tuple[int, ...]:
        """Of `available` versions in ascending order. Raises ModelNotFoundError where one is not among them."""
        if not available:
            raise ModelNotFoundError(f"there is no model {name!r} in the store")
        for version in self.specific:
            if version not in available:
                there = ", ".join(map(str, available))
                raise ModelNotFoundError(f"model {name!r} has no version {version} in the store: there is {there}")
        return self.specific or tuple(available[-self.latest :] if self.latest is not None else available)


class ModelRepository(Protocol):
    """What servicers need of the repository."""

    async def index(self) -> list[IndexEntry]:
        """Every model version in the store or served, by name and version."""
        ...

    async def load(self, name: str, policy: VersionPolicy) -> None:
        """Serve the versions of a model that the policy chooses, and no others of it.

        Raises ModelNotFoundError or ModelLoadError; what was served then goes on being served.
        """
        ...

    async def unload(self, name: str) -> None:
        """Serve no version of a model; calls in flight are answered. Raises ModelNotFoundError where none is served."""
        ...
