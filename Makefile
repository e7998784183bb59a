# `make help` lists the targets. Needs Python 3.11 or later; everything else is installed into .venv*.
PYTHON ?= python3
# More than two cores: many tests wait, for time-outs, disks and other processes.
JOBS ?= 3
BIN := .venv/bin
CODE := src plugins tests examples benchmarks
# A variable of the caller's shell must not choose another store, or another project's environment.
unexport HUTCH_STORAGE HUTCH_CONFIG HUTCH_PLUGIN_PATH VIRTUAL_ENV PYTHONPATH
# The tests start thousands of processes; each would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE

# Each in an environment of its own, larger than all the rest; the tests of Python 3.11 run Errbot's.
FRAMEWORKS := dotevals exengine keyvalue ragas themis themis1 web
# Of targets made side by side, the output of each in one piece, where make can.
IN_PIECES := --no-print-directory $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)

.PHONY: help demo test prepare lint types tests tests-3.11 tests-3.12 tests-3.13 bridges bench bench-check bench-bridges growth docs servers format clean
.DEFAULT_GOAL := help

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 18

demo: .venv/demo ## install hutch and run an example with three plugins on LMDB
	$(BIN)/python examples/plugin_host.py
	$(BIN)/python examples/plugin_host.py
	$(BIN)/hutch -c examples/hutch.yaml ls
	$(BIN)/hutch -c examples/hutch.yaml get Greeter visits

# The benchmarks come last, when nothing else runs.
test: prepare tests bridges docs demo bench-check ## install what the tests need and run everything

# Two installations wait for the network while the linters compute.
prepare:
	$(MAKE) $(IN_PIECES) --jobs=3 lint types servers $(patsubst %,.venvs/%/ready,errbot bench $(FRAMEWORKS))

lint: .venv/dev ## ruff: style and formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: .venv/dev ## mypy --strict over all code; mypy and pyright over an application, which sees hutch as installed
	$(BIN)/mypy $(CODE)
	cd tests/typed && ../../$(BIN)/mypy --strict --config-file= application.py
	cd tests/typed && ../../$(BIN)/pyright --pythonpath ../../$(BIN)/python

# The oldest Python measures coverage, and alone runs tests/faults, tests/test_conformance_servers.py, which has what
# TestRedis has, and tests/test_fresh_environment.py, which makes an environment of every Python. The newest runs the
# rest; the one between them leaves out the faults of servers and the kit's own tests, too. ARGS="-k lmdb" narrows down.
tests: tests-3.11 tests-3.12 tests-3.13 ## the tests, on Python 3.11, 3.12 and 3.13

# Coverage's tracer drops an exception that a signal handler raises as a hook of the codec begins, so those tests run
# without it. The limit allows for the branches that only they reach.
UNTRACED := tests/codec/test_interrupts.py tests/codec/test_codec_suite.py
tests-3.11: COVERAGE := --cov --cov-report= $(UNTRACED:%=--ignore=%)
tests-3.11: LESS := $(if $(ARGS),,--deselect=tests/test_conformance.py::TestRedis)
tests-3.12 tests-3.13: LESS := $(patsubst %,--ignore=tests/%,faults test_fresh_environment.py test_conformance_servers.py)
tests-3.12: LESS += --ignore=tests/testing --ignore-glob='tests/engines/test_redis_*'
# Fewer signals than on the oldest Python: each version has its own points, which the tests visit one by one.
tests-3.12 tests-3.13: export HUTCH_INTERRUPTS ?= 60
tests-3.11 tests-3.12 tests-3.13: .venv/uv .venvs/errbot/ready
	HUTCH_ERRBOT_PYTHON=$(CURDIR)/.venvs/errbot/bin/python \
	scripts/run-tests $(@:tests-%=%) -n $(JOBS) --dist loadgroup $(COVERAGE) $(LESS) $(ARGS)
	$(if $(COVERAGE),scripts/run-tests $(@:tests-%=%) -n $(JOBS) --dist loadgroup $(UNTRACED) $(ARGS))
	$(if $(COVERAGE),$(if $(ARGS),,.venvs/$(@:tests-%=%)/bin/coverage report --skip-covered --fail-under=92))

bridges: ## the bridges, each with its real framework
	$(MAKE) $(IN_PIECES) --jobs=2 --keep-going $(FRAMEWORKS:%=bridge-%)

bridge-%: .venvs/%/ready
	scripts/pytest-twice .venvs/$*/bin/python tests/bridges/test_$*.py -n 2 --dist loadgroup $(ARGS)

bench: .venvs/bench/ready .venvs/errbot/ready ## measure hutch and its peers, into docs/benchmarks.md and the baseline
	HUTCH_ERRBOT_PYTHON=$(CURDIR)/.venvs/errbot/bin/python .venvs/bench/bin/python -m benchmarks --update-baseline

bench-check: .venvs/bench/ready ## the benchmark targets, in a minute: fail above a limit or far above the baseline
	.venvs/bench/bin/python -m benchmarks --check

bench-bridges: .venvs/errbot/ready $(FRAMEWORKS:%=.venvs/%/ready) ## measure the bridges and the frameworks' own storages, into docs/bridges
	.venvs/dotevals/bin/python -m benchmarks.bridges

growth: .venvs/bench/ready ## measure how hutch grows, into docs/growth.md; half an hour and 20 GB of disk
	.venvs/bench/bin/python -m benchmarks.growth

docs: .venv/dev servers ## build the site into site/, with strict links, and look at each page in Chromium
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	HUTCH_SITE=$(CURDIR)/site scripts/pytest-twice $(BIN)/python tests/site

servers: .venv/uv
	@scripts/install-servers

format: .venv/dev ## format and fix the code with ruff
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean: ## remove everything that was built or installed here
	rm -rf .venv .venvs site dist .coverage* .mypy_cache .pytest_cache .ruff_cache examples/state examples/errbot/data

# --- environments: made again when pyproject.toml changes ---

.venv/base:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("hutch needs Python 3.11 or later, and $(PYTHON) is " + sys.version.split()[0] + "; try: make $(MAKECMDGOALS) PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	@touch $@

.venv/demo: .venv/base pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[cli]'
	@touch $@

.venv/uv: .venv/base
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@touch $@

.venv/dev: .venv/uv pyproject.toml
	$(BIN)/uv pip install --quiet --python $(BIN)/python --editable '.[all]' --group dev --group docs
	@touch $@ .venv/demo

# The real Errbot has an environment of its own: it brings dozens of packages. It finds a copy of the bridge there.
.venvs/errbot/ready: .venv/uv pyproject.toml $(wildcard src/hutch/bridges/errbot/*.p*)
	$(BIN)/uv venv --quiet --clear --python "$$(scripts/find-python 3.11 || echo $(BIN)/python)" .venvs/errbot
	$(BIN)/uv pip install --quiet --python .venvs/errbot/bin/python --editable '.[cli,redis]' --group errbot
	@touch $@

.venvs/bench/ready: .venv/uv pyproject.toml
	$(BIN)/uv venv --quiet --clear --python "$$(scripts/find-python 3.11 || echo $(BIN)/python)" .venvs/bench
	$(BIN)/uv pip install --quiet --python .venvs/bench/bin/python --editable '.[all]' --group bench
	@touch $@

# Themis needs 3.12.
.venvs/%/ready: .venv/uv pyproject.toml
	$(BIN)/uv venv --quiet --clear --python "$$(scripts/find-python 3.12 || echo $(BIN)/python)" .venvs/$*
	$(BIN)/uv pip install --quiet --python .venvs/$*/bin/python --editable '.[all]' --group $*
	@touch $@
