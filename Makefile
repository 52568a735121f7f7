# The front door. `make` lists what there is; every target sets up .venv by itself when environment.yml has changed.

# by the shell, since functions of make take a space in a path for the end of it
ROOT    := $(shell cd "$$(dirname "$$(echo '$(MAKEFILE_LIST)' | sed 's/^ *//')")" && pwd -P)
VENV    := $(ROOT)/.venv
PY      := "$(VENV)/bin/python"
PEER_PY := "$(ROOT)/.venv-peers/bin/python"
BROWSER := $(ROOT)/.venv-browser
LINTERS := $(ROOT)/.venv-linters
PROFILE ?= laptop
# a folder of parameter files of one's own, relative to where make is called
PARAMS  ?=
CORES   ?= $(shell getconf _NPROCESSORS_ONLN)
# a folder in workflow/profiles: where jobs run
ENGINE  ?= local
# names of some language models of the profile, all without
MODELS  ?=
# what is made only where it is asked for, by its section of the parameters
STUDIES ?=
# jobs that share the sampling of each text, and the activations that sae.cache_activations keeps; they change no byte
WORKERS ?=
# GPUs of this machine
GPUS    ?=
PROBE   ?=
VERBOSE ?=
# names of files are UTF-8, whatever the terminal is
export PYTHONUTF8 := 1
CHOSEN   = "$(if $(PARAMS),$(PARAMS),$(PROFILE))"
# without the folder that make is called in, where a file may be called like a library
DO       = $(PY) -P -m faithful_sae
RUN      = --engine "$(ENGINE)" --cores "$(CORES)" $(if $(GPUS),--gpus "$(GPUS)") $(if $(MODELS),--models "$(MODELS)") \
	$(if $(STUDIES),--studies "$(STUDIES)") $(if $(WORKERS),--workers "$(WORKERS)") $(if $(VERBOSE),--verbose)

.PHONY: help paper tables explorer stop check publish lint test test-slurm test-interop test-kernels test-browser test-image bench lab sync \
	dry clean ready peers browser linters

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' "$(ROOT)/Makefile" | sed -E 's/:.*## /	/' | expand -t 14
	@echo; echo "Variables: PROFILE=smoke|laptop|smollm2|gpt2|paper, PARAMS=path/to/folder, MODELS=\"one other\", STUDIES=\"architectures layer_groups\", CORES=n, GPUS=n,"
	@echo "           WORKERS=n, ENGINE=local|slurm, PROBE=0, VERBOSE=1"

paper: ready  ## rebuild every table and figure of a profile, and site/<profile>/ to read them (PROFILE=laptop, or PARAMS=folder)
	@$(DO) paper $(CHOSEN) $(RUN)

tables: ready  ## the tables, figures and site of what a profile has so far; names what is missing (also while `make paper` runs)
	@$(DO) tables $(CHOSEN) $(RUN)

stop: ready  ## end the run of a profile, its jobs on a cluster, and what a killed one has left running
	@$(DO) stop $(CHOSEN)

check: ready  ## list all that would fail in a profile, and the memory, disk and time it takes (PROBE=0: no time)
	@$(DO) check $(CHOSEN) --cores "$(CORES)" $(if $(filter 0,$(PROBE)),--no-probe)

publish: ready  ## write what would go to the Hub and list it (PROFILE=, PARAMS=); PUSH=1 NAMESPACE=owner uploads it, PUBLIC=1 openly
	@$(DO) publish $(CHOSEN) $(if $(NAMESPACE),--namespace "$(NAMESPACE)") $(if $(PUSH),--push) $(if $(PUBLIC),--public)

explorer: ready  ## write the features of a profile as a page to open in a browser, and the site with a link to it (after notebook 09)
	@$(DO) explorer $(CHOSEN)

lint: ready  ## formatting, common mistakes and types: ruff and pyright
	@cd "$(ROOT)" && $(PY) -m ruff format --check .
	@cd "$(ROOT)" && $(PY) -m ruff check .
	@cd "$(ROOT)" && $(PY) -m basedpyright

# lint begins with the tests, not before them: it takes two minutes of one core
test: ready  ## formatting and types, all notebooks on the smoke profile, unit, oracle and end-to-end tests
	@cd "$(ROOT)" && { $(MAKE) --no-print-directory -f Makefile lint & lint=$$!; \
		$(PY) -m pytest -n $(CORES) --dist loadgroup --no-loadscope-reorder --nbval-lax tests notebooks; tests=$$?; \
		wait $$lint && exit $$tests; }

test-interop: peers  ## read and write SAEs with the libraries of others (SAELens, sparsify, dictionary_learning), measure with SAEBench
	@cd "$(ROOT)" && $(PEER_PY) -m pytest tests/interop

test-slurm: ready  ## make the smoke profile on a Slurm started for it (packages slurm-wlm and munge; about 15 minutes)
	@cd "$(ROOT)" && $(PY) -m pytest tests/slurm/smoke.py

test-kernels: ready  ## compile the Triton kernels for an A100 and an H100, which needs neither (about 3 minutes)
	@cd "$(ROOT)" && $(PY) -m pytest tests/compile_for_gpus.py

test-browser: browser  ## the site and the explorer in a real browser: pages and notebook (needs chromium)
	@cd "$(ROOT)" && PYTHONPATH="$(BROWSER):$$PYTHONPATH" $(PY) -m pytest tests/browser

test-image: linters  ## lint Dockerfile, devcontainer, Binder's and GitHub's files; build the image where Docker runs
	@cd "$(ROOT)" && PATH="$(LINTERS)/bin:$$PATH" $(PY) -m pytest tests/test_containers.py

bench: peers  ## measure matching, training step and trained SAEs against what else there is (about 45 minutes)
	@cd "$(ROOT)" && $(PEER_PY) tests/benchmarks/matching.py
	@cd "$(ROOT)" && $(PEER_PY) tests/benchmarks/training_step.py
	@cd "$(ROOT)" && $(PEER_PY) tests/benchmarks/variants.py
	@cd "$(ROOT)" && $(PEER_PY) tests/benchmarks/quality.py

lab: ready  ## open the repository in JupyterLab, at its notebooks
	@cd "$(ROOT)" && JUPYTER_PATH="$(VENV)/share/jupyter" JUPYTER_CONFIG_PATH="$(ROOT)/workflow/jupyter" \
		$(PY) -m jupyterlab $(if $(filter 0,$(shell id -u)),--allow-root) --LabApp.default_url=/lab/tree/notebooks

sync: ready  ## make every .ipynb and .py say the same, and write figures/README.md and docs/parameters.md
	@cd "$(ROOT)" && $(PY) -m jupytext --sync notebooks/*.py
	@cd "$(ROOT)" && $(PY) -m nbconvert --log-level=WARN --clear-output notebooks/*.ipynb
	@$(DO) exhibits
	@cd "$(ROOT)" && $(PY) docs/write_parameters.py

dry: ready  ## show what `make paper` would do, and why
	@$(DO) dry $(CHOSEN) $(RUN)

clean: ready  ## delete what a profile computed (its figures stay)
	@$(DO) clean $(CHOSEN)

ready:
	@sh "$(ROOT)/workflow/environment.sh" .venv

peers browser linters: ready
	@sh "$(ROOT)/workflow/environment.sh" .venv-$@
