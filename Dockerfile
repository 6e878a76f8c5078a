# shrinkc with all it needs.  `docker build .` also runs the golden tests on host and qemu.
#
#   docker build -t shrinkc .                       host and qemu
#   docker build -t shrinkc --target with-gvsoc .   and GVSoC
#
# The stage with GVSoC copies the simulator out of the image that the PULP team publishes, where it is
# installed under /app/install/gvsoc.  That image is large and is not fetched by the tests of this
# project: the stage is written after the image's documentation and is not part of CI.

FROM debian:13-slim AS base
RUN apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        gcc gcc-riscv64-unknown-elf libc6-dev make python3 python3-venv qemu-user \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/shrinkc
ENV PATH=/opt/shrinkc/bin:$PATH OMP_NUM_THREADS=1

FROM base AS build
WORKDIR /src
COPY pyproject.toml README.md ./
COPY compiler compiler
COPY runtime_c runtime_c
COPY templates templates
COPY toolchain toolchain
RUN pip install --no-cache-dir .

FROM build AS tested
RUN pip install --no-cache-dir '.[dev,compress]'
COPY . .
RUN python -m pytest -m "not gvsoc"

FROM ghcr.io/pulp-platform/deeploy:latest AS deeploy

FROM build AS with-gvsoc
COPY --from=deeploy /app/install/gvsoc /app/install/gvsoc
# what its launcher, a Python script, imports for target siracusa
RUN pip install --no-cache-dir prettytable pyelftools rich
COPY examples /shrinkc/examples
WORKDIR /shrinkc
ENTRYPOINT ["shrinkc"]

# The default: nothing of the test tools, but only built when the tests passed.
FROM build
COPY --from=tested /src/pyproject.toml /opt/shrinkc/tested
COPY examples /shrinkc/examples
WORKDIR /shrinkc
ENTRYPOINT ["shrinkc"]
