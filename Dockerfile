# The image of k8s/: docker build -t registry.example.com/tidemill .
# Any stable compiler from rust-version in Cargo.toml on.
FROM rust:1.95-bookworm AS builder
WORKDIR /tidemill
# Without rust-toolchain.toml: the compiler is the image's.
COPY Cargo.toml Cargo.lock ./
COPY src src
COPY benches benches
RUN cargo build --release --locked --bin tidemill \
    && install -D --strip target/release/tidemill /out/tidemill

# glibc, its loader and roots for TLS; no shell, no package manager. Not a static binary: musl's
# allocator is slow with threads, and a static glibc cannot look names up.
FROM gcr.io/distroless/cc-debian12:nonroot
COPY --from=builder /out/tidemill /usr/local/bin/tidemill
# As in k8s/base/cronjob.yaml. A number, so that runAsNonRoot can be held against it.
USER 10001:10001
ENTRYPOINT ["/usr/local/bin/tidemill"]
