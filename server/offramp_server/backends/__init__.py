"""Runtimes that execute a network stage by stage."""

from offramp_server.backends.torch_backend import TorchBackend

__all__ = ["TorchBackend"]
