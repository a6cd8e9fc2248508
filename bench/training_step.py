"""What Winograd convolutions and bfloat16 bring to a training step: alternating rounds in one process, medians and spread.

`python bench/training_step.py [--rounds 5] [--batch 128] [--sizes 32,24,16]`. Numbers mean something on a quiet machine only.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
import torch.nn.functional as F

from offramp_model.config import NetworkConfig
from offramp_model.network import MultiExitResNet
from offramp_training.winograd import keep_freed_memory, use_winograd


class Trainee:
    """One network in training on random images; ResNet-18 with the CIFAR stem."""

    def __init__(self, winograd: bool = False, bfloat16: bool = False) -> None:
        self.bfloat16 = bfloat16
        torch.manual_seed(0)
        self.network = MultiExitResNet(NetworkConfig()).train()
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's annotations lack it
        if winograd:
            use_winograd(self.network)
        self.optimizer = torch.optim.SGD(self.network.parameters(), 0.01, momentum=0.9, nesterov=True)

    def seconds(self, images: torch.Tensor, labels: torch.Tensor) -> float:
        """Duration of one forward and backward pass with its update."""
        started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
            logits = self.network(images)
        loss = F.cross_entropy(logits.float(), labels)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return time.perf_counter() - started


def main() -> None:
    """Print one line a size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--sizes", default="32,24,16")
    arguments = parser.parse_args()
    keep_freed_memory()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    print(f"batch {arguments.batch}, {arguments.rounds} alternating rounds after one warm-up; images/s are medians")
    trainees = (Trainee(), Trainee(winograd=True), Trainee(bfloat16=True))
    for size in map(int, arguments.sizes.split(",")):
        images = torch.randn(arguments.batch, 3, size, size).to(memory_format=torch.channels_last)
        labels = torch.randint(0, 10, (arguments.batch,))
        rounds = [[trainee.seconds(images, labels) for trainee in trainees] for _ in range(arguments.rounds + 1)][1:]
        direct, *others = zip(*rounds, strict=True)
        print(f"{size} px: float32 {arguments.batch / statistics.median(direct):.1f} images/s")
        for name, seconds in zip(("float32, Winograd", "bfloat16"), others, strict=True):
            ratios = [slow / fast for slow, fast in zip(direct, seconds, strict=True)]
            print(
                f"       {name} {arguments.batch / statistics.median(seconds):.1f} images/s; "
                f"ratio {statistics.median(ratios):.2f} (from {min(ratios):.2f} to {max(ratios):.2f})"
            )


if __name__ == "__main__":
    main()
