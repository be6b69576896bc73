# Two commands: `make demo` runs the whole economy once on this machine, `make test` runs every test that needs no GPU.
# Both set up .venv first; the second time that costs nothing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint clean

demo: $(READY)
	$(BIN)/fabric demo

test: $(READY)
	$(BIN)/pytest -n 2 --dist loadfile -m "not ray and not gpu"
	$(BIN)/pytest -m "ray and not gpu"

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

clean:
	rm -rf $(VENV)
