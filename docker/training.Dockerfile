# The offline job: images in /data, runs in /runs.
#
#   docker build --file docker/training.Dockerfile --tag offramp-training .
#   docker run --volume "$PWD/images:/data:ro" --volume "$PWD/runs:/runs" offramp-training run --config cifar10 --run-dir /runs/mine
#
# BASE is an image with Python 3.11 or newer. pip takes the torch of its own index, on x86-64 one for CUDA; TORCH_INDEX names another.
ARG BASE=python:3.13-slim

FROM ${BASE}
ARG TORCH_INDEX=""
# the compiler builds the Winograd convolutions when a run first needs them; Debian's newest patch is wanted, whichever that is
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /src
RUN python3 -m venv /opt/offramp
COPY pyproject.toml README.md constraints.txt ./
COPY proto proto
COPY model_store/offramp_model model_store/offramp_model
COPY client client
COPY training training
RUN if [ -n "${TORCH_INDEX}" ]; then export PIP_EXTRA_INDEX_URL="${TORCH_INDEX}"; fi \
    && /opt/offramp/bin/pip install --no-cache-dir --constraint constraints.txt '.[train,hub]'
RUN groupadd --gid 10001 offramp \
    && useradd --uid 10001 --gid offramp --create-home offramp \
    && install --directory --owner offramp --group offramp /runs
ENV PATH=/opt/offramp/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONUNBUFFERED=1 \
    OFFRAMP_DATA=/data
WORKDIR /runs
VOLUME /runs
USER 10001:10001
ENTRYPOINT ["offramp-train"]
