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

.PHONY: demo test lint types clean

demo: $(STAMP) $(ZIG)
	$(RUN)/python -m adr_tvm.demo

test: $(STAMP) $(ZIG)
	$(RUN)/python -m pytest

lint: $(STAMP)
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .

types: $(STAMP)
	$(RUN)/mypy

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
	rm -rf $(VENV) build *.egg-info demo-out
