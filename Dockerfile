# shrinkc with all it needs to compile a model and to run it on host and qemu.
#
#   make docker         the image; its golden tests have passed when it is there
#   make docker-test    all tests, compression and its libraries included
#   docker build --target with-gvsoc -t shrinkc .       and GVSoC
#
#   docker run --rm shrinkc demo
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/data" shrinkc compile /data/model -o /data/out
#
# The stage with GVSoC copies the simulator out of the image that the PULP team publishes, where it is
# installed under /app/install/gvsoc.  That image is large and is not fetched by the tests of this
# project: the stage is written after the image's documentation and is not part of CI.

# Any image of Debian 13; with a digest (debian:13-slim@sha256:...) it is the same one every time.
ARG BASE=debian:13-slim
ARG GVSOC=ghcr.io/pulp-platform/deeploy:latest

# ---- what runs ----

FROM ${BASE} AS base
# Of the compilers and emulators for everything, only what RV32 programs in C need: 1.3 GB less.
RUN printf '%s\n' \
        'path-exclude=/usr/share/doc/*' 'path-exclude=/usr/share/man/*' 'path-exclude=/usr/share/info/*' \
        'path-exclude=/usr/share/locale/*' \
        'path-exclude=/usr/bin/qemu-*' 'path-include=/usr/bin/qemu-riscv32' \
        'path-exclude=/usr/lib/gcc/riscv64-unknown-elf/*/rv*' \
        'path-include=/usr/lib/gcc/riscv64-unknown-elf/*/rv32im/*' \
        'path-exclude=/usr/lib/gcc/riscv64-unknown-elf/*/plugin/*' \
        'path-exclude=/usr/lib/gcc/riscv64-unknown-elf/*/cc1plus' \
        'path-exclude=/usr/lib/gcc/riscv64-unknown-elf/*/lto1' \
        'path-exclude=/usr/bin/riscv64-unknown-elf-lto-dump' \
        'path-exclude=/usr/libexec/gcc/*/lto1' 'path-exclude=/usr/bin/*-linux-gnu-lto-dump-*' \
        > /etc/dpkg/dpkg.cfg.d/lean \
    && apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        gcc gcc-riscv64-unknown-elf libc6-dev make python3 qemu-user \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt /var/log/apt /var/log/dpkg.log
RUN useradd --create-home --uid 1000 shrinkc && mkdir /data && chown shrinkc: /data
ENV PATH=/opt/shrinkc/bin:$PATH OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

# ---- what installs it: versions from the lock, into an environment that has no pip ----

FROM base AS build
RUN apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends ccache python3-venv
ENV PIP_CONSTRAINT=/src/.ci/requirements.lock PIP_BUILD_CONSTRAINT=/src/.ci/requirements.lock \
    PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python3 -m venv /opt/tests && python3 -m venv --without-pip /opt/shrinkc
WORKDIR /src
COPY .ci/requirements.lock .ci/
COPY pyproject.toml README.md LICENSE CHANGELOG.md ./
COPY compiler compiler
COPY runtime_c runtime_c
COPY templates templates
COPY toolchain toolchain
RUN /opt/tests/bin/pip --python /opt/shrinkc/bin/python install .

# ---- tests: of the base install, on host and qemu ----

FROM build AS tested
RUN /opt/tests/bin/pip install --editable '.[test]' && chown shrinkc: /src
COPY --chown=shrinkc . .
ENV PATH=/opt/tests/bin:$PATH
USER shrinkc
RUN python -m pytest -n auto --dist loadfile -m "not slow" && touch passed

# ---- all tests, which need the libraries of compression, headers and a compiler to build them, and a browser ----

FROM tested AS tested-compress
USER root
RUN apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        chromium g++ python3-dev
RUN pip install --editable '.[dev]'
USER shrinkc
RUN python -m pytest -n auto --dist loadfile -m "not gvsoc"

# ---- the image ----

FROM base AS image
COPY --from=build /opt/shrinkc /opt/shrinkc
COPY --from=tested /src/passed /shrinkc/
COPY LICENSE /shrinkc/
COPY examples /shrinkc/examples
COPY .ci/entrypoint /shrinkc/
USER shrinkc
WORKDIR /data
ENTRYPOINT ["/shrinkc/entrypoint"]
CMD ["--help"]

FROM ${GVSOC} AS deeploy

FROM image AS with-gvsoc
USER root
COPY --from=deeploy /app/install/gvsoc /app/install/gvsoc
# what its launcher, a Python script, imports for target siracusa
RUN --mount=type=bind,from=build,source=/opt/tests,target=/opt/tests \
    --mount=type=bind,from=build,source=/src,target=/src,rw \
    PIP_CONSTRAINT=/src/.ci/requirements.lock PIP_BUILD_CONSTRAINT=/src/.ci/requirements.lock \
    /opt/tests/bin/pip --python /opt/shrinkc/bin/python install --no-cache-dir '/src[gvsoc]'
USER shrinkc

FROM image
