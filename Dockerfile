# shrinkc with all it needs to compile a model and to run it on host and QEMU.
#
#   make docker         the image; the fast tests have passed when it is there
#   make docker-test    all tests, compression and its libraries included
#   make docker-gvsoc   the image and GVSoC; demo and golden tests have run in it
#
#   docker run --rm shrinkc demo
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/data" shrinkc compile /data/model -o /data/out
#
# GVSoC is built from three repositories: from their public addresses, or where there is no network from
# directories, Git repositories that hold the commits below, which take the place of three empty stages:
#   docker build --target with-gvsoc --build-context gvsoc=DIR --build-context gvsoc-core=DIR \
#       --build-context gvsoc-pulp=DIR .

# Any image of Debian 13; with a digest (debian:13-slim@sha256:...) it is the same one every time.
ARG BASE=debian:13-slim

# ---- what runs ----

FROM ${BASE} AS base
# Of the compilers and emulators for everything, only what RV32 programs in C need: 1.3 GB less.
RUN printf '%s\n' \
        'path-exclude=/usr/share/doc/*' 'path-exclude=/usr/share/man/*' 'path-exclude=/usr/share/info/*' \
        'path-exclude=/usr/share/locale/*' \
        'path-exclude=/usr/bin/qemu-*' 'path-include=/usr/bin/qemu-riscv32' \
        'path-include=/usr/bin/qemu-system-riscv32' 'path-exclude=/usr/share/qemu/*' \
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
        gcc gcc-riscv64-unknown-elf libc6-dev make python3 qemu-system-riscv qemu-user \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt /var/log/apt /var/log/dpkg.log
RUN useradd --create-home --uid 1000 shrinkc && mkdir /data && chown shrinkc: /data
ENV PATH=/opt/shrinkc/bin:$PATH OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

# ---- what installs it: versions from the lock, into an environment that has no pip ----

FROM base AS build
RUN apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends ccache cmake python3-venv
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

# ---- the fast tests: of the base install, on host and QEMU ----

FROM build AS tests
RUN /opt/tests/bin/pip install --editable '.[test]' && chown shrinkc: /src
COPY --chown=shrinkc . .
ENV PATH=/opt/tests/bin:$PATH
USER shrinkc

FROM tests AS tested
RUN python -m pytest -n auto --dist loadfile -m "not slow" && touch passed

# ---- all tests, which need the libraries of compression, headers and a compiler to build them, and a browser ----

FROM tests AS tested-compress
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

# ---- GVSoC; a build context of the name of an empty stage is used in its place ----

FROM scratch AS gvsoc
FROM scratch AS gvsoc-core
FROM scratch AS gvsoc-pulp

FROM base AS gvsoc-built
RUN apt-get update -qq \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        ca-certificates cmake g++ git libxsimd-dev libxtensor-dev python3-venv zlib1g-dev \
    && git config --system safe.directory '*'
# what its launcher and its build, in Python, import for these targets
COPY .ci/requirements.lock /src/.ci/
RUN python3 -m venv /opt/pip && python3 -m venv --without-pip /opt/gvsoc/venv \
    && PIP_CONSTRAINT=/src/.ci/requirements.lock \
        /opt/pip/bin/pip --python /opt/gvsoc/venv/bin/python install --no-cache-dir pexpect prettytable pyelftools rich six
ARG GVSOC=edfcd8398840ceb1e151711befa06678b05f06a0
ARG GVSOC_CORE=ac27d003ca76bd78ea3713584aa01de9a22cd6e4
ARG GVSOC_PULP=9968c4e89dccfbadb316d6e8d983b4962f68f65b
# without examples/, which alone has large files
RUN --mount=type=bind,from=gvsoc,target=/given/gvsoc \
    --mount=type=bind,from=gvsoc-core,target=/given/gvsoc-core \
    --mount=type=bind,from=gvsoc-pulp,target=/given/gvsoc-pulp \
    get() { \
        from=/given/$1; \
        [ -e "$from/.git" ] || [ -e "$from/HEAD" ] || from=https://github.com/gvsoc/$1; \
        echo "$1 $3 from $from" \
        && git clone --quiet --filter=blob:none --no-checkout "$from" "$2" \
        && git -C "$2" sparse-checkout set --no-cone '/*' '!/examples/' \
        && git -C "$2" checkout --quiet "$3"; \
    }; \
    get gvsoc /gvsoc "$GVSOC" \
    && get gvsoc-core /gvsoc/core "$GVSOC_CORE" \
    && get gvsoc-pulp /gvsoc/pulp "$GVSOC_PULP" \
    && for source in gvsoc gvsoc/core gvsoc/pulp; do git -C /$source rev-parse --short=7 HEAD; done \
        | paste -sd ' ' > /opt/gvsoc/commits
# The uDMA model keeps the request of every four bytes that it writes to L2, 380 bytes: reading 480 MB from flash would
# take 45 GB.  L2 answers at once, so the request can be freed.
RUN udma=/gvsoc/pulp/pulp/udma/udma_v3_impl.cpp \
    && sed -i '/l2_write_reqs->pop/,/UNIMPLEMENTED/ { \
        /IO_REQ_OK/ { n; s/{/{ delete[] req->get_data(); _this->l2_itf.req_del(req);/ } }' $udma \
    && grep -q 'req_del(req)' $udma
# without the models for debugging and without symbols: 36 MB with its Python environment
RUN PATH=/opt/gvsoc/venv/bin:$PATH OPTIONS=-DBUILD_DEBUG=OFF \
    make -C /gvsoc build TARGETS="siracusa pulp-open" INSTALLDIR=/opt/gvsoc CMAKE_FLAGS="-j $(env -u OMP_NUM_THREADS nproc)" \
    && find /opt/gvsoc -name '*.so' -exec strip --strip-unneeded {} +

# ---- the story on the simulated chip, and the golden tests, on every machine ----

FROM tests AS tested-gvsoc
COPY --from=gvsoc-built /opt/gvsoc /opt/gvsoc
RUN shrinkc doctor | grep '^gvsoc .* ok ' \
    && examples/demo.sh /tmp/stories "Once upon a time" 20 \
    && python -m pytest tests/golden && touch passed-gvsoc

FROM image AS with-gvsoc
COPY --from=gvsoc-built /opt/gvsoc /opt/gvsoc
COPY --from=tested-gvsoc /src/passed-gvsoc /shrinkc/

FROM image
