"""Ray Serve over gRPC."""

from __future__ import annotations

from pathlib import Path

from compare.lanes import KServeConnection
from compare.peers.peer import Launch, Peer, Site, copy_serving

PROTO = Path(__file__).parents[3] / "proto"
"""Ray serves whatever service it is given the generated code of: KServe's, here."""


def prepare(site: Site) -> Launch:
    """The program that serves."""
    copy_serving(site.folder, "ray_app.py", "network.py")
    environment = {
        "PYTHONPATH": f"{site.folder}:{PROTO}",  # for the processes that Ray starts too
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_raylet_start_wait_time_s": "120",
        "RAY_AUTH_MODE": "disabled",  # it would write a token into the home directory
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
        "RAY_SERVE_LOG_TO_STDERR": "0",
        "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
    }
    return Launch(
        [site.python, "ray_app.py", str(site.port), *map(str, site.networks)],
        lambda name, images: KServeConnection(f"127.0.0.1:{site.port}", name, images, (("application", name),)),
        environment,
    )


RAY_SERVE = Peer(
    name="ray-serve",
    requirements=("ray[serve-grpc]==2.60.0", "protobuf>=7.34,<8"),
    prepare=prepare,
    tuning="serve.batch, at most 32 requests and 5 ms; what Ray's throughput mode sets for a replica; one replica",
)
