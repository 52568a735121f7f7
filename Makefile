# The front door. `make` lists what there is; every target sets up .venv by itself when environment.yml has changed.

ROOT    := $(patsubst %/,%,$(dir $(realpath $(lastword $(MAKEFILE_LIST)))))
VENV    := $(ROOT)/.venv
PY      := $(VENV)/bin/python
STAMP   := $(VENV)/.stamp
PEERS   := $(ROOT)/.venv-peers
BROWSER := $(ROOT)/.venv-browser
PROFILE ?= laptop
PROBE   ?=
# a folder of parameter files of one's own, relative to where make is called
PARAMS  ?=
CHOSEN  := $(if $(PARAMS),$(abspath $(PARAMS)),$(PROFILE))
NAME    := $(notdir $(patsubst %/,%,$(CHOSEN)))
CORES   ?= $(shell getconf _NPROCESSORS_ONLN)
# a folder in workflow/profiles: where jobs run
ENGINE  ?= local
# names of some language models of the profile, all without
MODELS  ?=
# jobs that share the sampling of each text, and the activations that sae.cache_activations keeps; they change no byte
WORKERS ?=
# GPUs of this machine
GPUS    ?=
WHERE_local = --cores $(CORES) $(if $(GPUS),--resources gpu=$(GPUS))
WHERE_jobs  = --slurm-logdir "$(ROOT)/artifacts/$(NAME)/slurm" --slurm-jobname-prefix "$$($(PY) -m faithful_sae job-prefix "$(CHOSEN)")"
SNAKEMAKE = cd $(ROOT) && $(PY) -m snakemake --snakefile workflow/Snakefile --profile workflow/profiles/$(ENGINE) \
	$(if $(filter local,$(ENGINE)),$(WHERE_local),$(WHERE_jobs)) \
	--config profile="$(CHOSEN)" engine="$(ENGINE)" $(if $(MODELS),models="$(MODELS)") $(if $(WORKERS),workers=$(WORKERS))
TABLES  = $(SNAKEMAKE) tables=true --quiet rules host reason progress --force 07_paper

.PHONY: help paper tables explorer stop check publish lint test test-slurm test-interop test-browser bench lab sync dry report clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(ROOT)/Makefile | sed -E 's/:.*## /	/' | expand -t 14
	@echo; echo "Variables: PROFILE=smoke|laptop|gpt2|paper, PARAMS=path/to/folder, MODELS=\"one other\", CORES=n, GPUS=n, WORKERS=n,"
	@echo "           ENGINE=local|slurm, PROBE=0"

paper: $(STAMP)  ## rebuild every table and figure of a profile (PROFILE=laptop, or PARAMS=folder)
	@$(SNAKEMAKE) --quiet rules host reason progress || { test $$? -eq 3 || ($(TABLES)); exit 1; }
	@echo "done: tables and figures in $(ROOT)/figures/$(NAME)"

tables: $(STAMP)  ## the tables and figures of what a profile has so far; names what is missing (also while `make paper` runs)
	@$(TABLES)
	@echo "done: figures/$(NAME)/missing.md in $(ROOT) says what is not there yet"

stop: $(STAMP)  ## end the run of a profile, its jobs on a cluster, and what a killed one has left running
	@cd $(ROOT) && $(PY) -m faithful_sae stop "$(CHOSEN)"

check: $(STAMP)  ## list all that would fail in a profile, and the memory, disk and time it takes (PROBE=0: no time)
	@cd $(ROOT) && $(PY) -m faithful_sae check "$(CHOSEN)" $(if $(filter 0,$(PROBE)),--no-probe)

publish: $(STAMP)  ## write what would go to the Hub and list it (PROFILE=, PARAMS=); PUSH=1 NAMESPACE=owner uploads it, PUBLIC=1 openly
	@cd $(ROOT) && $(PY) -m faithful_sae publish "$(CHOSEN)" $(if $(NAMESPACE),--namespace "$(NAMESPACE)") $(if $(PUSH),--push) $(if $(PUBLIC),--public)

explorer: $(STAMP)  ## write the features of a profile as a page to open in a browser (after notebook 09)
	@$(PY) -m faithful_sae explorer "$(CHOSEN)"

lint: $(STAMP)  ## formatting, common mistakes and types: ruff and pyright
	@cd $(ROOT) && $(PY) -m ruff format --check .
	@cd $(ROOT) && $(PY) -m ruff check .
	@cd $(ROOT) && $(PY) -m basedpyright

