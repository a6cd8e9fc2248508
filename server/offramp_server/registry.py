"""The served models while the server runs: loaded, swapped and unloaded without losing a frame."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor

from offramp_model.bundle import Bundle, BundleError, BundleNotFoundError, BundleStore
from offramp_server.errors import ModelLoadError, ModelNotFoundError, OfframpError
from offramp_server.rpc.models import Catalogue, ServedModel
from offramp_server.rpc.repository import IndexEntry, State, VersionPolicy

logger = logging.getLogger(__name__)


class ModelRegistry:
    """Implements rpc.repository.ModelRepository.

    A version is opened, built and warmed up beside those that are served; only when all that was asked for runs does the
    catalogue turn to it, in one step. What is replaced goes on serving the calls that use it, and closes after the last.
    """

    def __init__(
        self,
        store: BundleStore,
        catalogue: Catalogue,
        start_model: Callable[[Bundle], Awaitable[ServedModel]],
        executor: Executor,
        changed: Callable[[], Awaitable[None]],
    ) -> None:
        """`start_model` builds a model and warms it up; bundles are read in `executor`; `changed` follows the catalogue."""
        self._store, self._catalogue, self._start_model, self._changed = store, catalogue, start_model, changed
        self._executor = executor
        self._turn = asyncio.Lock()
        self._loading: set[tuple[str, int]] = set()
        self._retiring: dict[ServedModel, asyncio.Task[None]] = {}
        self._reasons: dict[tuple[str, int], str] = {}
        """Why a version that was once asked for is not served, or its reload failed."""

    @property
    def in_flight(self) -> int:
        """Frames admitted and not yet answered, of all models."""
        return sum(model.engine.in_flight for model in (*self._catalogue.models, *self._retiring))

    async def start(self, bundles: Sequence[Bundle]) -> None:
        """Serve these, the first of which is the default model. Raises what building one raises, and then serves none."""
        models: list[ServedModel] = []
        try:
            for bundle in bundles:
                models.append(await self._start_model(bundle))
        except BaseException:
            await _close(models)
            raise
        self._catalogue.publish(models)
        await self._changed()

    async def close(self) -> None:
        """Close every model; frames still in flight fail."""
        for task in self._retiring.values():
            task.cancel()
        await asyncio.gather(*self._retiring.values(), return_exceptions=True)
        await _close([*self._catalogue.models, *self._retiring])

    async def index(self) -> list[IndexEntry]:
        """Every model version in the store or served, by name and version."""
        served = {_key(model) for model in self._catalogue.models}
        retiring = {_key(model) for model in self._retiring}
        entries = []
        for key in sorted({*await asyncio.to_thread(self._list_store), *served, *retiring}):
            state, reason = self._describe(key, served, retiring)
            entries.append(IndexEntry(*key, state, reason))
        return entries

    async def load(self, name: str, policy: VersionPolicy) -> None:
        """Serve the versions of a model that the policy chooses, and no others of it.

        A version that is served and has not changed in the store stays as it is. Raises ModelNotFoundError or
        ModelLoadError; what was served then goes on being served.
        """
        async with self._turn:
            versions = dict.fromkeys(policy.choose(name, await asyncio.to_thread(self._store.versions, name)))
            served = {model.manifest.version: model for model in self._catalogue.models if model.name == name}
            models: list[ServedModel] = []
            try:
                for version in versions:
                    self._loading.add((name, version))
                    models.append(await self._load_version(name, version, served.get(version)))
            except BaseException:
                await _close([model for model in models if model not in served.values()])
                raise
            finally:
                self._loading.clear()
            self._replace(name, models)
            await self._changed()
        logger.info("loaded", extra={"model": name, "versions": list(versions)})

    async def unload(self, name: str) -> None:
        """Serve no version of a model; calls in flight are answered. Raises ModelNotFoundError where none is served."""
        async with self._turn:
            if not any(model.name == name for model in self._catalogue.models):
                raise ModelNotFoundError(f"no model {name!r} is loaded")
            self._replace(name, [])
            await self._changed()
        logger.info("unloaded", extra={"model": name})

    async def _load_version(self, name: str, version: int, served: ServedModel | None) -> ServedModel:
        try:
            bundle = await asyncio.get_running_loop().run_in_executor(self._executor, self._store.open, name, version)
            if served is not None and served.manifest == bundle.manifest:
                model = served
            else:
                model = await self._start_model(bundle)
        except BundleNotFoundError:
            raise ModelNotFoundError(f"model {name!r} has no version {version} in the store any more") from None
        except Exception as error:
            refusal = self._refuse(name, version, error)
            self._reasons[name, version] = str(refusal)
            raise refusal from error
        self._reasons.pop((name, version), None)
        return model

    def _refuse(self, name: str, version: int, error: Exception) -> OfframpError:
        if isinstance(error, BundleError):
            reason = f"{error.path.name}: {error.reason}"
            logger.error("can't load: %s", error, extra={"model": name, "version": version})
        else:
            reason = "it can't be run here; the server's log has the reason"
            logger.error("can't load", exc_info=error, extra={"model": name, "version": version})
        return ModelLoadError(f"version {version} of {name!r} can't be loaded: {reason}")

    def _replace(self, name: str, models: Sequence[ServedModel]) -> None:
        former = [model for model in self._catalogue.models if model.name == name and model not in models]
        self._catalogue.replace(name, models)
        for model in former:
            self._retiring[model] = asyncio.create_task(self._retire(model), name="retire")

    async def _retire(self, model: ServedModel) -> None:
        await model.calls.wait_idle()
        await model.engine.close()
        del self._retiring[model]
        if not any(_key(other) == _key(model) for other in self._catalogue.models):  # else its like has taken its place
            self._reasons.setdefault(_key(model), "it was unloaded")
            model.metrics.model_retired()
        logger.info("retired", extra={"model": model.name, "version": model.version})

    def _list_store(self) -> list[tuple[str, int]]:
        return [(name, version) for name in self._store.names() for version in self._store.versions(name)]

    def _describe(self, key: tuple[str, int], served: set[tuple[str, int]], retiring: set[tuple[str, int]]) -> tuple[State, str]:
        if key in served:
            return "READY", self._reasons.get(key, "")
        if key in self._loading:
            return "LOADING", "it is being loaded"
        if key in retiring:
            return "UNLOADING", "the last calls that use it are being answered"
        return "UNAVAILABLE", self._reasons.get(key, "it is not loaded")


def _key(model: ServedModel) -> tuple[str, int]:
    return model.name, model.manifest.version


async def _close(models: Sequence[ServedModel]) -> None:
    for model in models:
        await model.engine.close()
