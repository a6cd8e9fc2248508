"""How the command line shows a stream's results: one line a frame for people, or for programs, and the summary."""

from __future__ import annotations

import json
from dataclasses import asdict
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.table import Table
from rich.text import Text

from offramp_client.sources import SourceFrame
from offramp_client.tally import Tally
from offramp_client.types import Control, Result

EXIT_COLOURS = ("green3", "yellow3", "dark_orange", "red3")
"""From the first exit to the last; networks with more exits get steps in between."""


class View(Protocol):
    """Shows results as they come, between entering and leaving."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    def show(self, frame: SourceFrame, result: Result) -> None:
        """Show the answer to one frame."""
        ...


class LinesView:
    """One line a frame, for people and for terminals that cannot do better."""

    def __init__(self, console: Console, exits: int) -> None:
        """Print to `console` the results of a network with so many exits."""
        self._console, self._exits = console, exits

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def show(self, frame: SourceFrame, result: Result) -> None:
        """Print one line."""
        line = Text(f"{result.frame_id:>6}  ")
        if result.classification is None:
            assert result.error is not None
            line.append(f"{result.error.code}: {result.error.exception()}", style="red")
        else:
            shown = result.classification
            line.append(f"{shown.name:<11.11} {shown.probability:4.2f}  ")
            line.append_text(exit_bar(shown.exit, self._exits))
            line.append(f"  compute {shown.cost_ratio:4.2f}  {result.latency_ms:7.1f} ms  {control_text(shown.control)}")
            if shown.degraded:
                line.append("  degraded", style="yellow")
        line.append(f"  {frame.caption}", style="dim")
        self._console.print(line, soft_wrap=True, highlight=False)


class JsonView:
    """One JSON object a frame, for programs."""

    def __init__(self, console: Console) -> None:
        """Print to `console`."""
        self._console = console

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def show(self, frame: SourceFrame, result: Result) -> None:
        """Print one object: the fields of `Result`, with the source's caption."""
        text = json.dumps({"caption": frame.caption} | asdict(result))
        self._console.print(text, soft_wrap=True, highlight=False, markup=False)


def exit_colour(exit: int, exits: int) -> str:
    """Return the colour of an exit: green for the first, red for the last."""
    return EXIT_COLOURS[round((exit - 1) / max(exits - 1, 1) * (len(EXIT_COLOURS) - 1))]


def exit_bar(exit: int, exits: int) -> Text:
    """Return an exit as a bar with a mark for each exit, such as ▮▮▯▯ for the second of four."""
    bar = Text("▮" * exit, style=exit_colour(exit, exits))
    return bar.append("▯" * (exits - exit), style="dim")


def control_text(control: Control) -> str:
    """Return what matters of a control in one line, such as `router λ 0.5 τ 0.5`, or `router λ 0.5 for cost ≤ 0.4`."""
    parts = [str(control.policy)] if control.policy is not None else []
    if control.lambda_ is not None and control.policy in (None, "router"):
        parts.append(f"λ {control.lambda_:g}")
    if control.max_mean_cost is not None:
        parts.append(f"for cost ≤ {control.max_mean_cost:g}")
    elif control.max_accuracy_drop is not None:
        parts.append(f"for drop ≤ {control.max_accuracy_drop:g}")
    elif control.exit_thresholds and len(set(control.exit_thresholds)) > 1:
        parts.append("τ " + "/".join(f"{threshold:g}" for threshold in control.exit_thresholds))
    elif control.threshold is not None and control.policy != "fixed":
        parts.append(f"τ {control.threshold:g}")
    return " ".join(parts)


def histogram(tally: Tally, exits: int, width: int) -> Table:
    """Return the exits taken so far as one bar an exit, at most `width` cells long."""
    table = Table.grid(padding=(0, 1))
    for exit in range(1, exits + 1):
        cells = round(tally.fraction(exit) * width)
        bar = Text("█" * cells, style=exit_colour(exit, exits)).append("·" * (width - cells), style="grey30")
        table.add_row(f"exit {exit}", bar, f"{tally.fraction(exit):4.0%}", Text(f"{tally.exits[exit]:>6}", style="dim"))
    return table


def summary(tally: Tally, exits: int) -> Table:
    """Return what a whole stream came to."""
    table = Table.grid(padding=(0, 2))
    table.add_row("frames", f"{tally.answered} classified, {tally.failed} failed, {tally.mean_fps:.1f} a second")
    if tally.answered:
        table.add_row("exits", histogram(tally, exits, width=32))
        table.add_row("compute", f"{tally.mean_cost:.3f} of the full network, {saved_text(tally)}")
        p50, p95 = tally.latency_ms(50), tally.latency_ms(95)
        table.add_row("latency", f"{p50:.1f} ms at the median, {p95:.1f} ms at the 95th percentile")
    return table


def saved_text(tally: Tally) -> str:
    """Return the MACs saved against the full network in words."""
    word = "saved" if tally.macs_saved >= 0 else "lost"
    return f"{macs_text(abs(tally.macs_saved))} {word}"


def macs_text(macs: float) -> str:
    """Return a number of MACs with a unit that suits its size, such as `1.3 TMACs`."""
    for unit in ("", "k", "M", "G", "T"):
        if macs < 1000:
            return f"{macs:.3g} {unit}MACs"
        macs /= 1000
    return f"{macs:.3g} PMACs"