test: $(STAMP)  ## formatting and types, unit, oracle and end-to-end tests, then all notebooks on the smoke profile
	@$(MAKE) --no-print-directory -f $(ROOT)/Makefile lint
	@cd $(ROOT) && $(PY) -m pytest -n $(CORES) --dist loadfile --no-loadscope-reorder tests
	@cd $(ROOT) && $(PY) -m pytest --nbval-lax -p no:cacheprovider notebooks

test-interop: $(PEERS)/.stamp  ## read and write SAEs with the libraries of others: SAELens, sparsify, dictionary_learning
	@cd $(ROOT) && $(PEERS)/bin/python -m pytest tests/interop

test-slurm: $(STAMP)  ## make the smoke profile on a Slurm started for it (packages slurm-wlm and munge; about 15 minutes)
	@cd $(ROOT) && $(PY) -m pytest tests/slurm/smoke.py

test-browser: $(BROWSER)/.stamp  ## the explorer in a real browser: page and notebook (needs chromium)
	@cd $(ROOT) && PYTHONPATH="$(BROWSER):$$PYTHONPATH" $(PY) -m pytest tests/browser

bench: $(PEERS)/.stamp  ## measure matching, training step and trained SAEs against what else there is (about 45 minutes)
	@cd $(ROOT) && $(PEERS)/bin/python tests/benchmarks/matching.py
	@cd $(ROOT) && $(PEERS)/bin/python tests/benchmarks/training_step.py
	@cd $(ROOT) && $(PEERS)/bin/python tests/benchmarks/quality.py

lab: $(STAMP)  ## open the notebooks in JupyterLab
	@cd $(ROOT) && $(PY) -m jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) notebooks

sync: $(STAMP)  ## make every .ipynb and .py say the same, and write figures/README.md and docs/parameters.md
	@cd $(ROOT) && $(PY) -m jupytext --sync notebooks/*.py
	@$(PY) -m faithful_sae exhibits
	@cd $(ROOT) && $(PY) docs/write_parameters.py

dry: $(STAMP)  ## show what `make paper` would do, and why
	@$(SNAKEMAKE) --dry-run --quiet rules

report: $(STAMP)  ## an HTML report of the last `make paper`: steps, times, results
	@$(SNAKEMAKE) --report $(ROOT)/artifacts/report-$(NAME).html
	@echo "written: $(ROOT)/artifacts/report-$(NAME).html"

clean:  ## delete what a profile computed (its figures stay)
	@test -n "$(NAME)" || { echo "no profile named: PROFILE=laptop or PARAMS=folder"; exit 1; }
	rm -rf "$(ROOT)/artifacts/$(NAME)"

# pip alone reads the one source of versions: the `pip:` list of environment.yml. Torch first and alone, so that whatever
# depends on it takes that build.
$(STAMP): $(ROOT)/environment.yml $(ROOT)/lib/pyproject.toml
	@echo "setting up $(VENV) (some minutes, once)"
	@python3 -c 'import sys; sys.exit(sys.version_info[:2] < (3, 11) and "Python 3.11 or newer is needed, not " + sys.version)'
	@test -x $(PY) || python3 -m venv $(VENV)
	@$(PY) $(ROOT)/workflow/requirements.py $(ROOT)/environment.yml > $(VENV)/requirements.txt
	@cd $(ROOT) && grep '^torch==' $(VENV)/requirements.txt | xargs $(PY) -m pip install --quiet --disable-pip-version-check
	@cd $(ROOT) && $(PY) -m pip install --quiet --disable-pip-version-check -r $(VENV)/requirements.txt
	@$(PY) -m pip check
	@touch $@

# The browser's driver alone: it is put beside .venv, not into it.
$(BROWSER)/.stamp: $(STAMP) $(ROOT)/tests/browser/requirements.txt
	@$(PY) -m pip install --quiet --disable-pip-version-check --upgrade --target $(BROWSER) -r $(ROOT)/tests/browser/requirements.txt
	@touch $@

# The same pins and, beside them, other trainers' libraries: what is measured there is what runs here.
$(PEERS)/.stamp: $(STAMP) $(ROOT)/tests/peers.txt
	@echo "setting up $(PEERS) (some minutes, once)"
	@test -x $(PEERS)/bin/python || python3 -m venv $(PEERS)
	@cd $(ROOT) && grep '^torch==' $(VENV)/requirements.txt | xargs $(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check
	@cd $(ROOT) && $(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -r $(VENV)/requirements.txt -r tests/peers.txt
	@$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps dictionary-learning==0.1.0
	@touch $@
