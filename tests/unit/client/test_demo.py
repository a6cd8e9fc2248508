"""The film: the same for the same seed, and with effects that can be seen."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from offramp_client import SourceError
from offramp_client import demo as film
from offramp_client.demo import SHOT_FRAMES, Demo, DemoFrame


@pytest.fixture(scope="module")
def demo() -> Demo:
    return Demo(seed=0)


def sharpness(frame: DemoFrame) -> float:
    return float(np.abs(np.diff(frame.image.astype(np.float32), axis=1)).mean())


def test_frames_are_as_promised(demo: Demo) -> None:
    for number, frame in enumerate(itertools.islice(demo, 3)):
        assert frame.image.shape == (96, 96, 3)
        assert frame.image.dtype == np.uint8
        assert np.array_equal(frame.image, demo.frame(number).image)
    assert Demo(side=32).frame(0).image.shape == (32, 32, 3)


def test_the_same_seed_shows_the_same_film_and_another_another(demo: Demo) -> None:
    for number in (0, 40, 70, 500):
        assert np.array_equal(Demo(seed=0).frame(number).image, demo.frame(number).image)
    assert not np.array_equal(Demo(seed=1).frame(40).image, demo.frame(40).image)


def test_every_photograph_is_in_the_wheel_and_is_shown(demo: Demo) -> None:
    captions = {demo.frame(shot * SHOT_FRAMES).caption for shot in range(len(film.PHOTOGRAPHS))}
    assert captions == {f"{photograph.caption}, clear" for photograph in film.PHOTOGRAPHS}
    assert demo.frame(0).caption == "cat, clear"


def test_smoke_and_blur_come_and_go_in_every_shot(demo: Demo) -> None:
    for shot in range(len(film.PHOTOGRAPHS)):
        frames = [demo.frame(shot * SHOT_FRAMES + number) for number in (*range(0, SHOT_FRAMES, 8), SHOT_FRAMES - 1)]
        smoke, blur = [frame.smoke for frame in frames], [frame.blur for frame in frames]
        assert (smoke[0], blur[0], smoke[-1]) == (0, 0, 0)
        assert max(smoke) > 0.95
        assert max(blur) > 0.95


def test_effects_take_detail_away(demo: Demo) -> None:
    for shot in range(len(film.PHOTOGRAPHS)):
        frames = [demo.frame(shot * SHOT_FRAMES + number) for number in (0, 40, 72)]
        clear = frames[0]
        smoked = max(frames, key=lambda frame: frame.smoke)
        blurred = max(frames, key=lambda frame: frame.blur)
        assert smoked.image.std() < 0.6 * clear.image.std(), smoked.caption
        assert sharpness(blurred) < 0.6 * sharpness(clear), blurred.caption


def test_the_camera_moves_between_clear_frames(demo: Demo) -> None:
    first, later = demo.frame(0).image.astype(int), demo.frame(12).image.astype(int)
    assert np.abs(first - later).mean() > 5


def test_a_missing_photograph_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(film, "PHOTOGRAPHS", (film.Photograph("dodo", "dodo.png", 0.5, 0.5, 1.0),))
    with pytest.raises(SourceError, match=r"dodo\.png"):
        Demo()
