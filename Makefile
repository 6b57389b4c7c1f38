PYTHON ?= python3
VENV := .venv
STAMP := $(VENV)/.installed
RUN := $(VENV)/bin

# Compiled networks are linked by a C++ compiler. Where the machine has none, the one of the ziglang wheel serves.
COMPILERS := g++ gcc clang++ clang c++ cc
ifeq ($(origin CXX)$(strip $(foreach name,$(COMPILERS),$(shell command -v $(name)))),default)
ZIG := $(CURDIR)/$(RUN)/zig-c++
export CXX := $(ZIG)
endif

# TVM's runtime for 64-bit ARM, which tests run under emulation (with g++-aarch64-linux-gnu and qemu-user).
AARCH64 := .aarch64
AARCH64_WHEELS = apache-tvm apache-tvm-ffi
FREEZE = $(RUN)/pip freeze --disable-pip-version-check

.PHONY: demo test lint types aarch64 clean

demo: $(STAMP) $(ZIG)
	$(RUN)/python -m adr_tvm.demo

test: $(STAMP) $(ZIG)
	$(RUN)/python -m pytest -n auto --dist loadfile

lint: $(STAMP)
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .

types: $(STAMP)
	$(RUN)/mypy

aarch64: $(AARCH64)/.installed

$(AARCH64)/.installed: $(STAMP)
	mkdir -p $(AARCH64)/wheels
	$(RUN)/pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --python-version 3.11 \
		--platform manylinux_2_28_aarch64 --dest $(AARCH64)/wheels \
		$$($(FREEZE) | grep -E '^($(subst $() ,|,$(AARCH64_WHEELS)))==')
	for wheel in $(AARCH64)/wheels/*.whl; do $(RUN)/python -m zipfile -e $$wheel $(AARCH64)/unpacked; done
	find $(AARCH64)/unpacked -name 'libtvm_runtime.so' -o -name 'libtvm_ffi.so' | xargs -I{} mv {} $(AARCH64)
	rm -r $(AARCH64)/wheels $(AARCH64)/unpacked
	touch $@

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

ifdef ZIG
$(ZIG): $(STAMP)
	@echo "no C++ compiler found: installing ziglang (100 MB) to link with; 'apt install g++' makes this faster"
	$(RUN)/pip install --quiet --disable-pip-version-check ziglang
	printf '#!/bin/sh\nexec "%s" -m ziglang c++ "$$@"\n' "$(CURDIR)/$(RUN)/python" > $@
	chmod +x $@
endif

clean:
	rm -rf $(VENV) $(AARCH64) build *.egg-info demo-out
