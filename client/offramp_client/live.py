"""The live view: the frame as the network sees it, what it shows, where it left, and the running sums."""

from __future__ import annotations

from collections import deque
from io import BytesIO
from types import TracebackType
from typing import Self

import numpy as np
from PIL import Image as Pictures
from rich.color import Color
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.segment import Segment, Segments
from rich.style import Style
from rich.table import Table
from rich.text import Text

from offramp_client.sources import SourceFrame
from offramp_client.tally import Tally
from offramp_client.types import Classification, Image, Model, Result
from offramp_client.views import control_text, exit_bar, exit_colour, histogram, saved_text

PICTURE_CELLS = 32
"""Width of the picture in cells; half-blocks make its pixels square, so it is as many pixels wide and high."""
WIDTH, HEIGHT = 80, 24
"""The terminal that the whole view fits into; a smaller one goes without the picture and the gaps."""


class LiveView:
    """Redraws in place, some times a second however fast the frames come."""

    def __init__(self, console: Console, model: Model, address: str, tally: Tally) -> None:
        """Draw on `console` the stream that `tally` counts."""
        self._console, self._model, self._address, self._tally = console, model, address, tally
        self._latest: tuple[SourceFrame, Result] | None = None
        self._trail: deque[int] = deque(maxlen=WIDTH - 12)
        self._live = Live(console=console, get_renderable=self.render, refresh_per_second=12, vertical_overflow="crop")

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._live.stop()

    def show(self, frame: SourceFrame, result: Result) -> None:
        """Make this the frame that the next redrawing shows."""
        self._latest = (frame, result)
        self._trail.append(result.classification.exit if result.classification is not None else 0)

    def render(self) -> RenderableType:
        """Draw the latest frame and the sums so far."""
        model = self._model
        title = f"offramp · {model.name} {model.version} · {model.backend} on {model.device} · {self._address}"
        if self._latest is None:
            return Panel("waiting for the first result", title=title, width=min(self._console.width, WIDTH))
        frame, result = self._latest
        # The redrawing runs in a thread of rich's; it reads each of these once, and none is changed in place.
        shown = Table.grid(padding=(0, 2))
        roomy = self._console.width >= WIDTH and self._console.height >= HEIGHT
        gap = [Text()] if roomy else []
        facts = Group(self._answer(result), *gap, histogram(self._tally, self._exits, width=18), *gap, self._sums())
        if roomy:
            shown.add_column(width=PICTURE_CELLS)
            shown.add_column(no_wrap=True)
            shown.add_row(Group(_picture(frame.image), Text(frame.caption[:PICTURE_CELLS], style="italic")), facts)
        else:
            shown.add_row(facts)
        body = Group(shown, *gap, self._recent())
        return Panel(body, title=title, title_align="left", width=min(self._console.width, WIDTH), border_style="grey50")

    @property
    def _exits(self) -> int:
        return len(self._model.exits)

    def _answer(self, result: Result) -> RenderableType:
        table = Table.grid(padding=(0, 1))
        table.add_column(style="dim", width=8)
        table.add_row("frame", str(result.frame_id))
        if result.classification is None:
            assert result.error is not None
            table.add_row("error", Text(str(result.error.exception()), style="red"))
            return table
        shown = result.classification
        table.add_row("label", Text(f"{shown.name} ", style="bold").append(f"{shown.probability:.2f}", style="not bold"))
        table.add_row("exit", exit_bar(shown.exit, self._exits).append(f"  {shown.exit} of {self._exits}", style="default"))
        table.add_row("", Text(f"left by {shown.reason}", style="dim"))
        table.add_row("halting", " ".join(f"{p:.2f}" for p in shown.halting_probabilities[:6]) or "-")
        table.add_row("compute", self._compute(shown))
        server = f"queue {shown.queue_ms:.1f}, run {shown.compute_ms:.1f}"
        table.add_row("latency", Text(f"{result.latency_ms:.1f} ms ").append(f"({server})", style="dim"))
        table.add_row("control", Text(control_text(shown.control), style="bold cyan"))
        return table

    def _compute(self, shown: Classification) -> Text:
        cells = 14
        filled = min(round(shown.cost_ratio * cells), cells)
        bar = Text("━" * filled, style=exit_colour(shown.exit, self._exits)).append("━" * (cells - filled), style="grey30")
        return bar.append(f" {shown.cost_ratio:.2f} of full", style="default")

    def _sums(self) -> RenderableType:
        tally = self._tally
        table = Table.grid(padding=(0, 1))
        table.add_column(style="dim", width=8)
        table.add_row("compute", f"{tally.mean_cost:.3f} mean, {saved_text(tally)}")
        table.add_row("frames", f"{tally.answered} classified, {tally.failed} failed")
        table.add_row("rate", f"{tally.fps:.1f} a second")
        return table

    def _recent(self) -> Text:
        heights = "▁▂▃▄▅▆▇█"
        line = Text("latest  ", style="dim")
        for exit in tuple(self._trail):
            if exit == 0:
                line.append("×", style="red")
            else:
                height = heights[round(exit / self._exits * (len(heights) - 1))]
                line.append(height, style=Style(color=exit_colour(exit, self._exits), dim=False))
        return line


def _picture(image: Image) -> RenderableType:
    """Return an image as half-blocks, two pixels a cell, one above the other."""
    pixels = _pixels(image)
    if pixels is None:
        return Text("\n".join([" " * PICTURE_CELLS] * (PICTURE_CELLS // 2)))
    segments = []
    for upper, lower in zip(pixels[0::2], pixels[1::2], strict=True):
        for above, below in zip(upper.tolist(), lower.tolist(), strict=True):
            style = Style(color=Color.from_rgb(*above), bgcolor=Color.from_rgb(*below))
            segments.append(Segment("▀", style))
        segments.append(Segment.line())
    return Segments(segments)


def _pixels(image: Image) -> np.ndarray | None:
    try:
        opened = Pictures.open(BytesIO(image)) if isinstance(image, bytes) else Pictures.fromarray(image)
        size = (PICTURE_CELLS, PICTURE_CELLS)
        return np.asarray(opened.convert("RGB").resize(size, Pictures.Resampling.BILINEAR))
    except (OSError, ValueError, TypeError):
        return None  # no picture, or one that only the server can read; its answer tells
