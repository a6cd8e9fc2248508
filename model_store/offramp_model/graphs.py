"""OpenVINO graphs in a bundle: which files there are, and what goes in and out of them (docs/backends.md).

    openvino/<kind>/stage<k>.xml  full.xml  weights.bin

`int8` graphs carry the weights that were quantised in the one weights.bin. Large ones left in float, and all of a `float` one's,
are inputs named as the tensors of weights.safetensors that they are, so that float weights lie in the bundle once.
"""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

GraphKind = Literal["int8", "float"]
KINDS: tuple[GraphKind, ...] = get_args(GraphKind)
FOLDER = "openvino"
GRAPH_WEIGHTS = "weights.bin"
WHOLE = "full"
"""The graph of every stage in a row, whose routers' outputs are router1, router2, …"""

PIXELS, FEATURES, EARLIER = "pixels", "features", "earlier"
"""Inputs. Stage 1 and the whole take `pixels`, uint8 (N, H, W, channels); a later stage takes `features` as the one before gives
them, and `earlier`, the class logits of the exits before, (N, k − 1, classes)."""
LOGITS, ROUTER, SURVIVORS = "logits", "router", "survivors"
"""Outputs: `logits` of every exit so far, (N, k, classes); `router`, where the exit has one; and before the last exit the
features that those frames need who go on."""

Share = Annotated[float, Field(ge=0, le=1)]


class Graphs(BaseModel):
    """What a manifest says of the graphs, measured on held-out images; their digests are with those of every other file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    made_by: str
    """Programs and versions that converted and quantised them."""
    exit_accuracies: tuple[Share, ...]
    """Of each exit alone, in int8."""
    same_exit: Share
    """Share of the images that leave at the same exit in int8 as in float32, under the default control."""


def graph_names(exits: int) -> list[str]:
    """The graphs of one kind."""
    return [*(f"stage{exit}" for exit in range(1, exits + 1)), WHOLE]


def graph_files(exits: int) -> list[str]:
    """Every file of the graphs, as a path inside the bundle."""
    names = [*(f"{name}.xml" for name in graph_names(exits)), GRAPH_WEIGHTS]
    return [f"{FOLDER}/{kind}/{name}" for kind in KINDS for name in names]
