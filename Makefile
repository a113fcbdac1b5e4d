# One command each: `make demo` shows what the library does, `make test` proves it, `make help` lists the rest.
# Everything happens in .venv; the install is repeated only when settings.ini or setup.py changes.
#
#   PYTHON=python3.12     the Python that .venv is made from, at least 3.10 (default: the first that will do)
#   PIP_FLAGS='…'         more options for pip, such as an index with the CPU build of PyTorch: on Linux
#                         the default build brings CUDA, several GB
#                         (settings.ini bounds torch from above, so that pip keeps a CPU build that it finds)
#   FLAGS='slow cuda'     for test-slow; ONLY=12_dicom for the tests: items whose name contains it
#   MACHINES='*,AVX2,1'   for test-machines: those that match; python tools/machines.py --list shows all

# looked up only when .venv is made
will_do := import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.10 python3.13 python; do \
  $$p -c '$(will_do)' >/dev/null 2>&1 && echo $$p && break; done)
PIP_FLAGS ?=
FLAGS ?= slow
ONLY ?=
MACHINES ?=

# relative paths only: the repository may lie in a folder with spaces in its name
bin := .venv/bin
stamp := .venv/installed-$(shell cat settings.ini setup.py | cksum | cut -d' ' -f1)
only := $(if $(ONLY),--only '$(ONLY)')

.PHONY: help demo test test-slow test-machines notebook docs mutants readme install clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):[^#]*## */  make \1\t/' | expand -t 22

demo: $(stamp)  ## train on synthetic patients by papermill, results in runs/quickstart/
	@mkdir -p runs/quickstart
	@echo 'Training on synthetic patients; a few minutes on 2 cores.'
	$(bin)/python -m papermill nbs/runs/quickstart.ipynb runs/quickstart/quickstart.ipynb -p out runs/quickstart --log-output
	@echo; echo 'Done. Open the report in a browser; the volume, the DICOM series and the numbers lie beside it:'
	@ls -1d runs/quickstart/*.html runs/quickstart/* | awk '!seen[$$0]++ { print "  " $$0 }'   # reports first

test: $(stamp)  ## notebooks and package in sync and clean, every notebook's tests, a small papermill run
	@$(bin)/python tools/test_all.py $(only)

test-slow: $(stamp)  ## the cells flagged `slow` and the scripts in tests/: browser, kill and resume, two processes
	@$(bin)/python tools/test_all.py --flags $(FLAGS) $(only)

test-machines: $(stamp)  ## the numeric notebooks as other CPUs compute them: instruction sets, 1 and 2 threads; an hour
	@$(bin)/python tools/test_all.py --machines '$(MACHINES)' $(only)

notebook: $(stamp)  ## NB=nbs/05_projector.ipynb: run it, save its outputs, clean, export
	@test -n '$(NB)' || { echo 'which notebook? make notebook NB=nbs/05_projector.ipynb' >&2; exit 2; }
	$(bin)/python tools/notebook.py run '$(NB)'
	$(bin)/nbdev_export

mutants: $(stamp)  ## plant small faults one by one and count those that a test notices; an hour or so
	$(bin)/python tools/mutate.py

docs: $(stamp)  ## the notebooks as a static site in _docs/
	$(bin)/python tools/docs.py

readme: $(stamp)  ## README.md from nbs/index.ipynb
	$(bin)/python tools/readme.py

install: $(stamp)  ## .venv with the library (editable) and everything to edit notebooks

# Without a network the install still succeeds where .venv already holds what settings.ini asks for.
$(stamp): | .venv/bin/python
	@echo 'Installing into .venv; minutes the first time.'
	@$(bin)/python -m pip install --disable-pip-version-check $(PIP_FLAGS) -e '.[dev]' \
	  || { echo 'pip failed; trying with what .venv already holds.' >&2; \
	       $(bin)/python -m pip install -q --disable-pip-version-check --no-index --no-build-isolation -e '.[dev]'; } \
	  || { echo 'The install failed: is there a network? pip said why above.' >&2; exit 1; }
	@rm -f .venv/installed-*; touch '$@'

.venv/bin/python:
	@'$(PYTHON)' -c '$(will_do)' >/dev/null 2>&1 || { \
	  echo "Python 3.10 or newer with its venv module is needed, and PYTHON='$(PYTHON)' is not that. Install one (Debian: apt install python3-venv)" >&2; \
	  echo 'or say where it is: make PYTHON=/path/to/python3' >&2; exit 1; }
	'$(PYTHON)' -m venv .venv

clean:  ## remove what was built (keeps .venv and runs/)
	rm -rf build dist _docs _proc *.egg-info .hypothesis
	find nbs xray_ct tools -name __pycache__ -o -name .ipynb_checkpoints | tr '\n' '\0' | xargs -0 rm -rf
