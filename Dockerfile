# A server for one bundle: the runtime, both engines, and nothing that exports. Made of Debian's and PyPI's packages.
#
#   docker build -t edgeglm .
#   docker run --read-only -p 8000:8000 -v $PWD/glm4-int4:/bundle:ro -v $PWD/key.txt:/run/secrets/edge-key:ro edgeglm
#
# What follows the name of the image are more options of `edge serve`. The user 10001 has to be able to read both.
FROM debian:bookworm-slim AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-venv
COPY . /src
ARG EXTRAS=onnx,openvino,server,grammar,documents
RUN python3 -m venv /opt/edge \
    && /opt/edge/bin/pip install --no-cache-dir "/src[$EXTRAS]" \
    && /opt/edge/bin/pip uninstall -y pip setuptools

FROM debian:bookworm-slim
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* \
    && useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin edge
COPY --from=build /opt/edge /opt/edge
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=10s --start-period=120s \
    CMD ["/opt/edge/bin/python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health', timeout=5)"]
ENTRYPOINT ["/opt/edge/bin/edge", "serve", "/bundle", "--host", "0.0.0.0", "--api-key-file", "/run/secrets/edge-key"]
