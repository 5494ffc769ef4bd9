# Everything sets itself up: `make test` on a fresh clone needs python3 (3.11 or later) and apt, as root or with sudo.
# As root the tests also boot real Debian sensors in containers; without, those tests are skipped and say why.
SHELL := /bin/bash
.DELETE_ON_ERROR:
export PYTHON ?= python3
JOBS ?= $(shell nproc)
BIN := .venv/bin
SCRIPTS := .ci/run $(wildcard .ci/*.sh) tests/sensors/power.sh tests/sensors/rootfs/usr/local/sbin/sensor-microphone

.PHONY: test check format prove-tests chaos inject demo picture wheel lock packages clean

test: packages .venv/ready ## every test, in parallel; as root, the sensors' image is built before the clocks run
	@test "$$(id -u)" != 0 || $(BIN)/python -m tests.sensors build || true
	$(BIN)/pytest --quiet --numprocesses=$(JOBS) --durations=15 $(ARGS)

bench: packages .venv/ready ## measure it, beside the reference system; docs/performance.md says how long each takes
	for each in store latency footprint capture; do echo "== $$each"; $(BIN)/python -m benchmarks.$$each || exit 1; done

check: packages .venv/ready ## format, lint, types, import contracts, scripts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy acoupi_fleet acoupi_runtime tests
	$(BIN)/lint-imports
	shellcheck $(SCRIPTS)

format: .venv/ready ## let ruff format everything
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix-only .

prove-tests: packages .venv/ready ## take away one behaviour at a time and see its test fail (ROWS="31 44" for some)
	$(BIN)/python -m tests.prove $(ROWS)

chaos: packages .venv/ready ## as root: kill and flush a sensor's processes, fill its card, cut its power; lose nothing (ARGS="--seconds 60")
	$(BIN)/python -m benchmarks.chaos $(ARGS)

inject: packages .venv/ready ## let each system call of a sensor's processes fail once, and look what is lost (ARGS="--every 20")
	$(BIN)/python -m benchmarks.injection $(ARGS)

demo: packages .venv/ready ## provision sensors on this machine and watch them record
	$(BIN)/acoupi-fleet demo

picture: packages .venv/ready ## draw docs/demo.svg from a real run of the demonstration
	$(BIN)/python docs/picture.py

wheel: .venv/ready ## build the wheel into dist/ and look into it
	rm -rf dist
	$(BIN)/python -m build --wheel --no-isolation --outdir dist . > .venv/build.log || { cat .venv/build.log; exit 1; }
	$(BIN)/python .ci/wheel.py

lock: .venv/ready ## resolve the dependencies again
	.ci/lock.sh

packages: ## system packages, through apt
	@.ci/packages.sh

.venv/ready: pyproject.toml .ci/constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv --clear .venv
	.ci/again.sh 4 20 $(BIN)/python -m pip install --quiet --disable-pip-version-check --retries 10 --timeout 60 \
	  --constraint .ci/constraints.txt --editable '.[dev]'
	touch $@

clean: ## remove what was built here, and the sensors' image
	-test "$$(id -u)" != 0 || $(PYTHON) -m tests.sensors down
	-test "$$(id -u)" != 0 || rm -rf /var/tmp/acoupi-fleet-sensors
	rm -rf .venv dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
