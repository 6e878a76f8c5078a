# make demo         compile examples/stories, run it on host and QEMU (and GVSoC where there is one)
# make test         lint and the fast tests, in minutes; downloads about 3 GB of libraries (README.md)
# make test-all     the same, then the slow tests: sanitizer sweeps, packages, pages, training, GVSoC
# make test-slow    the slow tests alone
# make coverage     lines of compiler/ that each tier runs (TIER=fast, slow or all)
# make bench        cycles on GVSoC into docs/results/data, and their tables (DATA=folder with stories260K/)
# make bench-flash  the same for models in flash (SMOLLM2=its GGUF file); half an hour, 16 GB
# make fuzz         change inputs of every importer at random (N=20000 SEED=1 ONLY=gguf-types for one); figures as above
# make random-shapes  verify random models on host, QEMU and GVSoC (HOST=1000 GVSOC=100); figures as above
# make texts        compare ids of the C encoder with the tokenizers library (N=40000 GVSOC=100); figures as above
# make kills        kill and resume compression runs at random moments (N=20 SEED=1); figures as above
# make calibrate    fit the cost model of `shrinkc plan` to runs on GVSoC (WORK=folder to go on from)
# make docs         docs/ as a site in out/site; begin with out/site/index.html
# make setup        only what `make test` needs: Debian packages where they are missing, and $(VENV)
# make lint         the checks of the gate that run nothing
# make format       lay out Python and C sources
# make lock         newest versions of all libraries into .ci/requirements.lock
# make dist         wheel and sdist into dist/
# make dist-test    install each in an environment of its own, compile examples/stories and run it
# make docker       image shrinkc:VERSION, after the fast tests (DOCKER=podman, BASE=, DIGEST=)
# make docker-test  all tests in the image, compression and its libraries included
# make docker-gvsoc  image shrinkc-gvsoc, after golden tests there (CONTEXTS="gvsoc=DIR gvsoc-core=DIR gvsoc-pulp=DIR")
# make clean        remove what was made, $(VENV) excepted
#
# From a new clone on Debian 13 nothing else has to be done first.

VENV   ?= .venv
PROMPT ?= Once upon a time
TOKENS ?= 200
SIMULATED ?= 20
DOCKER ?= docker
BASE   ?= debian:13-slim
DIGEST ?=
# processes of the tests; one with torch in it takes about 1 GB
# nproc would say what OMP_NUM_THREADS is, which is exported below
JOBS   ?= $(shell n=$$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc); echo $$((n < 4 ? n : 4)))

