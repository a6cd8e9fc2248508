"""MLServer's custom runtime; adaptive batching joins requests before `predict` sees them."""

from __future__ import annotations

import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from network import Network


class Classifier(MLModel):  # type: ignore[misc]
    """What model-settings.json names."""

    async def load(self) -> bool:
        """Load what the settings name."""
        extra = self.settings.parameters.extra
        self.network = Network(extra["path"], extra["runtime"], extra["threads"])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """One batch."""
        size = self.network.size
        frames = [np.frombuffer(frame, np.uint8) for frame in payload.inputs[0].data]
        pixels = np.concatenate(frames).reshape(-1, size, size, 3)
        outputs = [NumpyCodec.encode_output("logits", self.network(pixels))]
        return InferenceResponse(model_name=self.name, outputs=outputs)
