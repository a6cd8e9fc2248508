"""LitServe: one API a model, with batching on. `litserve_app.py PORT NAME=RUNTIME:THREADS:PATH …`."""

from __future__ import annotations

import base64
import sys
from typing import Any

import litserve
import numpy as np
from network import Network


class Classifier(litserve.LitAPI):  # type: ignore[misc]
    """POST {"pixels": base64 of uint8 (n, H, W, 3)} → {"logits": n lists}."""

    def choose(self, runtime: str, threads: str, path: str) -> Classifier:
        """Say what `setup` is to load."""
        self.chosen = path, runtime, int(threads)
        return self

    def setup(self, device: str) -> None:
        """Load it, in the worker."""
        self.network = Network(*self.chosen)

    def decode_request(self, request: dict[str, str]) -> np.ndarray:
        """Pixels of one request."""
        size = self.network.size
        return np.frombuffer(base64.b64decode(request["pixels"]), np.uint8).reshape(-1, size, size, 3)

    def batch(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        """Requests differ in their number of frames, so `predict` joins them."""
        return inputs

    def predict(self, parts: list[np.ndarray]) -> list[np.ndarray]:
        """Logits of each request."""
        ends = np.cumsum([len(part) for part in parts])
        return np.split(self.network(np.concatenate(parts)), ends[:-1])

    def unbatch(self, output: list[np.ndarray]) -> list[np.ndarray]:
        """One a request already."""
        return output

    def encode_response(self, output: np.ndarray) -> dict[str, Any]:
        """As JSON takes it."""
        return {"logits": output.tolist()}


def main() -> None:
    """Serve."""
    port, *models = sys.argv[1:]
    apis = []
    for model in models:
        name, _, chosen = model.partition("=")
        runtime, threads, path = chosen.split(":", 2)
        api = Classifier(max_batch_size=32, batch_timeout=0.005, api_path=f"/{name}")
        apis.append(api.choose(runtime, threads, path))
    server = litserve.LitServer(apis, accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(port), num_api_servers=1, generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main()
