"""NVIDIA Triton Inference Server, as the wheel of nvidia-pytriton carries it, with its Python backend."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig

from compare.lanes import LOGITS, PIXELS, KServeConnection
from compare.peers.peer import Launch, Peer, Site, copy_serving
from compare.processes import StartError

MAX_BATCH = 64

CONFIG = """name: "{name}"
backend: "python"
max_batch_size: {batch}
input [ {{ name: "{pixels}" data_type: TYPE_UINT8 dims: [ {size}, {size}, 3 ] }} ]
output [ {{ name: "{logits}" data_type: TYPE_FP32 dims: [ {classes} ] }} ]
dynamic_batching {{ }}
instance_group [ {{ kind: KIND_CPU count: 1 }} ]
parameters {{ key: "path" value {{ string_value: "{path}" }} }}
parameters {{ key: "runtime" value {{ string_value: "{runtime}" }} }}
parameters {{ key: "threads" value {{ string_value: "{threads}" }} }}
"""


def prepare(site: Site) -> Launch:
    """A model repository, and the backend with the stub for this interpreter beside it."""
    wheel, release = site.packages / "pytriton" / "tritonserver", f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = wheel / "python_backend_stubs" / release / "triton_python_backend_stub"
    if not stub.is_file():
        raise StartError(f"its wheel has no Python backend for Python {release}")
    backends, repository = site.folder / "backends", site.folder / "models"
    shutil.copytree(wheel / "backends", backends)
    shutil.copy(stub, backends / "python")
    for network in site.networks:
        version = repository / network.name / "1"
        version.mkdir(parents=True)
        text = CONFIG.format(
            name=network.name,
            batch=MAX_BATCH,
            pixels=PIXELS,
            logits=LOGITS,
            size=site.input_size,
            classes=site.classes,
            path=network.path,
            runtime=network.runtime,
            threads=network.threads,
        )
        (version.parent / "config.pbtxt").write_text(text)
        copy_serving(version, "triton_model.py=model.py", "network.py")
    libraries = [site.packages / "nvidia_pytriton.libs", sysconfig.get_config_var("LIBDIR"), os.environ.get("LD_LIBRARY_PATH")]
    flags = {
        "model-repository": repository,
        "backend-directory": backends,
        "grpc-address": "127.0.0.1",
        "grpc-port": site.port,
        "allow-http": "false",
        "allow-metrics": "false",
    }
    environment = {
        "LD_LIBRARY_PATH": ":".join(str(path) for path in libraries if path),
        # the stub embeds an interpreter, which takes for its home whatever python comes first here
        "PATH": f"{site.python.parent}:{os.environ.get('PATH', '')}",
    }
    command = [str(wheel / "bin" / "tritonserver"), *(f"--{name}={value}" for name, value in flags.items())]
    return Launch(command, lambda name, images: KServeConnection(f"127.0.0.1:{site.port}", name, images), environment)


TRITON = Peer(
    name="triton",
    requirements=("nvidia-pytriton==0.7.0",),
    prepare=prepare,
    tuning=f"dynamic_batching without delay, max_batch_size {MAX_BATCH} frames, one instance with all cores",
)
