"""Configurations that come with the job, each a YAML file of this name."""

PRESETS = ("cifar10", "cifar10-joint", "cifar10-paper", "smoke")
