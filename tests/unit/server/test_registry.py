"""The registry: versions are swapped in one step, the old ones close after their last call, what is broken changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from offramp_model.bundle import Bundle, BundleStore
from offramp_model.network import MultiExitResNet
from offramp_model.weights import publish_bundle
from offramp_server.engine.types import Answer, Frame
from offramp_server.errors import ModelLoadError, ModelNotFoundError, UnavailableError
from offramp_server.registry import ModelRegistry
from offramp_server.rpc.control import ModelControls
from offramp_server.rpc.models import Catalogue, ServedModel
from offramp_server.rpc.repository import VersionPolicy
from tests.unit.server.rpc.manifests import tiny_manifest


class FakeEngine:
    """Implements rpc.models.FrameEngine; only its closing matters."""

    def __init__(self) -> None:
        self.frames_answered = self.batches_entered = self.in_flight = 0
        self.closed = asyncio.Event()

    def submit(self, frame: Frame) -> asyncio.Future[Answer]:
        raise AssertionError("no frame is sent here")

    async def close(self) -> None:
        self.closed.set()


class FakeMetrics:
    """Implements rpc.models.CallMetrics."""

    def __init__(self) -> None:
        self.retired = False

    def stream_opened(self) -> None: ...

    def stream_closed(self) -> None: ...

    def frame_refused(self, reason: str) -> None: ...

    def model_retired(self) -> None:
        self.retired = True


class House:
    """A registry on a store of three versions, with what it did."""

    def __init__(self, root: Path, executor: ThreadPoolExecutor) -> None:
        self.store = BundleStore(root)
        self.catalogue = Catalogue()
        self.started: list[ServedModel] = []
        self.fail_on: int | None = None
        self.states: list[tuple[str, ...]] = []
        """The versions served after each change."""
        self.during: list[tuple[str, str]] = []
        """The index while a version was starting: version and state."""
        self.registry = ModelRegistry(self.store, self.catalogue, self.start, executor, self.changed)

    async def start(self, bundle: Bundle) -> ServedModel:
        self.during += [(str(entry.version), entry.state) for entry in await self.registry.index()]
        if bundle.manifest.version == self.fail_on:
            raise RuntimeError("secret detail of the machine")
        manifest = bundle.manifest
        model = ServedModel(manifest, ModelControls(manifest), FakeEngine(), FakeMetrics(), "fake", "none")
        self.started.append(model)
        return model

    async def changed(self) -> None:
        self.states.append(self.versions)

    @property
    def versions(self) -> tuple[str, ...]:
        return tuple(model.version for model in self.catalogue.models)

    async def index(self) -> dict[int, tuple[str, str]]:
        return {entry.version: (entry.state, entry.reason) for entry in await self.registry.index()}


def publish(root: Path, version: int, seed: int = 0) -> None:
    manifest = tiny_manifest(version=version)
    torch.manual_seed(seed)
    publish_bundle(root, manifest, MultiExitResNet(manifest.network).state_dict(), {})


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


@pytest.fixture
async def house(tmp_path: Path, executor: ThreadPoolExecutor) -> AsyncIterator[House]:
    """Serves version 1 of three."""
    for version in (1, 2, 3):
        publish(tmp_path, version)
    house = House(tmp_path, executor)
    await house.registry.start([house.store.open("tiny", 1)])
    yield house
    await house.registry.close()


def closed(model: ServedModel) -> bool:
    assert isinstance(model.engine, FakeEngine)
    return model.engine.closed.is_set()


async def wait_closed(model: ServedModel) -> None:
    assert isinstance(model.engine, FakeEngine)
    await asyncio.wait_for(model.engine.closed.wait(), 60)


async def test_a_load_swaps_to_the_newest_version_in_one_step(house: House) -> None:
    first = house.catalogue.find("tiny", "")
    await house.registry.load("tiny", VersionPolicy())
    assert house.states == [("1",), ("3",)]
    await wait_closed(first)
    assert first.metrics.retired  # type: ignore[attr-defined]
    assert await house.index() == {
        1: ("UNAVAILABLE", "it was unloaded"),
        2: ("UNAVAILABLE", "it is not loaded"),
        3: ("READY", ""),
    }


async def test_while_a_version_is_loading_the_old_one_is_ready(house: House) -> None:
    house.during.clear()
    await house.registry.load("tiny", VersionPolicy())
    assert house.during == [("1", "READY"), ("2", "UNAVAILABLE"), ("3", "LOADING")]


async def test_an_old_version_closes_after_its_last_call(house: House) -> None:
    first = house.catalogue.find("tiny", "")
    with first.calls:
        await house.registry.load("tiny", VersionPolicy())
        assert (await house.index())[1] == ("UNLOADING", "the last calls that use it are being answered")
        assert not closed(first)
    await wait_closed(first)
    assert (await house.index())[1][0] == "UNAVAILABLE"


async def test_several_versions_can_be_served_and_those_that_stay_are_not_loaded_again(house: House) -> None:
    first = house.catalogue.find("tiny", "1")
    await house.registry.load("tiny", VersionPolicy(latest=None))
    assert house.versions == ("3", "2", "1")
    assert house.catalogue.find("tiny", "1") is first
    await house.registry.load("tiny", VersionPolicy(specific=(1, 2, 1)))
    assert house.versions == ("2", "1")
    assert len(house.started) == 3
    assert house.catalogue.find("tiny", "1") is first


@pytest.mark.parametrize("damage", ["weights", "runtime"])
async def test_a_broken_version_leaves_the_old_one_serving_and_says_why(house: House, damage: str) -> None:
    if damage == "weights":
        weights = house.store.root / "tiny" / "3" / "weights.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"\x00\x00")
    else:
        house.fail_on = 3
    first = house.catalogue.find("tiny", "")
    with pytest.raises(ModelLoadError) as caught:
        await house.registry.load("tiny", VersionPolicy(latest=2))
    assert "version 3 of 'tiny'" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert str(house.store.root) not in str(caught.value)
    assert house.versions == ("1",)
    assert not closed(first)
    assert closed(house.started[-1])  # version 2, which was whole, and was asked for together with the broken one
    state, reason = (await house.index())[3]
    assert state == "UNAVAILABLE"
    assert ("weights.safetensors" in reason) == (damage == "weights")
    assert len(house.states) == 1


async def test_a_version_that_was_mended_loads_and_its_reason_goes(house: House) -> None:
    house.fail_on = 3
    with pytest.raises(ModelLoadError):
        await house.registry.load("tiny", VersionPolicy())
    house.fail_on = None
    await house.registry.load("tiny", VersionPolicy())
    assert (await house.index())[3] == ("READY", "")


async def test_a_version_that_changed_in_the_store_is_loaded_anew(house: House) -> None:
    first = house.catalogue.find("tiny", "1")
    folder = house.store.root / "tiny" / "1"
    folder.rename(house.store.root / "former")
    publish(house.store.root, 1, seed=7)
    await house.registry.load("tiny", VersionPolicy(specific=(1,)))
    await wait_closed(first)
    assert house.catalogue.find("tiny", "1") is not first
    assert not first.metrics.retired  # type: ignore[attr-defined]  # its like has taken its place
    assert (await house.index())[1] == ("READY", "")


async def test_an_unload_closes_every_version_and_a_load_brings_the_model_back(house: House) -> None:
    await house.registry.load("tiny", VersionPolicy(latest=2))
    models = house.catalogue.models
    await house.registry.unload("tiny")
    for model in models:
        await wait_closed(model)
    assert house.states[-1] == ()
    with pytest.raises(UnavailableError):
        house.catalogue.find("", "")
    with pytest.raises(ModelNotFoundError):
        await house.registry.unload("tiny")
    await house.registry.load("tiny", VersionPolicy())
    assert house.catalogue.find("", "").version == "3"


async def test_what_is_not_in_the_store_is_not_found(house: House) -> None:
    with pytest.raises(ModelNotFoundError):
        await house.registry.load("nobody", VersionPolicy())
    with pytest.raises(ModelNotFoundError):
        await house.registry.load("tiny", VersionPolicy(specific=(9,)))
    with pytest.raises(ModelNotFoundError):
        await house.registry.load("../tiny", VersionPolicy())
    assert house.versions == ("1",)


async def test_a_served_version_stays_in_the_index_when_the_store_loses_it(house: House) -> None:
    (house.store.root / "tiny" / "1").rename(house.store.root / "former")
    assert (await house.index())[1] == ("READY", "")


async def test_loads_take_turns(house: House) -> None:
    await asyncio.gather(
        house.registry.load("tiny", VersionPolicy(specific=(2,))), house.registry.load("tiny", VersionPolicy(specific=(3,)))
    )
    assert house.states == [("1",), ("2",), ("3",)]
    await asyncio.gather(*(wait_closed(model) for model in house.started if model.version != "3"))


async def test_a_failed_start_leaves_nothing_open(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    for version in (1, 2):
        publish(tmp_path, version)
    house = House(tmp_path, executor)
    house.fail_on = 2
    with pytest.raises(RuntimeError, match="secret"):
        await house.registry.start([house.store.open("tiny", 1), house.store.open("tiny", 2)])
    assert closed(house.started[0])
    assert house.versions == ()


async def test_closing_closes_what_is_served_and_what_still_drains(house: House) -> None:
    first = house.catalogue.find("tiny", "")
    first.calls.enter()
    await house.registry.load("tiny", VersionPolicy())
    await house.registry.close()
    assert closed(first)
    assert all(closed(model) for model in house.started)
