"""The full-depth network as a peer runs it, in the peer's own environment; imports nothing of Offramp.

An .onnx file runs in ONNX Runtime or OpenVINO at float32, an .xml graph in OpenVINO at the precision that it was quantised to.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

LARGEST_BATCH = 64
"""Frames run at a time; servers that count requests and not frames may hand over more."""


class Network:
    """uint8 pixels (N, H, W, 3) → float32 class logits (N, classes)."""

    def __init__(self, path: str, runtime: str, threads: int) -> None:
        """`runtime` is `onnxruntime`, `openvino` or `openvino-bf16`; `threads` run one forward pass."""
        precision = "bf16" if runtime == "openvino-bf16" else "f32"
        run = _OnnxRuntime(path, threads) if runtime == "onnxruntime" else _OpenVino(path, threads, precision)
        self._run, self.size = run, run.size
        for batch in (1, LARGEST_BATCH):
            self(np.zeros((batch, self.size, self.size, 3), np.uint8))

    def __call__(self, pixels_NHWC: np.ndarray) -> np.ndarray:
        """Logits of any number of frames."""
        parts = [self._run(pixels_NHWC[at : at + LARGEST_BATCH]) for at in range(0, len(pixels_NHWC), LARGEST_BATCH)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


class _OnnxRuntime:
    def __init__(self, path: str, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.size = int(self._session.get_inputs()[0].shape[1])

    def __call__(self, pixels_NHWC: np.ndarray) -> np.ndarray:
        logits: np.ndarray = self._session.run(None, {"pixels": pixels_NHWC})[0]
        return logits


class _OpenVino:
    def __init__(self, path: str, threads: int, precision: str) -> None:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # it would report every start
        import openvino

        options: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": precision,
        }
        core = openvino.Core()
        weights = Path(path).with_name("weights.bin")
        model = core.read_model(path, weights) if weights.exists() else core.read_model(path)
        self._request = core.compile_model(model, "CPU", options).create_infer_request()
        self.size = int(model.inputs[0].partial_shape[1].get_length())

    def __call__(self, pixels_NHWC: np.ndarray) -> np.ndarray:
        self._request.infer({"pixels": pixels_NHWC}, share_inputs=True)
        logits = self._request.get_tensor("logits").data
        # a bundle's uncut graph answers at every exit, (N, exits, classes): the last is the full network's
        last: np.ndarray = logits[:, -1] if logits.ndim == 3 else logits
        return last.copy()