BIN  := $(VENV)/bin
C    := $(sort $(wildcard runtime_c/*/*.[ch] runtime_c/*/*/*.[ch]))
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
LOCK := $(CURDIR)/.ci/requirements.lock

# The matrices here are small: more threads only get into each other's way.
export OMP_NUM_THREADS ?= 1
export OPENBLAS_NUM_THREADS ?= 1

.PHONY: help demo test test-slow test-all coverage bench bench-flash fuzz random-shapes texts kills calibrate docs setup packages packages-dev clean
.PHONY: lint lint-python lint-types lint-c format lock dist dist-test docker docker-test docker-gvsoc
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

# ---- set-up ----

# ensurepip is what Debian leaves out of a python3 without python3-venv.
# The lock has versions for 3.11 to 3.13; a newer one would be given others without a word.
find_python = python=; for p in python3 python3.13 python3.12 python3.11 /usr/bin/python3; \
    do $$p -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
    2> /dev/null && { python=$$p; break; }; done

# What is missing of "test command, Debian packages" pairs, and its installation.  A machine that has just been started
# updates itself: its package lists and database are in use for a while.
want    = want() { sh -c "$$1" > /dev/null 2>&1 || missing="$$missing $$2"; }; missing=
install = test -n "$$missing" || exit 0; \
	if ! command -v apt-get > /dev/null; then \
	    echo "make: these Debian packages, or what your system calls them, are missing:$$missing" >&2; \
	    exit 1; \
	fi; \
	if test -n "$(SUDO)" && ! command -v sudo > /dev/null; then \
	    echo "make: run this as root first: apt-get install$$missing" >&2; exit 1; \
	fi; \
	echo "installing$$missing"; \
	for wait in 10 20 60 no; do \
	    said=$$($(SUDO) env LC_ALL=C apt-get update -qq 2>&1) && break; \
	    echo "$$said" >&2; \
	    case "$$wait $$said" in no*) exit 1;; *"Could not get lock"*) ;; *) exit 1;; esac; \
	    echo "once more in $$wait s" >&2; sleep $$wait; \
	done; \
	$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
	    -o DPkg::Lock::Timeout=300 $$missing < /dev/null

packages:
	@$(want); \
	want 'gcc -x c -include stdio.h -E /dev/null' 'gcc libc6-dev'; \
	want 'riscv64-unknown-elf-gcc --version' gcc-riscv64-unknown-elf; \
	want 'qemu-riscv32 --version' qemu-user; \
	want 'qemu-system-riscv32 --version' qemu-system-riscv; \
	$(find_python); test -n "$$python" || missing="$$missing python3 python3-venv"; \
	$(install)

# gptqmodel and a library below it come as source with C in it, for which pip needs Python's headers.
# Reports are tested in Chromium, the library's CMakeLists.txt with CMake; with ccache the tests, which build hundreds of programs, take less time.
packages-dev: packages
	@$(want); \
	$(find_python); \
	want "echo '#include <Python.h>' | gcc -fsyntax-only -xc - -I\
	$$($$python -c 'import sysconfig; print(sysconfig.get_path("include"))')" python3-dev; \
	want 'g++ --version' g++; \
	want 'chromium --version' chromium; \
	want 'cmake --version' cmake; \
	want 'ccache --version' ccache; \
	$(install)

$(BIN)/python: | packages
	@$(find_python); echo "making $(VENV) with $$python"; $$python -m venv $(VENV)

# pip takes every version from the lock, also those that it builds packages with (by the one name
# before pip 25.3, by the other since).  On a terminal it shows how far it is.
pip = env PIP_CONSTRAINT=$(LOCK) PIP_BUILD_CONSTRAINT=$(LOCK) PIP_DISABLE_PIP_VERSION_CHECK=1 \
      $(BIN)/python -m pip install $$(test -t 1 || echo --quiet)

# The stamps say what is installed, so that other requirements install again.
$(VENV)/base: pyproject.toml $(LOCK) | $(BIN)/python
	@$(pip) --editable .
	@touch $@

$(VENV)/test: pyproject.toml $(LOCK) | $(BIN)/python
	@$(pip) --editable '.[test]'
	@touch $@ $(VENV)/base

$(VENV)/docs: pyproject.toml $(LOCK) | $(BIN)/python
	@$(pip) --editable '.[docs]'
	@touch $@ $(VENV)/base

$(VENV)/dev: pyproject.toml $(LOCK) | $(BIN)/python packages-dev
	@echo "installing torch and the other libraries of compression: gigabytes, so several minutes"
	@$(pip) --editable '.[dev]'
	@touch $@ $(VENV)/base $(VENV)/test $(VENV)/docs

setup: packages-dev $(VENV)/dev

lock: packages-dev $(VENV)/dev
	$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --fork-strategy fewest \
	    --all-extras --no-annotate --custom-compile-command 'make lock' pyproject.toml -o $(LOCK)

# ---- the commands of the README ----

demo: packages $(VENV)/base
	@PATH=$(abspath $(BIN)):$$PATH examples/demo.sh out/stories "$(PROMPT)" $(TOKENS) $(SIMULATED)

# Without this make's own settings: tests run make as well, and read what it prints.  The tests of
# a file share what they make, so one process has them all.
plain  = env -u MAKELEVEL -u MAKEFLAGS -u MFLAGS
cases  = pytest -n $(JOBS) --dist loadfile
pytest = $(plain) $(BIN)/python -m $(cases)

# The marker `slow` divides the tests (CONTRIBUTING.md).
TIER_fast = -m "not slow"
TIER_slow = -m slow

test: lint
	$(pytest) $(TIER_fast)

test-slow: setup
	$(pytest) $(TIER_slow)

test-all: test test-slow

# Of child processes too, whatever starts them.
TIER ?= fast
coverage: setup
	rm -rf out/coverage
	$(plain) COVERAGE_RCFILE=$(CURDIR)/pyproject.toml $(BIN)/coverage run -m $(cases) $(TIER_$(TIER))
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --skip-covered --sort=cover

render = $(BIN)/python examples/bench/render.py

bench: packages $(VENV)/base
	$(BIN)/python examples/bench/speed.py $(if $(DATA),--data $(DATA))
	$(render)

bench-flash: packages $(VENV)/base
	$(BIN)/python examples/bench/speed.py --flash $(if $(SMOLLM2),--smollm2 $(SMOLLM2))
	$(render)

# An interrupted campaign resumes, as long as no source changes.  One that finds a fault writes its figures and fails.
suite = env PYTHONPATH=compiler:tests:examples/bench $(BIN)/python -m

fuzz: packages $(VENV)/dev
	$(suite) fuzz.campaign -n $(or $(N),20000) --seed $(or $(SEED),1) $(if $(ONLY),--only $(ONLY))
	$(render)

random-shapes: packages $(VENV)/test
	$(suite) end_to_end.random_shapes --host $(or $(HOST),1000) --gvsoc $(or $(GVSOC),100)
	$(render)

texts: packages $(VENV)/dev
	$(suite) codegen.encode_texts --texts $(or $(N),40000) --gvsoc $(or $(GVSOC),100)
	$(render)

kills: packages $(VENV)/dev
	$(suite) compress.kills -n $(or $(N),20) --seed $(or $(SEED),1)
	$(render)

calibrate: packages $(VENV)/base
	$(BIN)/python examples/bench/calibrate.py $(if $(WORK),--work $(WORK)) $(if $(FORMATS),--formats $(FORMATS))
	$(render)

# Strict: a link that leads nowhere or a page outside the navigation ends it; with --quiet nothing would be
# strict.  The first variable silences the theme's advertisement, the second is the width of the options' help.
docs: $(VENV)/docs
	NO_MKDOCS_2_WARNING=1 COLUMNS=80 $(BIN)/python -m mkdocs build

# ---- checks, each of which is a hook of .pre-commit-config.yaml as well ----

lint: lint-python lint-types lint-c

lint-python: packages-dev $(VENV)/dev
	$(BIN)/ruff check compiler tests examples docs
	$(BIN)/ruff format --check --quiet compiler tests examples docs/*.py

lint-types: packages-dev $(VENV)/dev
	$(BIN)/mypy

lint-c: packages-dev $(VENV)/dev
	$(BIN)/clang-format --dry-run -Werror $(C)

format: packages-dev $(VENV)/dev
	$(BIN)/ruff check --fix --exit-zero --quiet compiler tests examples docs
	$(BIN)/ruff format --quiet compiler tests examples docs/*.py
	$(BIN)/clang-format -i $(C)

# ---- releases ----

dist: packages $(VENV)/test
	rm -rf dist
	$(BIN)/hatchling build -d dist

dist-test: dist
	PYTHON=$(abspath $(BIN))/python .ci/try-packages dist/*.whl dist/*.tar.gz

version = $$(sed -n 's/^__version__ = "\(.*\)"/\1/p' compiler/shrinkc/__init__.py)
docker_build = $(DOCKER) build --build-arg BASE=$(BASE)$(addprefix @,$(DIGEST))

docker:
	$(docker_build) -t shrinkc:$(version) -t shrinkc .

docker-test:
	$(docker_build) --target tested-compress -t shrinkc-tested .

# Where there is no network, CONTEXTS names a Git directory of each of the simulator's repositories.
docker-gvsoc:
	$(docker_build) --target with-gvsoc $(addprefix --build-context ,$(CONTEXTS)) -t shrinkc-gvsoc .

clean:
	rm -rf out dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
