# syntax=docker/dockerfile:1

# Build the wheel apart, so that the image holds neither sources nor build tools.
FROM python:3.12-slim AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY protos/trephine protos/trephine
COPY clients/trephine clients/trephine
COPY service/trephine service/trephine
COPY auditors/trephine auditors/trephine
RUN python -m pip install --no-cache-dir --constraint constraints.txt build hatchling \
    && python -m build --wheel --no-isolation --outdir /wheels

FROM python:3.12-slim
# The CPU build of PyTorch is chosen first: the default wheel brings gigabytes of CUDA libraries.
ARG TORCH_INDEX=
COPY constraints.txt /tmp/constraints.txt
COPY --from=build /wheels /wheels
RUN python -m pip install --no-cache-dir ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch==2.13.0 \
    && wheel=$(ls /wheels/*.whl) \
    && python -m pip install --no-cache-dir --constraint /tmp/constraints.txt "trephine[service] @ file://$wheel" \
    && rm -rf /wheels /tmp/constraints.txt \
    && useradd --create-home --uid 10001 trephine \
    && install -d -o trephine -g trephine -m 0700 /var/lib/trephine /var/cache/trephine
USER trephine
ENV TREPHINE_CACHE=/var/cache/trephine \
    TREPHINE_STATE=/var/lib/trephine \
    PYTHONUNBUFFERED=1
VOLUME ["/var/lib/trephine", "/var/cache/trephine"]
EXPOSE 7311
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s CMD ["python", "-m", "trephine.server", "health"]
# Loopback inside the container unless a certificate or --insecure-listen is given: see the README, "Serving".
ENTRYPOINT ["python", "-m", "trephine.server"]
CMD ["serve", "--listen", "127.0.0.1:7311"]
