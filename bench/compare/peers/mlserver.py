"""Seldon's MLServer with a custom runtime."""

from __future__ import annotations

import json

from compare.lanes import KServeConnection
from compare.peers.peer import Launch, Peer, Site, copy_serving

MAX_BATCH, MAX_WAIT_S = 32, 0.005


def prepare(site: Site) -> Launch:
    """A settings file, and a folder with settings for each network."""
    http, metrics = site.spare_ports[:2]
    settings = {
        "host": "127.0.0.1",
        "grpc_port": site.port,
        "http_port": http,
        "metrics_port": metrics,
        "debug": False,
        "parallel_workers": 1,
        "extensions": [],
    }
    (site.folder / "settings.json").write_text(json.dumps(settings))
    for network in site.networks:
        folder = site.folder / network.name
        folder.mkdir()
        extra = {"path": str(network.path), "runtime": network.runtime, "threads": network.threads}
        model = {
            "name": network.name,
            "implementation": "mlserver_model.Classifier",
            "max_batch_size": MAX_BATCH,
            "max_batch_time": MAX_WAIT_S,
            "parameters": {"extra": extra},
        }
        (folder / "model-settings.json").write_text(json.dumps(model))
    copy_serving(site.folder, "mlserver_model.py", "network.py")
    # one element of BYTES a frame: as numbers, MLServer would make a Python list of every pixel
    return Launch(
        [site.environment / "bin" / "mlserver", "start", site.folder],
        lambda name, images: KServeConnection(f"127.0.0.1:{site.port}", name, images, as_bytes=True),
        {"PYTHONPATH": str(site.folder)},
    )


MLSERVER = Peer(
    name="mlserver",
    requirements=("mlserver==1.7.1", "uvloop==0.21.0"),
    prepare=prepare,
    tuning=f"adaptive batching, at most {MAX_BATCH} requests and {MAX_WAIT_S * 1000:g} ms; one parallel worker; frames as BYTES",
)
