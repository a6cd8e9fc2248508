"""Ray Serve over gRPC: KServe's ModelInfer, one application a model, with batching on.

`ray_app.py PORT NAME=RUNTIME:THREADS:PATH …`
"""

from __future__ import annotations

import signal
import sys
import tempfile
from typing import Any

import numpy as np
import ray
from network import Network
from ray import serve
from ray.serve.config import gRPCOptions

from inference import grpc_service_pb2 as pb

SERVICER = "inference.grpc_service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server"


@serve.deployment(max_ongoing_requests=2048, ray_actor_options={"num_cpus": 0})
class Classifier:
    """Serves the RPC of its method's name."""

    def __init__(self, path: str, runtime: str, threads: int) -> None:
        self.network = Network(path, runtime, threads)

    async def ModelInfer(self, request: pb.ModelInferRequest) -> pb.ModelInferResponse:  # noqa: N802  # the RPC's name
        """One request, answered out of a batch."""
        size = self.network.size
        pixels = np.frombuffer(request.raw_input_contents[0], np.uint8).reshape(-1, size, size, 3)
        logits = await self.classify(pixels)
        output = pb.ModelInferResponse.InferOutputTensor(name="logits", datatype="FP32", shape=logits.shape)
        return pb.ModelInferResponse(outputs=[output], raw_output_contents=[logits.tobytes()])

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=0.005)  # type: ignore[untyped-decorator]
    async def classify(self, parts: list[np.ndarray]) -> list[np.ndarray]:
        """Logits of each request."""
        ends = np.cumsum([len(part) for part in parts])
        return np.split(self.network(np.concatenate(parts)), ends[:-1])


def main() -> None:
    """Serve until told to stop."""
    port, *models = sys.argv[1:]
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:  # its sockets' paths must be short
        settings: dict[str, Any] = {"include_dashboard": False, "object_store_memory": 200 * 2**20, "_temp_dir": folder}
        ray.init(logging_level="warning", **settings)
        serve.start(
            proxy_location="HeadOnly",
            http_options={"host": "127.0.0.1", "port": 0},
            grpc_options=gRPCOptions(port=int(port), grpc_servicer_functions=[SERVICER]),
        )
        for model in models:
            name, _, chosen = model.partition("=")
            runtime, threads, path = chosen.split(":", 2)
            deployment: Any = Classifier
            serve.run(deployment.bind(path, runtime, int(threads)), name=name, route_prefix=f"/{name}")
        print("ready", flush=True)
        signal.sigwait({signal.SIGTERM, signal.SIGINT})
        serve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main()
