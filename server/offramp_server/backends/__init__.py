"""Runtimes that execute a network stage by stage. torch_backend is imported where it is chosen: torch takes seconds to import."""

from offramp_server.backends.openvino_backend import BATCHES_A_SHARE, OpenVinoBackend
from offramp_server.backends.selection import Wish, load_backend

__all__ = ["BATCHES_A_SHARE", "OpenVinoBackend", "Wish", "load_backend"]
