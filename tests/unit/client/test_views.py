"""What people and programs see."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
from rich.console import Console

from offramp_client import Control, FrameError, Policy, Result
from offramp_client.convert import model_from_wire
from offramp_client.live import LiveView
from offramp_client.sources import SourceFrame
from offramp_client.tally import Tally
from offramp_client.views import JsonView, LinesView, control_text, exit_bar, macs_text, summary
from tests.unit.client.fake_server import model
from tests.unit.client.test_tally import SHOWN

FRAME = SourceFrame(np.zeros((96, 96, 3), np.uint8), "cat, smoke 40%")
GOOD = Result(12, 0, 3.25, replace(SHOWN, control=Control(Policy.ROUTER, 0.5, 0.6)))
BAD = Result(13, 0, 1.0, error=FrameError("INVALID_ARGUMENT", "must be >= 0", "frame.control.lambda"))


def console(width: int = 80, height: int = 24) -> tuple[Console, StringIO]:
    out = StringIO()
    return Console(file=out, width=width, height=height, force_terminal=True, color_system=None), out


def test_a_line_tells_it_all() -> None:
    out, text = console()
    view = LinesView(out, exits=4)
    view.show(FRAME, GOOD)
    view.show(FRAME, BAD)
    good, bad = text.getvalue().splitlines()
    for part in ("12", "cat", "0.90", "▮▯▯▯", "0.25", "3.2 ms", "router λ 0.5 τ 0.6", "cat, smoke 40%"):
        assert part in good
    assert "INVALID_ARGUMENT: frame.control.lambda: must be >= 0" in bad


def test_json_is_one_object_a_frame() -> None:
    out, text = console(width=20)
    JsonView(out).show(FRAME, GOOD)
    (line,) = text.getvalue().splitlines()
    read = json.loads(line)
    assert (read["frame_id"], read["caption"]) == (12, "cat, smoke 40%")
    assert read["classification"]["top"] == [{"label": 3, "name": "cat", "probability": 0.9}]
    assert read["classification"]["control"]["policy"] == "router"


@pytest.mark.parametrize(("width", "height", "pictured"), [(80, 24, True), (200, 60, True), (60, 24, False), (80, 20, False)])
def test_the_live_view_fits_its_terminal(width: int, height: int, pictured: bool) -> None:
    out, text = console(width, height)
    tally = Tally()
    with LiveView(out, model_from_wire(model()), "localhost:50051", tally) as view:
        for result in (GOOD, BAD, GOOD):
            tally.add(result)
            view.show(FRAME, result)
    last = text.getvalue().rpartition("╭")[2].splitlines()
    assert len(last) < height
    assert max(len(line) for line in last) <= width
    shown = "\n".join(last)
    for part in ("cat 0.90", "▮▯▯▯  1 of 4", "router λ 0.5 τ 0.6", "exit 4", "1 failed", "▃×▃"):
        assert part in shown
    assert ("▀" * 32 in shown) == pictured


@pytest.mark.parametrize("image", [b"rubbish", np.zeros((3, 32, 32), np.float32)])
def test_an_image_that_cannot_be_drawn_is_left_out(image: bytes | np.ndarray) -> None:
    out, text = console()
    with LiveView(out, model_from_wire(model()), "localhost:50051", Tally()) as view:
        view.show(SourceFrame(image, "strange"), GOOD)
    assert "strange" in text.getvalue()
    assert "▀" not in text.getvalue()


def test_the_summary_adds_up() -> None:
    tally = Tally()
    for result in (GOOD, BAD, GOOD):
        tally.add(result)
    out, text = console()
    out.print(summary(tally, 4))
    for part in ("2 classified, 1 failed", "100%", "0.250 of the full network", "1.5 kMACs saved"):
        assert part in text.getvalue()


def test_controls_in_words() -> None:
    assert control_text(Control(Policy.ROUTER, 0.5, 0.25)) == "router λ 0.5 τ 0.25"
    assert control_text(Control(Policy.ENTROPY, 0.5, 0.25)) == "entropy τ 0.25"
    assert control_text(Control(Policy.FIXED, 0.0, 0.5)) == "fixed"
    assert control_text(Control(Policy.ROUTER, 0.0, 0.5, (0.9, 0.8, 0.7))) == "router λ 0 τ 0.9/0.8/0.7"
    assert control_text(Control(Policy.ROUTER, 0.35, 0.5, max_mean_cost=0.4)) == "router λ 0.35 for cost ≤ 0.4"
    drop = Control(Policy.ROUTER, 0.35, 0.5, max_accuracy_drop=0.01, confidence=0.95)
    assert control_text(drop) == "router λ 0.35 for drop ≤ 0.01"
    assert control_text(Control()) == ""


def test_exits_and_macs_in_marks_and_words() -> None:
    assert exit_bar(2, 4).plain == "▮▮▯▯"
    words = [macs_text(macs) for macs in (0, 999, 1500, 5.55e8, 1.2e12)]
    assert words == ["0 MACs", "999 MACs", "1.5 kMACs", "555 MMACs", "1.2 TMACs"]
