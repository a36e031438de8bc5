# Needs Python 3.11 or later, pip and make; everything else goes into .venv. PYTHON=python3.12 picks another Python.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
REFERENCE := $(VENV)/.reference-installed
JOBS ?= 2
PYTEST = $(BIN)/python -m pytest -n $(JOBS) --dist loadfile

.DELETE_ON_ERROR:
.PHONY: help quickstart test test-all lint bench lock clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1	\2/p' $(MAKEFILE_LIST) | expand -t 20

quickstart: $(INSTALLED) ## train, export and verify a small network; ARGS="--epochs 5" goes to `keras-resnet quickstart`
	$(BIN)/keras-resnet quickstart $(ARGS)

test: $(INSTALLED) ## the tests, but the slow ones; ARGS="-k blocks" goes to pytest, JOBS is the number of processes
	$(PYTEST) $(ARGS)

test-all: $(REFERENCE) ## every test; installs torch and jax, which the slow ones compare with
	$(PYTEST) -m "slow or not slow" $(ARGS)

lint: $(INSTALLED) ## style, format, direction of imports, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m tests.layout .lint
	cd .lint && ../$(BIN)/lint-imports --config ../pyproject.toml --no-logo
	cd .lint && ../$(BIN)/mypy --config-file ../pyproject.toml --cache-dir ../.mypy_cache -p keras_resnet

bench: $(INSTALLED) ## every module of benchmarks/, or NAME=building alone, to which ARGS="--rounds 3" goes
	@set -e; for file in benchmarks/$(or $(NAME),*).py; do \
		name=$$(basename "$$file" .py); \
		case "$$name" in __init__ | "*") continue ;; esac; \
		echo "== benchmarks.$$name"; $(BIN)/python -m "benchmarks.$$name" $(ARGS); \
	done

# Resolved anew for every platform and Python that we support; the comment lines at the head of the file are kept.
lock: ## make requirements.lock anew from pyproject.toml and constraints.txt
	@set -e; scratch=$$(mktemp -d); trap 'rm -rf "$$scratch"' EXIT; \
	$(PYTHON) -m venv "$$scratch/venv"; \
	"$$scratch/venv/bin/pip" install --quiet uv; \
	"$$scratch/venv/bin/uv" pip compile --quiet --generate-hashes --universal --python-version 3.11 --no-header \
		--no-annotate --extra dev --no-emit-package keras-resnet-edge pyproject.toml -c constraints.txt \
		-o "$$scratch/body"; \
	{ sed '/^#/!q' requirements.lock | grep '^#'; cat "$$scratch/body"; } > "$$scratch/lock"; \
	cp "$$scratch/lock" requirements.lock

clean: ## remove what was built and cached, but not .venv
	rm -rf build dist ./*.egg-info .lint .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

# A .venv that was begun here and not finished is begun again; one that was there, finished or yours, is only brought up
# to date.
$(INSTALLED): requirements.lock pyproject.toml
	@if [ ! -e $(VENV) ] || [ -e $(VENV)/.unfinished ]; then \
		$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and "Python 3.11 or later is needed, and" \
			" $(PYTHON) is %d.%d: say which with make PYTHON=python3.12" % (v[0], v[1]))' || exit 1; \
		rm -rf $(VENV) && mkdir $(VENV) && touch $(VENV)/.unfinished && $(PYTHON) -m venv $(VENV); \
	fi
	$(BIN)/python -m pip install --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-index --no-deps --no-build-isolation -e .
	@rm -f $(VENV)/.unfinished
	@touch $@

# The first line brings the versions, torchvision's whatever it asks for; the second what torch and jax need besides.
$(REFERENCE): requirements-reference.txt $(INSTALLED)
	$(BIN)/python -m pip install --no-deps -r requirements-reference.txt
	$(BIN)/python -m pip install torch jax
	@touch $@
