# `make book` runs every notebook and builds the book, `make test` checks everything. Both first set
# up .venv, which needs Python 3.11 to 3.13 and nothing else. All paths are relative: the folder's
# own path may hold spaces.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:

# The environment is made anew or brought up to date whenever one of these files, or the place of
# the folder (an editable installation points to it), is not as it was at the last installation.
PINS  := requirements.txt requirements-test.txt constraints.txt pyproject.toml
READY := .venv/ready-$(shell { pwd -P; cat $(PINS); } | cksum | cut -d ' ' -f 1)
# What only the tests need is large, so it comes with `make test`.
TESTED := $(READY)-tests
RUN   := .venv/bin/python
# What drives Chromium through the book's pages comes with `make test-browser`.
BROWSED := $(READY)-browser-$(shell cksum < requirements-browser.txt | cut -d ' ' -f 1)
# Models whose code is for transformers 4 run in an environment of their own.
LEGACY := .venv-legacy/ready-$(shell { pwd -P; cat requirements-legacy.txt pyproject.toml; } | cksum | cut -d ' ' -f 1)

LEGACY_TESTS := $(addprefix tests/test_,both_versions.py conversions.py expert_rows.py \
  made_up_models.py models.py own_code.py paper_models.py)

# Which Python to set .venv up with; name another one as `make PYTHON=/usr/bin/python3.12 book`.
PYTHON ?=

# Chromium for `make test-browser`, where it is not on the PATH.
CHROMIUM ?=

# A checkout of the paper's scripts for `make bench` to measure against; see benchmarks.
PAPER ?=

.PHONY: help book test test-browser test-legacy notebooks bench lock clean

help:
	@echo 'make book         run every notebook and build the book: _build/html/index.html'
	@echo 'make test         ruff, mypy, unit tests, and every notebook against its committed outputs'
	@echo 'make test-browser every page of the built book in Chromium: whole, readable, usable'
	@echo 'make test-legacy  recording and loading models with transformers 4.57'
	@echo 'make notebooks    run every notebook and rewrite its committed outputs'
	@echo 'make bench        time the measures and write book/benchmarks.md; PAPER=FOLDER of the scripts'
	@echo 'make lock         write the versions now in .venv to constraints.txt'
	@echo 'make clean        remove what was built; .venv stays'

book: $(READY)
	@$(RUN) book/build.py book

notebooks: $(READY)
	@$(RUN) book/build.py notebooks

test: $(TESTED)
	@$(RUN) -m ruff check --quiet .
	@$(RUN) -m ruff format --check --quiet . \
	  || { echo 'Not formatted; run: $(RUN) -m ruff format .'; exit 1; }
	@$(RUN) -m mypy --no-error-summary lrc
	@$(RUN) -m pytest

test-browser: $(BROWSED)
	@CHROMIUM='$(CHROMIUM)' $(RUN) tests/browser/chromium.py
	@CHROMIUM='$(CHROMIUM)' $(RUN) -m pytest -q -o addopts= tests/browser

bench: $(TESTED)
	@$(RUN) -m benchmarks $(if $(PAPER),--paper '$(PAPER)')

# pytest's options in pyproject.toml are for notebooks, which are not run here.
test-legacy: $(LEGACY)
	@OMP_NUM_THREADS=1 .venv-legacy/bin/python -m pytest -q -o addopts= $(LEGACY_TESTS)

# A CPU-only torch calls itself 2.x.y+cpu, which other machines could not install; its CUDA
# libraries follow from torch itself.
lock: $(TESTED)
	@$(RUN) -m pip freeze --exclude-editable | sed 's/+cpu$$//' \
	  | grep -v -E '^(nvidia|cuda|triton)|^#|^-e' > constraints.new && mv constraints.new constraints.txt

clean:
	@rm -rf _build .pytest_cache .ruff_cache .mypy_cache .hypothesis
	@find . -path './.venv*' -prune -o -name __pycache__ -prune -exec rm -rf {} +

SUITABLE := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))

$(READY):
	@python='$(PYTHON)'; \
	for name in python3.11 python3.12 python3.13 python3 python; do \
	  [ -n "$$python" ] || ! "$$name" -c '$(SUITABLE)' 2>/dev/null || python=$$name; \
	done; \
	[ -n "$$python" ] && "$$python" -c '$(SUITABLE)' \
	  || { echo 'Python 3.11 to 3.13 is needed; install it, or say where: make PYTHON=/path/to/python3.11'; exit 1; }; \
	$(RUN) -c '$(SUITABLE)' 2>/dev/null || "$$python" -m venv --clear .venv \
	  || { echo "$$python cannot make virtual environments; install its venv package (Debian: python3-venv)"; exit 1; }
	@echo 'Installing the pinned packages into .venv (a few minutes the first time)'
	@$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@rm -f .venv/ready-* && touch $@

$(LEGACY): $(READY)
	@$(RUN) -m venv .venv-legacy
	@echo 'Installing transformers 4.57 into .venv-legacy (a few minutes the first time)'
	@.venv-legacy/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-legacy.txt
	@.venv-legacy/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@rm -f .venv-legacy/ready-* && touch $@

$(TESTED): $(READY)
	@echo 'Installing what only the tests need (a minute the first time)'
	@$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-test.txt
	@touch $@

$(BROWSED): $(READY)
	@echo 'Installing what only the tests of the pages need (half a minute the first time)'
	@$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-browser.txt
	@touch $@
