# make train, make test: both build .venv first, with uv if it is there, else with Python >= 3.11 and pip.
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := dev
NEWEST := .venv-newest
FAST := $(addprefix tests/,contracts/test_public.py contracts/test_quantizers.py \
	$(addprefix test_,$(addsuffix .py,layers losses model pretrained stages streaming)))
READY := $(VENV)/.ready-$(EXTRAS)
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3.14 python3; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null \
	&& echo $$python && break; done)

.PHONY: help setup train test newest lint lock
help:
	@echo 'make train   train the tiny codec on audio that it makes itself; again: goes on where it stopped'
	@echo '             make train ARGS="data=folder data.root=/path/to/wavs name=mine"'
	@echo 'make test    check everything; CODEC_TEST_AUDIO=/path/to/speech adds the tests on real recordings'
	@echo '             make test ARGS="tests/test_configs.py -k quantizer"'
	@echo '             make test EXTRAS=oracles also compares with other libraries (some GB more; as .ci/run)'
	@echo 'make newest  the fast contracts with the newest torch, on the newest Python at hand (needs uv)'
	@echo 'make lint    ruff and pyright'
	@echo 'make setup   build $(VENV) and nothing else; PYTHON=... chooses the interpreter'
	@echo 'make lock    make constraints.txt again (needs uv); ARGS=--upgrade for the newest versions'

setup: $(READY)

train: $(READY)
	$(BIN)/codec-train experiment=tiny resume=auto $(ARGS)

test: lint
	$(BIN)/pytest -n auto --maxprocesses 4 --dist worksteal $(ARGS)

# The lock holds all else, so that a failure here is torch's, or Python's.
newest:
	rm -rf $(NEWEST) && for python in 3.14 3.13 3.12 3.11; do \
		uv venv --no-python-downloads --python $$python $(NEWEST) && break; done
	grep -vE '^(torch|torchaudio|triton|nvidia-.*|cuda-.*)==' constraints.txt > $(NEWEST)/constraints.txt
	uv pip install --python $(NEWEST)/bin/python -c $(NEWEST)/constraints.txt -e '.[dev,metrics,perceptual]'
	$(NEWEST)/bin/pytest -p no:cacheprovider -n auto --maxprocesses 4 -m 'not slow' $(FAST)

lint: $(READY)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright --pythonpath $(BIN)/python

lock:
	uv pip compile --universal --python-version 3.11 --no-header --no-annotate --no-emit-index-url \
		--all-extras --quiet $(ARGS) pyproject.toml -o constraints.txt

# Built again when what it depends on changes; a step that failed is tried again by the next call.
# quantizer-pytorch brings types of an old NumPy and Matplotlib, which hide those that both have of their own.
$(READY): pyproject.toml constraints.txt
	@if command -v uv >/dev/null; then $(WITH_UV); else $(WITH_PIP); fi
	@rm -rf $(VENV)/lib/python3.*/site-packages/numpy-stubs $(VENV)/lib/python3.*/site-packages/matplotlib-stubs
	@touch $@

WITH_UV = set -ex; \
	$(BIN)/python -c '' 2>/dev/null || uv venv --clear --seed --python '>=3.11,<3.15' $(VENV); \
	uv pip install --python $(BIN)/python -c constraints.txt -e '.[$(EXTRAS)]'

# Debian's Python cannot put pip into a venv without the package python3-venv, but its own pip can.
WITH_PIP = set -e; \
	if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		test -n "$(PYTHON)" || { echo 'Python 3.11, 3.12, 3.13 or 3.14 is needed; if one lies outside PATH:' \
			'make PYTHON=/path/to/python ...' >&2; exit 1; }; \
		(set -x; $(PYTHON) -m venv --clear $(VENV)) || (set -x; \
			$(PYTHON) -m venv --clear --without-pip $(VENV); \
			$(PYTHON) -m pip --python $(BIN)/python install pip); \
	fi; \
	set -x; $(BIN)/python -m pip install -c constraints.txt -e '.[$(EXTRAS)]'
