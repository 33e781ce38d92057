# Falcon in a container:
#
#   docker build --tag falcon .                                  for CPUs
#   docker build --tag falcon:cuda --build-arg DEVICE=cuda .     for NVIDIA's GPUs
#
# It runs as user 10001 of group 0, or as any other user of group 0, and needs no writable file but
# in /tmp. docs/operations.md has the commands that run it.
ARG DEVICE=cpu

FROM python:3.11.14-slim-bookworm AS base
ENV PATH=/opt/falcon/bin:$PATH \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PYTHONDONTWRITEBYTECODE=1


# Torch comes first and alone: its build decides the device, and it is the layer that seldom changes.
# Its tests and C++ headers, 145 MB, are of no use here.
FROM base AS cpu-torch
ARG TORCH=2.13.0
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN python -m venv /opt/falcon \
    && pip install --no-cache-dir --no-deps --index-url "$TORCH_INDEX" "torch==$TORCH" \
    && rm -rf /opt/falcon/lib/python3.*/site-packages/torch/test \
              /opt/falcon/lib/python3.*/site-packages/torch/include

FROM base AS cuda-torch
ARG TORCH=2.13.0
RUN python -m venv /opt/falcon \
    && pip install --no-cache-dir "torch==$TORCH" \
    && rm -rf /opt/falcon/lib/python3.*/site-packages/torch/test


# The application lies in /app, as in a checkout, and its packages in a virtual environment.
FROM ${DEVICE}-torch AS build
ARG DEVICE
WORKDIR /app
COPY pyproject.toml constraints.txt README.md ./
COPY tree tree
COPY drafter drafter
COPY engine engine
COPY server server
COPY benchmarks benchmarks
COPY models models
# xgrammar asks for triton, 1 GB of compiler that only GPUs use.
RUN pip install --no-cache-dir --constraint constraints.txt --editable . \
    && if [ "$DEVICE" = cpu ]; then pip uninstall --yes triton; fi \
    && python -m compileall -q tree drafter engine server benchmarks \
    && pip uninstall --yes pip


FROM base AS falcon
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Falcon" \
      org.opencontainers.image.description="OpenAI-compatible inference with lossless speculative decoding" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
RUN pip uninstall --yes pip setuptools wheel \
    && useradd --no-log-init --uid 10001 --gid 0 --create-home --shell /usr/sbin/nologin falcon \
    && mkdir /home/falcon/.cache /models \
    && chown -R 10001:0 /home/falcon \
    && chmod -R g=u /home/falcon
# USER's name is for what asks for one where the container's user has no entry in /etc/passwd. Torch
# makes its cache's folder when it is imported, so that must be writable.
ENV HOME=/home/falcon \
    USER=falcon \
    HF_HUB_OFFLINE=1 \
    HF_HOME=/home/falcon/.cache/huggingface \
    TORCHINDUCTOR_CACHE_DIR=/tmp/inductor \
    TRITON_CACHE_DIR=/tmp/triton \
    MPLCONFIGDIR=/tmp/matplotlib \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=build /opt/falcon /opt/falcon
COPY --from=build /app /app
WORKDIR /app
USER 10001:0
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
# What is written behind the image's name is added: a model, flags, another --host.
ENTRYPOINT ["falcon", "serve", "--host", "0.0.0.0"]
