"""Short ways to write what a caller sends."""

from __future__ import annotations

import numpy as np

from offramp.v1 import classification_pb2 as pb
from tests.unit.server.rpc.manifests import SIZE

RANDOM = np.random.default_rng(0)


def control(**fields: object) -> pb.RoutingControl:
    if "lambda_" in fields:
        fields["lambda"] = fields.pop("lambda_")
    return pb.RoutingControl(**fields)


def frame(frame_id: int = 0, **fields: object) -> pb.Frame:
    """A random picture at the model's own size; `fields` make its control."""
    pixels = RANDOM.integers(0, 256, (SIZE, SIZE, 3), np.uint8).tobytes()
    message = pb.Frame(frame_id=frame_id, timestamp_us=frame_id * 1000, rgb8=pb.RawImage(data=pixels, height=SIZE, width=SIZE))
    if fields:
        message.control.CopyFrom(control(**fields))
    return message


def bad_frame(frame_id: int = 0) -> pb.Frame:
    return pb.Frame(frame_id=frame_id, rgb8=pb.RawImage(data=b"short", height=SIZE, width=SIZE))


def config(
    ordered: bool | None = None, top_k: int = 0, model: str = "", version: str = "", **fields: object
) -> pb.StreamClassifyRequest:
    return pb.StreamClassifyRequest(
        config=pb.StreamConfig(model=model, version=version, control=control(**fields), ordered=ordered, top_k=top_k)
    )


def send(item: pb.Frame) -> pb.StreamClassifyRequest:
    return pb.StreamClassifyRequest(frame=item)
