# Two commands do everything on a machine with Python 3.11 or newer: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/pip install -c deploy/constraints.txt

.PHONY: demo test lint docs slurm sge browser hosts faults fuzz tissue minima zoo bench clean

demo: .venv/demo
	$(BIN)/python examples/segment_sample.py demo

# What takes long, or more than pip installs, has targets of its own: faults, fuzz, tissue, browser, hosts, slurm, sge. `.ci/run` runs all but sge.
APART := faults fuzz tissue browser hosts slurm sge
test: lint
	$(BIN)/pytest -n 2 --dist worksteal $(APART:%=--ignore=tests/%)

# A real SLURM cluster on this machine; installs it from Debian's packages, so it must be root.
slurm: .venv/test
	tests/slurm/setup
	$(BIN)/pytest tests/slurm

# A real SGE on this machine, of packages that are unpacked and not installed; it must be root, too.
sge: .venv/test
	tests/sge/setup
	$(BIN)/pytest tests/sge

# A browser that looks at the dashboard, at `emseg view` and at reports; and runs that span hosts, several on one machine.
# Both install Debian's packages, so they must be root.
browser hosts: .venv/test
	tests/$@/setup
	$(BIN)/pytest tests/$@

# The documentation site, in dist/docs/. A warning is an error.
docs: .venv/docs
	$(BIN)/sphinx-build -W --keep-going --fresh-env --quiet workflows/docs dist/docs

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Processes killed, disks that fill, stores that go away; and damaged inputs. About half an hour each; FAULTS and FUZZ_SEED draw other
# moments and cases. Some minutes of both are in `.ci/run`.
FAULTS ?= 1
FUZZ_SEED ?= 1
faults: .venv/test
	EMSEG_FAULTS=$(FAULTS) $(BIN)/pytest -s -v tests/faults

fuzz: .venv/test
	EMSEG_FUZZ=5 EMSEG_FUZZ_SEED=$(FUZZ_SEED) $(BIN)/pytest -s -v tests/fuzz

# Real sections with truth, where EMSEG_DATA names a folder that has them.
tissue: .venv/test
	$(BIN)/pytest tests/tissue

# The oldest dependencies that emseg allows, on Python 3.11, in an environment of their own. They include a torch of 3 GB.
minima: .venv/demo
	.ci/pythons minima

# Architectures of other libraries, in an environment of their own below ZOO: exports them, lets emseg read and run them, and
# writes workflows/docs/networks.md and what the tests read in tests/zoo/. About a quarter of an hour, on one core. NAMES="FPN PAN"
# looks again at those whose names have one of these words.
ZOO ?= build/zoo
NAMES ?=
zoo: $(ZOO)/venv/installed
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(ZOO)/venv/bin/python -W ignore -m zoo.collect $(ZOO) $(NAMES)

$(ZOO)/venv/installed: pyproject.toml deploy/constraints.txt deploy/zoo.txt deploy/zoo-alone.txt
	$(PYTHON) -m venv $(ZOO)/venv
	$(ZOO)/venv/bin/pip install -c deploy/constraints.txt -e '.[openvino]' -r deploy/zoo.txt
	$(ZOO)/venv/bin/pip install --no-deps -r deploy/zoo-alone.txt
	touch $@

# Measurements: they take minutes and judge nothing.
bench: .venv/test
	$(BIN)/python tests/benchmarks/bench_speed.py
	$(BIN)/python tests/benchmarks/bench_speed.py --precision bfloat16
	$(BIN)/python tests/benchmarks/bench_foreign.py
	$(BIN)/python tests/benchmarks/bench_paper.py
	$(BIN)/python tests/benchmarks/bench_tiles.py
	$(BIN)/python tests/benchmarks/bench_scaling.py
	$(BIN)/python tests/benchmarks/bench_memory.py
	$(BIN)/python tests/benchmarks/bench_resume.py
	$(BIN)/python tests/benchmarks/bench_overhead.py
	$(BIN)/python tests/benchmarks/bench_startup.py
	$(BIN)/python tests/benchmarks/bench_io.py
	$(BIN)/python tests/benchmarks/bench_ingest.py
	$(BIN)/python tests/benchmarks/bench_label.py

.venv/demo: pyproject.toml deploy/constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "emseg needs Python 3.11 or newer: make demo PYTHON=python3.12")'
	@echo 'Downloads what emseg needs into .venv: some hundred MB, or up to 3 GB where pip offers torch with CUDA.'
	$(PYTHON) -m venv .venv
	$(INSTALL) -e '.[openvino]'
	touch $@

.venv/docs: .venv/demo
	$(INSTALL) -e '.[docs]'
	touch $@

.venv/test: .venv/demo
	$(INSTALL) -e '.[aws,bench,cuda,dev,docs,hdf5,mrc,openvino,remote,slurm,tensorstore,view]'
	touch $@

clean:
	rm -rf .venv build demo dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
