"""Triton's Python backend: one batch of requests through the network; lies in a model repository beside network.py."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import triton_python_backend_utils as triton
from network import Network


class TritonPythonModel:
    """What the backend looks for, by this name."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load what config.pbtxt names."""
        parameters = json.loads(args["model_config"])["parameters"]
        chosen = {name: value["string_value"] for name, value in parameters.items()}
        self.network = Network(chosen["path"], chosen["runtime"], int(chosen["threads"]))

    def execute(self, requests: list[Any]) -> list[Any]:
        """The backend hands over the requests of a batch one by one: they are joined here."""
        parts = [triton.get_input_tensor_by_name(request, "pixels").as_numpy() for request in requests]
        logits = self.network(np.concatenate(parts))
        ends = np.cumsum([len(part) for part in parts])
        rows = np.split(logits, ends[:-1])
        tensors = [triton.Tensor("logits", np.ascontiguousarray(each)) for each in rows]
        return [triton.InferenceResponse([each]) for each in tensors]
