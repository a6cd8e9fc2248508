"""What the learned rules see at each exit: the forecast router's own signals, standardised."""

from __future__ import annotations

from torch import Tensor

from offramp_model.routers import exit_signals
from offramp_training.comparison.table import ExitTable


class ExitInputs:
    """Signals of every exit, with zero mean and unit deviation on the frames that this is made from."""

    def __init__(self, fit: ExitTable) -> None:
        signals = _signals(fit)
        self._means = [signals_NS.mean(0) for signals_NS in signals]
        deviations = [signals_NS.std(0, correction=0) for signals_NS in signals]
        # a signal that never changes on fit must not blow up elsewhere
        self._deviations = [deviation_S.where(deviation_S > 1e-6, 1.0) for deviation_S in deviations]

    def __call__(self, table: ExitTable) -> list[Tensor]:
        """For each exit k = 1…K, single precision, shape (N, signal_count(k, classes))."""
        return [
            (signals_NS - mean_S) / deviation_S
            for signals_NS, mean_S, deviation_S in zip(_signals(table), self._means, self._deviations, strict=True)
        ]


def _signals(table: ExitTable) -> list[Tensor]:
    return [exit_signals(table.logits_NKC[:, :exit].float()) for exit in range(1, table.exits + 1)]
