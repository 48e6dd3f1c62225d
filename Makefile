# Everything runs in .venv, which make creates if it is missing. ARGS goes to the program: make demo ARGS="--cell lstm"
PYTHON ?= python3
VENV := .venv
CUDA_VENV := .venv-cuda
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

PARALLEL := -n auto --maxprocesses 8 --dist loadgroup --durations 10

SOURCES := $(shell find csrc -type f) CMakeLists.txt setup.py pyproject.toml
CPP := $(shell find csrc tests benchmarks -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.PHONY: help demo examples test bench gpu-check cuda-wheel lint format clean
.NOTPARALLEL:

help:
	@echo 'make demo     train a character model on fastrnn and on torch.nn'
	@echo 'make examples run the programs of examples/ in turn; DATA=FOLDER names reviews for sentiment.py'
	@echo 'make test     run the tests, few cases of each; ARGS=--thorough runs all'
	@echo 'make bench    time fastrnn beside torch.nn, onnxruntime and torch.compile'
	@echo 'make gpu-check   build, test and time on the GPU of this machine, with the torch that is installed; ARGS="--help"'
	@echo 'make cuda-wheel  build a wheel with CUDA (needs no GPU) and run the tests on it, in a venv with CUDA torch'
	@echo 'make lint     check style, types and include rules'
	@echo 'make format   repair style'
	@echo 'make clean    remove .venv and everything that was built'
	@echo 'Options: make demo ARGS="--help", make bench ARGS="--quick", make test PYTHON=python3.12'

demo: $(VENV)/built
	python examples/char_lm.py $(ARGS)

# ARGS goes to each, DATA to the one that needs a folder of reviews (aclImdb or the rt-polarity files).
EXAMPLES := $(sort $(filter-out examples/common.py,$(wildcard examples/*.py)))
examples: $(VENV)/dev $(VENV)/built
	@set -e; for program in $(EXAMPLES); do \
	  data=; \
	  if [ $$program = examples/sentiment.py ]; then \
	    [ -n '$(DATA)' ] || { echo "$$program is left out, it needs reviews: make examples DATA=FOLDER"; continue; }; \
	    data='--data $(DATA)'; \
	  fi; \
	  (set -x; python $$program $$data $(ARGS)); \
	done

# In processes of one thread each, then in one process the tests of several threads.
test: $(VENV)/dev $(VENV)/built
	OMP_NUM_THREADS=1 python -m pytest $(PARALLEL) --phase parallel $(ARGS)
	python -m pytest --durations 10 --phase apart $(ARGS)

bench: $(VENV)/dev $(VENV)/built
	python -m benchmarks $(ARGS)

# Uses the torch of $(PYTHON), or of .venv if there is one, and downloads nothing. A call takes at most ten minutes. Several
# calls leave one report: ARGS="--stages build,facts", then "--stages tests", "--stages benchmarks,sanitizers".
gpu-check:
	$(PYTHON) tools/gpu_check.py $(ARGS)

lint: $(VENV)/dev
	ruff check
	ruff format --check
	clang-format --dry-run --Werror $(CPP)
	python tools/check_includes.py
	mypy

format: $(VENV)/dev
	ruff check --fix
	ruff format
	clang-format -i $(CPP)

# The tests run from a folder in which Python does not find ./fastrnn; without those of the sources and programs, and
# of the CPU's kernels alone, which this build and another torch do not change.
OTHER_TESTS := benchmarks examples tools/test_gpu_check.py test_fake_cuda.py csrc/cpu csrc/torch/test_memory.py \
  csrc/cuda/test_persistent.py csrc/cuda/test_stepwise.py
cuda-wheel: export PATH := $(CURDIR)/$(CUDA_VENV)/bin:$(PATH)
cuda-wheel: $(CUDA_VENV)/made $(SOURCES)
	rm -rf $(CUDA_VENV)/wheel
	FASTRNN_CUDA=1 pip wheel --no-build-isolation --no-deps --wheel-dir $(CUDA_VENV)/wheel .
	pip install --force-reinstall --no-deps $(CUDA_VENV)/wheel/*.whl
	cd $(CUDA_VENV) && python -m fastrnn && python -c 'from fastrnn import _C; assert _C.cuda_built'
	python tools/check_cuda_kernels.py
	cd $(CUDA_VENV) && OMP_NUM_THREADS=1 pytest --config-file ../pyproject.toml ../tests \
	  $(PARALLEL) --phase parallel $(OTHER_TESTS:%=--ignore ../tests/%) $(ARGS)

clean:
	rm -rf $(VENV) $(CUDA_VENV) build dist out *.egg-info fastrnn/*.so .mypy_cache .pytest_cache .ruff_cache .benchmarks
	find . -name __pycache__ -prune -exec rm -rf {} +

# made, runtime, dev and built are stamps: each is newer than the files that it was made from.
DEBIAN = on Debian and Ubuntu: apt install
$(VENV)/made:
	@rm -rf $(VENV)
	@command -v $(PYTHON) > /dev/null || { echo 'error: $(PYTHON) not found' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo 'error: Python 3.10 or newer is needed; name one: make PYTHON=python3.12' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || \
	  { echo 'error: Python has no venv ($(DEBIAN) python3-venv)' >&2; exit 1; }
	@$(PYTHON) -c 'import os, sysconfig as s; os.stat(s.get_path("include") + "/Python.h")' 2> /dev/null || \
	  { echo 'error: Python.h not found ($(DEBIAN) python3-dev)' >&2; exit 1; }
	@command -v $(CXX) > /dev/null || \
	  { echo 'error: no C++ compiler $(CXX) ($(DEBIAN) g++)' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/runtime: $(VENV)/made requirements.txt
	python -m pip install -r requirements.txt
	@touch $@

$(VENV)/dev: $(VENV)/runtime requirements-dev.txt
	python -m pip install -r requirements-dev.txt
	@touch $@

$(VENV)/built: $(VENV)/runtime $(SOURCES)
	python -m pip install --no-build-isolation --no-deps --editable .
	@touch $@

# The pins of the other requirements, but the torch of requirements-cuda.txt.
$(CUDA_VENV)/made: $(VENV)/made requirements.txt requirements-dev.txt requirements-cuda.txt
	rm -rf $(CUDA_VENV)
	$(PYTHON) -m venv $(CUDA_VENV)
	grep -hv -e '^torch==' -e '^-r ' requirements.txt requirements-dev.txt > $(CUDA_VENV)/requirements.txt
	$(CUDA_VENV)/bin/pip install -r requirements-cuda.txt -r $(CUDA_VENV)/requirements.txt
	@touch $@
