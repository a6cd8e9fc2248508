"""The routers of one exit: the paper's bank, one for each λ of a grid, and the forecast router, one for every λ.

Both are called with the exit's pooled features and the calibrated class logits of every exit so far; what they give goes into
a halting logit s_k(λ) by the rules of routing.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offramp_model.config import LARGEST, signal_count


class RouterBank(nn.Module):
    """A two-layer MLP on pooled features for each λ of the grid, evaluated together as one matrix product (section 4.4).

    The networks are independent of each other; keeping them in shared tensors lets frames of different λ share a batch.
    """

    def __init__(self, channels: int, hidden: int, lambdas: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(channels, lambdas * hidden)
        self.weight_LH1 = nn.Parameter(torch.empty(lambdas, hidden, 1).uniform_(-(hidden**-0.5), hidden**-0.5))
        self.bias_L11 = nn.Parameter(torch.zeros(lambdas, 1, 1))

    def forward(self, average_NC: Tensor, logits_NEC: Tensor | None = None) -> Tensor:
        """Halting logits s_k of every grid λ, shape (N, L). The class logits are not looked at."""
        lambdas, hidden, _ = self.weight_LH1.shape
        hidden_LNH = F.relu(self.hidden(average_NC)).view(-1, lambdas, hidden).transpose(0, 1)
        return torch.baddbmm(self.bias_L11, hidden_LNH, self.weight_LH1).squeeze(2).T


class ForecastRouter(nn.Module):
    """What exit k can tell of every exit j ≥ k: the probability m_kj that exit j is right (docs/routing.md)."""

    def __init__(self, exit: int, exits: int, classes: int, hidden: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(signal_count(exit, classes), hidden)
        self.output = nn.Linear(hidden, exits - exit + 1)

    def forward(self, average_NC: Tensor | None, logits_NEC: Tensor) -> Tensor:
        """m_kj for j = k…K, shape (N, K − k + 1), each in (0, 1). The pooled features are not looked at."""
        return torch.sigmoid(self.forecast(exit_signals(logits_NEC)))

    def forecast(self, signals_NS: Tensor) -> Tensor:
        """Logits of m_kj from what `exit_signals` gives, shape (N, K − k + 1)."""
        logits_NJ: Tensor = self.output(F.relu(self.hidden(signals_NS)))
        return logits_NJ


def exit_signals(logits_NEC: Tensor) -> Tensor:
    """What the class logits of exits 1…k say about how sure to be, shape (N, signal_count(k, classes)).

    Of exit k the largest probabilities in order, the gap between the two largest logits, the entropy in nats and the
    log-sum-exp. Of each earlier exit its confidence, its entropy, whether it guesses what exit k guesses, and the
    probability that it gives to that guess.
    """
    probabilities_NEC = logits_NEC.softmax(-1)
    log_sum_exp_NE = logits_NEC.logsumexp(-1)
    entropy_NE = log_sum_exp_NE - (probabilities_NEC * logits_NEC).sum(-1)
    now_NC, now_logits_NC = probabilities_NEC[:, -1], logits_NEC[:, -1]
    largest_NT = now_NC.topk(min(LARGEST, now_NC.shape[-1])).values
    two_N2 = now_logits_NC.topk(min(2, now_NC.shape[-1])).values
    signals = [largest_NT, two_N2[:, :1] - two_N2[:, -1:], entropy_NE[:, -1:], log_sum_exp_NE[:, -1:]]
    if logits_NEC.shape[1] > 1:
        earlier_NEC = probabilities_NEC[:, :-1]
        confidence_NE, guess_NE = earlier_NEC.max(-1)
        guess_N1 = now_NC.argmax(-1, keepdim=True)
        # no gather: OpenVINO 2026.4 converts this one wrongly
        guessed_N1C = guess_N1[:, :, None] == torch.arange(now_NC.shape[-1], device=guess_N1.device)
        given_NE = (earlier_NEC * guessed_N1C).sum(-1)
        signals += [confidence_NE, entropy_NE[:, :-1], (guess_NE == guess_N1).to(given_NE.dtype), given_NE]
    return torch.cat(signals, 1)
