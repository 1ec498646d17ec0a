# make book   environment, all notebooks at mini scale, HTML in _build/html
# make test   environment, then every test
# Needs make and Python 3.11, 3.12 or 3.13 (choose one with PYTHON=...). Works offline once the packages are in .venv.

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
PYTHON ?= python3.12 python3.13 python3.11 python3 python
PYTEST_ARGS ?=
TEST_JOBS ?= 2

export HF_HUB_OFFLINE := 1
export TRANSFORMERS_OFFLINE := 1
export DIFFUSERS_OFFLINE := 1
export JUPYTER_PREFER_ENV_PATH := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# progress bars draw dead widgets into built pages
export TQDM_DISABLE := 1

.PHONY: book test bench stand-in mutants mutants-by-hand fuzz lint env requirements clean

book: env
	$(PY) tools/build_book.py

# Two cores do more with one thread in each of two processes than with two threads in one. A file is never divided.
# TEST_JOBS=0 runs one test after the other, as pytest alone does.
test: env
	$(PY) -m ruff check .
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(TEST_JOBS) --dist loadfile $(PYTEST_ARGS)

# Costs against plain procedures: a table in the book, not a test. BENCH="search mini" runs the lines that hold all these words.
bench: env
	$(PY) tests/bench/run.py $(BENCH)

# Every chapter, its exercises' solutions and the tests of the trunk with a stand-in for a GPU, as devices are mixed up there.
stand-in: env
	$(PY) tools/run_on_stand_in.py --solutions --trunk

# Small mistakes that mutmut makes in the trunk, against each room's tests; goes on where it stopped. ROOMS="edit" JOBS=1
mutants: env
	@$(PY) -c 'import mutmut' 2>/dev/null || \
	  $(PY) -m pip install --quiet --constraint requirements.txt --no-build-isolation --editable '.[mutants]'
	$(PY) tools/mutants.py mutmut $(ROOMS) $(if $(JOBS),--jobs $(JOBS))

# Those that tests/mutants.toml lists: at least 95 of 100 must be noticed. ROOMS="losses runtime/"
mutants-by-hand: env
	$(PY) tools/mutants.py hand $(ROOMS)

# An hour of edit files and configurations that somebody made wrong; a few seconds of it are in make test.
fuzz: env
	SLUG_LITE_FUZZ_SECONDS=3600 $(PY) -m pytest tests/runtime/test_fuzz_files.py

lint: env
	$(PY) -m ruff check .
	$(PY) -m ruff format --diff slug_lite tests tools

env: $(STAMP)

# The stamp is written last: an install that was interrupted is taken up again.
$(STAMP): requirements.txt pyproject.toml
	@for p in $(PYTHON); do \
	  if $$p -c 'import ensurepip, sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1; then \
	    found=$$p; break; fi; done; \
	if [ -z "$$found" ]; then echo "No Python 3.11 to 3.13 with venv and pip among: $(PYTHON). Name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; exit 1; fi; \
	if ! $(PY) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1; then \
	  echo "Creating $(VENV) with $$found"; $$found -m venv --clear $(VENV); fi
	$(PY) -m pip install --quiet -r requirements.txt
	$(PY) -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

# All supported Pythons and systems at once.
requirements: env
	$(PY) -m pip install --quiet uv
	$(PY) -m uv pip compile pyproject.toml --universal --python-version 3.11 --extra book --extra test \
	  --no-annotate --custom-compile-command "make requirements" --output-file requirements.txt --quiet

clean:
	rm -rf _build
