# Build: docker build -t stafett .
# The base images can be replaced: --build-arg BUILD_BASE=… --build-arg RUNTIME_BASE=…
ARG BUILD_BASE=rust:1.95.0-slim-bookworm
ARG RUNTIME_BASE=debian:bookworm-slim

FROM ${BUILD_BASE} AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
# What .dockerignore lets through; the manifest names tests and benches, so they must be there.
COPY . .
RUN cargo build --release --locked --bin stafett

FROM ${RUNTIME_BASE}
RUN groupadd --system --gid 10001 stafett \
    && useradd --system --uid 10001 --gid stafett --home-dir /var/lib/stafett --no-create-home stafett \
    && install -d -o stafett -g stafett /var/lib/stafett
COPY --from=build /src/target/release/stafett /usr/local/bin/stafett
COPY stafett.default.toml /etc/stafett/stafett.default.toml
USER stafett
WORKDIR /var/lib/stafett
VOLUME /var/lib/stafett
ENV STAFETT_DATA_DIR=/var/lib/stafett \
    STAFETT_GRPC_LISTEN=0.0.0.0:50051 \
    STAFETT_MQTT_LISTEN=0.0.0.0:1883
EXPOSE 50051 1883
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 \
    CMD ["stafett", "health", "--timeout", "3s"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["stafett"]
CMD ["serve"]
