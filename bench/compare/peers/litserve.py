"""Lightning's LitServe over HTTP."""

from __future__ import annotations

from compare.lanes import HttpConnection
from compare.peers.peer import Launch, Peer, Site, copy_serving


def prepare(site: Site) -> Launch:
    """The program that serves."""
    copy_serving(site.folder, "litserve_app.py", "network.py")
    return Launch(
        [site.python, "litserve_app.py", str(site.port), *map(str, site.networks)],
        lambda name, images: HttpConnection(f"http://127.0.0.1:{site.port}/{name}", images),
    )


LITSERVE = Peer(
    name="litserve",
    requirements=("litserve==0.2.19",),
    prepare=prepare,
    tuning="max_batch_size 32 requests, batch_timeout 5 ms, one worker and one API server, base64 in JSON",
)
