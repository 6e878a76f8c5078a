# make demo    compile examples/stories, run it on host and qemu (and GVSoC where there is one)
# make test    lint and all tests
# make bench   cycle counts on GVSoC into docs/results/cycles.md (DATA=folder with stories260K/)
# make setup   only what both need: Debian packages where they are missing, and $(VENV)
# make format  lay out Python and C sources
# make clean   remove what was made, $(VENV) excepted
#
# From a new clone on Debian 13 nothing else has to be done first.

VENV   ?= .venv
PROMPT ?= Once upon a time
TOKENS ?= 200

BIN  := $(VENV)/bin
C    := $(sort $(wildcard runtime_c/*/*.[ch] runtime_c/*/*/*.[ch]))
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)

# The matrices here are small: more threads only get into each other's way.
export OMP_NUM_THREADS ?= 1
export OPENBLAS_NUM_THREADS ?= 1

.PHONY: help demo test bench lint format setup packages clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

# ---- set-up ----

# ensurepip is what Debian leaves out of a python3 without python3-venv.
find_python = python=; for p in python3 python3.14 python3.13 python3.12 python3.11 /usr/bin/python3; \
    do $$p -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2> /dev/null \
    && { python=$$p; break; }; done

packages:
	@missing=; \
	want() { sh -c "$$1" > /dev/null 2>&1 || missing="$$missing $$2"; }; \
	want 'gcc -x c -include stdio.h -E /dev/null' 'gcc libc6-dev'; \
	want 'riscv64-unknown-elf-gcc --version' gcc-riscv64-unknown-elf; \
	want 'qemu-riscv32 --version' qemu-user; \
	$(find_python); test -n "$$python" || missing="$$missing python3 python3-venv"; \
	test -n "$$missing" || exit 0; \
	if ! command -v apt-get > /dev/null; then \
	    echo "make: these Debian packages, or what your system calls them, are missing:$$missing" >&2; \
	    exit 1; \
	fi; \
	if test -n "$(SUDO)" && ! command -v sudo > /dev/null; then \
	    echo "make: run this as root first: apt-get install$$missing" >&2; exit 1; \
	fi; \
	echo "installing$$missing"; \
	$(SUDO) apt-get update -qq && \
	$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
	    $$missing < /dev/null

$(BIN)/python: | packages
	@$(find_python); echo "making $(VENV) with $$python"; $$python -m venv $(VENV)

# The stamps say what is installed, so that a changed pyproject.toml installs again.
$(VENV)/base: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,compress]'
	@touch $@ $(VENV)/base

setup: packages $(VENV)/dev

# ---- the two commands of the README ----

demo: packages $(VENV)/base
	$(BIN)/shrinkc compile examples/stories --target siracusa -o out/stories --force
	@for machine in host qemu gvsoc; do \
	    if test $$machine = gvsoc && ! $(BIN)/shrinkc doctor | grep -q '^gvsoc .* ok '; then \
	        echo; $(BIN)/shrinkc doctor | grep '^to fix gvsoc'; continue; \
	    fi; \
	    echo; echo "---- $$machine ----"; \
	    $(BIN)/shrinkc run out/stories --on $$machine --prompt "$(PROMPT)" --tokens $(TOKENS) || exit 1; \
	done

# Without this make's own settings: tests run make as well, and read what it prints.
test: lint
	env -u MAKELEVEL -u MAKEFLAGS -u MFLAGS $(BIN)/python -m pytest

lint: packages $(VENV)/dev
	$(BIN)/ruff check compiler tests examples
	$(BIN)/ruff format --check --quiet compiler tests examples
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(C)

format: packages $(VENV)/dev
	$(BIN)/ruff check --fix --exit-zero --quiet compiler tests examples
	$(BIN)/ruff format --quiet compiler tests examples
	$(BIN)/clang-format -i $(C)

bench: packages $(VENV)/base
	$(BIN)/python examples/bench/cycles.py $(if $(DATA),--data $(DATA)) --output docs/results/cycles.md

clean:
	rm -rf out dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
