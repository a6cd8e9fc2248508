"""Runtimes that execute a network stage by stage."""

from offramp_server.backends.openvino_backend import BATCHES_A_SHARE, OpenVinoBackend
from offramp_server.backends.selection import Wish, load_backend
from offramp_server.backends.torch_backend import TorchBackend

__all__ = ["BATCHES_A_SHARE", "OpenVinoBackend", "TorchBackend", "Wish", "load_backend"]
