# Two commands do everything on a fresh machine: `make quickstart` and `make test`.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
comma  := ,
GPU    := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1 && echo 1)
EXTRAS := dev$(if $(GPU),$(comma)gpu)
# Where there is no GPU, saying so spares DeepSpeed the search and its warnings.
RUN    := PATH="$(CURDIR)/$(BIN):$$PATH" $(if $(GPU),,DS_ACCELERATOR=cpu) $(BIN)/deepspeed --quiet

.PHONY: help install browser quickstart test test-faults docs lint check format bench wheelhouse clean

help:  ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

install: $(VENV)/.installed  ## virtual environment with everything

# torch and torchvision first and by exact version: they must fit each other, and everything else then finds them.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.14.1 torchvision==0.29.1
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]'
	@touch $@

# Never fails: where there is none and none can be had, the tests that need one say so.
browser:  ## a Chromium for the tests of report and explorer, where apt can install one
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null \
		|| if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			(apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium) >/dev/null 2>&1 \
				|| echo "no Chromium could be installed: browser tests will be skipped"; \
		else echo "no Chromium here: browser tests will be skipped (CHROMIUM=PATH names one)"; fi

quickstart: install  ## train on procedural rooms with the shipped diffusion model: minutes on a CPU
	$(RUN) engine/train.py --config configs/quickstart.json

test: install  ## correctness regression tests
	$(BIN)/python -m pytest -n 2 -m "not thorough"

test-faults: install  ## what clusters do to a run: kills, full disks, NaN, hangs, signals (docs/reliability.md)
	$(BIN)/python -m pytest -n 2 -m faults --dist worksteal

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[docs]'
	@touch $@

docs: $(VENV)/.docs  ## run the tutorials, build the site into build/site, follow its links
	@PYTHONPATH="$(CURDIR)/docs:$(CURDIR)" $(BIN)/python -m manual.build

lint: install  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

check: lint  ## lint, types, import directions
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_house.py

format: install  ## let ruff format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install  ## time what this machine can tell: on a GPU everything, on a CPU the step and the references
ifeq ($(GPU),1)
	$(BIN)/python -m bench.gpu
else
	$(BIN)/python -m bench.step
	$(BIN)/python -m bench.kernels --config bedroom
	$(BIN)/python -m pytest bench/test_kernels_benchmark.py --benchmark-max-time=0.5 \
		--benchmark-columns=median,iqr,rounds --benchmark-sort=name
endif

wheelhouse: install  ## wheels for a GPU machine without internet (PYTHON_THERE=3.12)
	$(BIN)/python -m bench.wheelhouse --python $(or $(PYTHON_THERE),3.12)

clean:  ## remove the environment and caches, keep runs
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache build *.egg-info
