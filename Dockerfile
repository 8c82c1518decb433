# The images of nodes, operator and dynamoctl: one static set of files and one program each, no shell, not root.
#
# The first three stages take programs that were built before, from dist/: `make images` builds them, prepares a folder with
# dist/ and this file, and calls docker. That is what the tests run. The last stages build from source, for those who have
# Docker and nothing else; the tests do not run them:
#
#   docker build --target node-from-source -t dynamo-node:dev .
#
# The order matters for builders before BuildKit (Docker 20.10): they run every stage above the one that is asked for.

# Has libc, libstdc++ (RocksDB is C++), libgcc, certificates and a user 65532, and nothing else.
ARG BASE=gcr.io/distroless/cc-debian12:nonroot

# ---------------------------------------------------------------- from programs that were built before

FROM ${BASE} AS node
ARG VERSION=dev
ARG REVISION=unknown
LABEL org.opencontainers.image.title="dynamo-node" \
      org.opencontainers.image.description="A storage node of Dynamo for Kubernetes" \
      org.opencontainers.image.url="https://dynamo.rs" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY dist/dynamo-node /usr/local/bin/dynamo-node
USER 65532:65532
# Clients, peers, administrators; probes and metrics.
EXPOSE 7700 7701 7702 9700
ENTRYPOINT ["/usr/local/bin/dynamo-node"]

FROM ${BASE} AS operator
ARG VERSION=dev
ARG REVISION=unknown
LABEL org.opencontainers.image.title="dynamo-operator" \
      org.opencontainers.image.description="The operator of Dynamo for Kubernetes" \
      org.opencontainers.image.url="https://dynamo.rs" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY dist/dynamo-operator /usr/local/bin/dynamo-operator
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/dynamo-operator"]

FROM ${BASE} AS dynamoctl
ARG VERSION=dev
ARG REVISION=unknown
LABEL org.opencontainers.image.title="dynamoctl" \
      org.opencontainers.image.description="The command line of Dynamo for Kubernetes" \
      org.opencontainers.image.url="https://dynamo.rs" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY dist/dynamoctl /usr/local/bin/dynamoctl
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/dynamoctl"]

# ---------------------------------------------------------------- from source, with Docker alone (BuildKit; not run by the tests)

# The same Debian as the base, or its libc would be too new for it.
FROM rust:1.95-bookworm AS builder
RUN apt-get update \
 && apt-get install -y --no-install-recommends g++ libclang-dev \
 && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN cargo build --release --workspace --locked \
 && mkdir -p /dist \
 && for program in dynamo-node dynamo-operator dynamoctl; do strip -o "/dist/$program" "target/release/$program"; done

FROM ${BASE} AS node-from-source
COPY --from=builder /dist/dynamo-node /usr/local/bin/dynamo-node
USER 65532:65532
EXPOSE 7700 7701 7702 9700
ENTRYPOINT ["/usr/local/bin/dynamo-node"]

FROM ${BASE} AS operator-from-source
COPY --from=builder /dist/dynamo-operator /usr/local/bin/dynamo-operator
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/dynamo-operator"]

FROM ${BASE} AS dynamoctl-from-source
COPY --from=builder /dist/dynamoctl /usr/local/bin/dynamoctl
USER 65532:65532
ENTRYPOINT ["/usr/local/bin/dynamoctl"]
