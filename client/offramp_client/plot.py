"""Draws a sweep: accuracy over compute, and where the frames left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from offramp_client.errors import MissingExtraError, OfframpClientError
from offramp_client.sweep import SweepPoint
from offramp_client.views import control_text

COLOURS = ("#2a9d4a", "#d4b106", "#e67e22", "#c0392b")


def plotter() -> Callable[[list[SweepPoint], Path], None]:
    """Return the function that draws points into a file; asked for before a sweep, so that a long one is not in vain.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtraError("plotting", "plot") from None

    def draw(points: list[SweepPoint], file: Path) -> None:
        figure = Figure(figsize=(11, 4.5), layout="constrained")
        curve, exits = figure.subplots(1, 2)
        ordered = sorted(points, key=lambda point: point.mean_cost)
        curve.plot([p.mean_cost for p in ordered], [p.accuracy for p in ordered], "o-", color="#1f4e79")
        for point in ordered:
            place = (point.mean_cost, point.accuracy)
            curve.annotate(_label(point), place, textcoords="offset points", xytext=(6, -10), fontsize=8)
        curve.set(xlabel="mean compute / full network", ylabel="accuracy", title="accuracy over compute")
        curve.grid(alpha=0.3)
        names, bottoms = [_label(point) for point in points], [0.0] * len(points)
        count = len(points[0].exit_fractions)
        for k in range(count):
            shares = [point.exit_fractions[k] for point in points]
            colour = COLOURS[round(k / max(count - 1, 1) * (len(COLOURS) - 1))]
            exits.bar(range(len(points)), shares, bottom=bottoms, label=f"exit {k + 1}", color=colour)
            bottoms = [bottom + share for bottom, share in zip(bottoms, shares, strict=True)]
        exits.set_xticks(range(len(points)), names, rotation=30, ha="right", fontsize=8)
        exits.set(ylabel="share of frames", title="exits taken", ylim=(0, 1))
        exits.legend(loc="upper center", ncols=count, fontsize=8, framealpha=0.9)
        try:
            figure.savefig(file, dpi=150)
        except (OSError, ValueError) as error:
            raise OfframpClientError(f"{file}: cannot be written: {error}") from None

    return draw


def _label(point: SweepPoint) -> str:
    return control_text(point.control).removeprefix("router ")
