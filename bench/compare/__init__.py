"""Offramp beside the servers that people use today, and beside the bare loop: `bench/run.py`."""
