# The server with its embedded bundle, run by its own user; the root filesystem may be read-only. It starts with TLS, or with --insecure.
#
#   docker build --file docker/server.Dockerfile --tag offramp-server .
#
# BASE       an image with Python 3.11 or newer
# VARIANT    cpu, or cuda for NVIDIA's GPUs
# CPU_INDEX  for cpu: the package index with PyTorch's small CPU builds, which pytorch.org names. Without it pip takes what its own
#            index has, on x86-64 a build for CUDA: it serves on the CPU just as well, and makes the image larger by gigabytes.
ARG BASE=python:3.13-slim
ARG VARIANT=cpu

FROM ${BASE} AS build
ARG VARIANT
ARG CPU_INDEX=""
WORKDIR /src
# pip stays out of the environment that is shipped
RUN python3 -m venv /opt/tools && python3 -m venv --without-pip /opt/offramp
COPY pyproject.toml README.md constraints.txt ./
COPY proto proto
COPY model_store/offramp_model model_store/offramp_model
COPY server server
COPY client client
RUN if [ "${VARIANT}" = cpu ] && [ -n "${CPU_INDEX}" ]; then export PIP_EXTRA_INDEX_URL="${CPU_INDEX}"; fi \
    && /opt/tools/bin/pip --python /opt/offramp/bin/python install --no-cache-dir --constraint constraints.txt '.[server,otel]' \
    && if [ "${VARIANT}" = cuda ]; then \
         /opt/offramp/bin/python -c 'import torch; assert torch.version.cuda, "pip took a torch that has no CUDA"'; \
       fi

FROM ${BASE}
ARG VARIANT
RUN groupadd --gid 10001 offramp \
    && useradd --uid 10001 --gid offramp --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin offramp
COPY --from=build /opt/offramp /opt/offramp
COPY model_store/bundles /models
ENV PATH=/opt/offramp/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    OFFRAMP_HOST=0.0.0.0 \
    OFFRAMP_STORE=/models \
    OFFRAMP_DEVICE=${VARIANT} \
    OFFRAMP_LOG_FORMAT=json
EXPOSE 50051 9464
USER 10001:10001
HEALTHCHECK --interval=10s --timeout=10s --start-period=60s CMD ["offramp", "health"]
ENTRYPOINT ["offramp-server"]
