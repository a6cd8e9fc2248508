"""Training backbone and exits together (docs/joint.md): responsibilities, distillation, and gradients in balance; no files here.

Every exit learns from every image, weighted by the E-step's responsibility for it, from the label and from the plain full
network's softmax. The backbone gets the mean of the gradients of all exits beyond each of its stages, not their sum.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offramp_model.latent import posterior
from offramp_model.network import MultiExitNetwork, pool, pool_parts
from offramp_training.assembly import first_linear, fold
from offramp_training.distillation import divergence
from offramp_training.sections import JointConfig


class JointNetwork(nn.Module):
    """A network in training with its heads, whose inputs are standardised over each batch; there are no routers yet.

    Without that, a head on sums of a thousand statistics would need a smaller rate than the convolutions before it.
    """

    def __init__(self, network: MultiExitNetwork) -> None:
        super().__init__()
        self.network = network
        exits = range(1, network.config.exits + 1)
        inputs = [first_linear(network.head(exit)).in_features for exit in exits]
        self.norms = nn.ModuleList(nn.BatchNorm1d(count, affine=False) for count in inputs)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Class logits of every exit, then the plain full network's, shape (N, K + 1, classes)."""
        network = self.network
        features_NCHW, logits_NEC = network.stem(images_NCHW), network.no_exits(len(images_NCHW))
        for exit, (group, norm) in enumerate(zip(network.groups, self.norms, strict=True), start=1):
            beyond = network.config.exits + 1 - exit  # classifiers after this exit, the plain network's among them
            features_NCHW = scale_gradient(group(features_NCHW), 1 / (1 + beyond))
            head = network.head(exit)
            inputs_NI = head.inputs(pool_parts(features_NCHW, head.parts), logits_NEC.detach())
            logits_NEC = torch.cat([logits_NEC, head(norm(inputs_NI))[:, None]], 1)
            features_NCHW = scale_gradient(features_NCHW, beyond)
        return torch.cat([logits_NEC, network.classifier(pool(features_NCHW))[:, None]], 1)

    def folded(self) -> MultiExitNetwork:
        """A copy of the network whose heads take their inputs as they are and, in evaluation, say the same."""
        network = deepcopy(self.network)
        for exit, norm in enumerate(self.norms, start=1):
            assert isinstance(norm, nn.BatchNorm1d)
            assert norm.running_mean is not None
            assert norm.running_var is not None
            fold(first_linear(network.head(exit)), norm.running_mean, (norm.running_var + norm.eps).sqrt())
        return network


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0] * ctx.factor, None


def scale_gradient(values: Tensor, factor: float) -> Tensor:
    """The same values; what flows back through them is multiplied by the factor.

    At exit k by 1/(1 + b) before head and next stage part, and by b on the way to the next stage, b being the classifiers
    beyond: so stage k gets the mean over its own classifier and those (Li et al. 2019, gradient equilibrium).
    """
    return _ScaleGradient.apply(values, factor)  # type: ignore[no-any-return,no-untyped-call]


def responsibility_weights(log_likelihood_NK: Tensor, cost_K: Tensor, config: JointConfig) -> Tensor:
    """Weight of each exit on each image, at least `floor` and 1 in the mean over exits, shape (N, K).

    The E-step's posterior with a uniform prior, in the mean over the λ, times K, mixed with 1.
    """
    exits = len(cost_K)
    lambda_L11 = torch.tensor(config.lambdas).view(-1, 1, 1).to(cost_K.device, non_blocking=True)
    responsibility_NK = posterior(log_likelihood_NK, torch.zeros_like(cost_K), lambda_L11, cost_K).mean(0)
    return config.floor + (1 - config.floor) * exits * responsibility_NK


def joint_loss(logits_NEC: Tensor, labels_N: Tensor, cost_K: Tensor, config: JointConfig, label_smoothing: float) -> Tensor:
    """Each image's loss in nats, shape (N,), summed over exits and the plain full network, from what `JointNetwork` gives.

    Labels are smoothed for the full network alone; the exits get soft targets from it.
    """
    full_NC, exits_NKC = logits_NEC[:, -1], logits_NEC[:, :-1]
    exits = exits_NKC.shape[1]
    log_likelihood_NK = exits_NKC.log_softmax(-1).gather(2, labels_N[:, None, None].expand(-1, exits, 1)).squeeze(2)
    divergence_NK = divergence(full_NC.detach()[:, None], exits_NKC, config.distillation_temperature)
    loss_NK = config.distillation * divergence_NK - (1 - config.distillation) * log_likelihood_NK
    weight_NK = responsibility_weights(log_likelihood_NK.detach(), cost_K, config)
    full_N = F.cross_entropy(full_NC, labels_N, reduction="none", label_smoothing=label_smoothing)
    return full_N + (weight_NK * loss_NK).sum(1)
