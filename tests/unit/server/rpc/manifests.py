"""A small network with four exits, four classes and a bank of routers, and its manifest."""

from __future__ import annotations

from offramp_model.bundle import Control, Manifest, OperatingPoint, Preprocessing, Provenance
from offramp_model.config import NetworkConfig
from offramp_model.costs import cost_table
from offramp_model.outcomes import Frontier, FrontierPoint

SIZE, EXITS, CLASSES = 16, 4, 4

FRONTIER = Frontier(
    points=(
        FrontierPoint(lambda_=0.0, mean_cost=0.9, accuracy=0.9, exit_fractions=(0, 0, 0.2, 0.8), losses=5),
        FrontierPoint(lambda_=0.25, mean_cost=0.6, accuracy=0.89, exit_fractions=(0.2, 0.3, 0.2, 0.3), losses=20),
        FrontierPoint(lambda_=1.0, mean_cost=0.4, accuracy=0.85, exit_fractions=(0.6, 0.3, 0.1, 0), losses=60),
        FrontierPoint(lambda_=4.0, mean_cost=0.3, accuracy=0.7, exit_fractions=(0.9, 0.1, 0, 0), losses=210),
    ),
    frames=1000,
)


def tiny_manifest(
    name: str = "tiny",
    version: int = 1,
    lambdas: tuple[float, ...] = (0.0, 0.5, 2.0),
    control: Control | None = None,
    frontier: Frontier | None = None,
) -> Manifest:
    network = NetworkConfig(
        widths=(4, 6, 8, 10),
        blocks=(1, 1, 1, 1),
        classes=CLASSES,
        input_size=SIZE,
        head_hidden=8,
        router_hidden=4,
        router_lambdas=lambdas,
    )
    return Manifest(
        name=name,
        version=version,
        network=network,
        labels=("cat", "dog", "frog", "ship"),
        preprocessing=Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
        costs=cost_table(network),
        default_control=control or Control(policy="router" if lambdas else "confidence", lambda_=0.5, threshold=0.5),
        default_thresholds={"router": 0.5, "entropy": 0.3, "confidence": 0.9},
        full_accuracy=0.9,
        exit_accuracies=(0.6, 0.7, 0.8, 0.9),
        operating_points=(
            OperatingPoint(
                control=Control(policy="router", lambda_=0.0), accuracy=0.9, mean_cost=0.9, exit_fractions=(0, 0, 0.2, 0.8)
            ),
            OperatingPoint(
                control=Control(policy="router", lambda_=2.0), accuracy=0.7, mean_cost=0.3, exit_fractions=(0.9, 0.1, 0, 0)
            ),
        ),
        frontier=frontier,
        provenance=Provenance(created="2026-01-01T00:00:00Z", seed=1, data_note="random weights", tool="tests"),
        files={},
    )
