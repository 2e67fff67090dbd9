# Every target prints the plain command that it runs. `make` lists them.
#   DATA=/path    root of a real data set; empty means the licence-free stand-in, made on first use
#   DATASET=name  for check-data: msra, icvl, nyu, hands2017, itop-front, ho3d-v2, dexycb, stb, ...
#   CONFIG=name   a preset of the method (v2v_posenet/configs/name.yaml) or a path to a YAML file
#   RUN=dir       folder of the run          CKPT=file  checkpoint to evaluate or to predict with
#   ARGS="..."    anything else, handed to the program as it is

DATA ?=
CONFIG ?= $(if $(DATA),paper,standin)
CKPT ?=
ARGS ?=
PYTHON ?=

PY := .venv/bin/python
STAMP := .venv/.installed
STANDIN := data/standin

# a preset's name or a path
config = $(if $(wildcard $(CONFIG)),$(CONFIG),$(1)/configs/$(CONFIG).yaml)

.DEFAULT_GOAL := help
.PHONY: help install kernels data-msra check-data train-v2v eval-v2v predict-v2v score test lint bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@awk '/^#   / { sub(/^#   /, "  "); print }' $(MAKEFILE_LIST)

install: $(STAMP) ## create .venv with everything (a prerequisite of the others; costs nothing once done)

$(STAMP): requirements/runtime.txt requirements/build.txt requirements/dev.txt requirements/install.sh pyproject.toml CMakeLists.txt
	PYTHON="$(PYTHON)" sh requirements/install.sh
	@touch $@

kernels: $(STAMP) ## build the C++ and CUDA kernels again
	$(PY) -m pip install --quiet --no-deps --no-build-isolation -e .
	$(PY) -m shared.kernels

# ---- data

data-msra: $(STANDIN)/msra/standin.json ## make the stand-in MSRA data: 2,000 depth frames of a procedural hand

$(STANDIN)/msra/standin.json: | $(STAMP)
	$(PY) -m shared.standin.msra --out $(STANDIN)/msra --frames 2000 --seed 0 --workers 2

# a small stand-in of any other set, made beside its place so that an interrupted one is not taken for whole
$(STANDIN)/%/standin.json: | $(STAMP)
	$(PY) -m shared.standin.all --out $(STANDIN)/.part --datasets $* --frames 64 --seed 0
	rm -rf $(STANDIN)/$* && mv $(STANDIN)/.part/$* $(STANDIN)/$* && echo '{"frames": 64, "seed": 0}' > $@

DATASET ?= msra
check-data: $(STAMP) ## look through your copy of a data set: DATASET=nyu DATA=/path
	@test -n "$(DATA)" || { echo "error: say where your copy is: make check-data DATASET=$(DATASET) DATA=/path" >&2; exit 2; }
	$(PY) -m shared.datasets.check --dataset $(DATASET) --data $(DATA) $(ARGS)

# ---- V2V-PoseNet

V2V_RUN = $(or $(RUN),runs/v2v/$(basename $(notdir $(CONFIG))))
v2v_set = $(if $(filter icvl nyu hands2017 itop-%,$(CONFIG)),$(firstword $(subst -, ,$(CONFIG))),msra)
V2V_DATA = $(or $(DATA),$(STANDIN)/$(v2v_set))
v2v_data_made = $(if $(DATA),,$(STANDIN)/$(v2v_set)/standin.json)
V2V_CKPT = $(or $(CKPT),$(V2V_RUN)/checkpoints/last.pt)
v2v_resume = $(if $(wildcard $(V2V_RUN)/checkpoints/last.pt),--resume)
v2v_train = $(PY) -m v2v_posenet.train --config $(call config,v2v_posenet) --data.root $(V2V_DATA) --run $(V2V_RUN) $(v2v_resume) $(ARGS)

train-v2v: $(STAMP) $(v2v_data_made) ## train V2V-PoseNet, evaluate it, write a report with pictures; again: continue
	$(v2v_train)
	$(PY) -m v2v_posenet.eval $(V2V_RUN)/checkpoints/last.pt --data.root $(V2V_DATA)

eval-v2v: $(STAMP) $(v2v_data_made) ## evaluate a checkpoint of V2V-PoseNet (trains the stand-in first if there is none)
ifeq ($(CKPT),)
	@test -f $(V2V_CKPT) || echo "no checkpoint at $(V2V_CKPT): training one first"
	$(if $(wildcard $(V2V_CKPT)),,$(v2v_train))
endif
	$(PY) -m v2v_posenet.eval $(V2V_CKPT) --data.root $(V2V_DATA) $(ARGS)

predict-v2v: $(STAMP) $(if $(ARGS),,$(STANDIN)/msra/standin.json) ## joints of your own depth image: ARGS="depth.png --fx 475 --fy 475 --u0 320 --v0 240"
	@test -f $(V2V_CKPT) || { echo "error: no checkpoint at $(V2V_CKPT); make train-v2v trains one, CKPT=file names another" >&2; exit 2; }
	$(PY) -m v2v_posenet.predict --checkpoint $(V2V_CKPT) $(or $(ARGS),$(STANDIN)/msra/P3/5 --dataset msra --out runs/v2v/predict)

score: $(STAMP) ## score anyone's predictions: ARGS="--dataset icvl --predictions FILE --ground-truth FILE"
	$(PY) -m shared.score $(or $(ARGS),--help)

# ---- the project itself

test: $(STAMP) ## the default tests: no data, no network, no GPU
	$(PY) -m pytest -n 2 $(ARGS)

lint: $(STAMP) ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

bench: $(STAMP) ## the benchmarks: each prints ratios against its baseline and writes benchmarks/results/
	@for file in benchmarks/bm_*.py; do echo "$(PY) $$file"; $(PY) $$file || exit 1; done

clean: ## remove builds and caches (not data/, runs/ or .venv)
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
