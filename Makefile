# make demo      environment, then the whole road on a rendered ego-exo world (at most 5 minutes on two cores)
# make test      environment, lint, types, and the short tests (at most 15 minutes on two cores)
# make test-all  environment, and every test with its full counts
# make docs      the documentation as a site, build/site/index.html
# Another interpreter: make test PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
JOBS ?= 3
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# The files of tests are shared among JOBS processes of one thread each; many tests wait for others.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile
# What is type-checked: every package and module at the top.
PACKAGES := $(patsubst %/__init__.py,-p uniego.%,$(filter-out tests/%,$(wildcard */__init__.py)))
MODULES := -m uniego $(patsubst %.py,-m uniego.%,$(filter-out __init__.py,$(wildcard *.py)))

.PHONY: demo test test-all docs env lint types clean

demo: env
	$(BIN)/uniego demo --out uniego-demo

test: lint types
	$(PYTEST) -m "not slow"

test-all: env
	UNIEGO_TEST_FULL=1 $(PYTEST)

docs: env
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "build/site/index.html, to be opened from the disk or served"

env: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "uniego needs Python 3.11 or newer: make PYTHON=python3.12" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt -e ".[all,dev]"
	touch $@

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The package is the repository's root, under whatever name it was cloned: the link gives it its own.
types: env
	mkdir -p .typing
	ln -sfn .. .typing/uniego
	MYPYPATH=.typing $(BIN)/mypy $(PACKAGES) $(MODULES)

clean:
	rm -rf build dist *.egg-info .typing .mypy_cache .ruff_cache .pytest_cache .hypothesis
