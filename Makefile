# Every target prints the plain command that it runs. `make` lists them.
#   DATA=/path    root of a real data set; empty means the licence-free stand-in, made on first use
#   DATASET=name  for check-data: msra, icvl, nyu, hands2017, itop-front, ho3d-v2, dexycb, stb, ...
#   CONFIG=name   a preset of the method (v2v_posenet/configs/name.yaml) or a path to a YAML file
#   RUN=dir       folder of the run          CKPT=file  checkpoint to evaluate or to predict with
#   MANO=file     MANO_RIGHT.pkl, or the .npz that `make mano` made of it; not needed for the stand-ins
#   ARGS="..."    anything else, handed to the program as it is

DATA ?=
MANO ?=
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
.PHONY: help install kernels data-msra check-data train-v2v eval-v2v predict-v2v data-ho3d mano train-handoccnet eval-handoccnet demo-handoccnet score viewer demo-v2v kernels-gpu test lint bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
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

standin_frames = $(if $(filter ho3d,$*),800,64)
# a small stand-in of any other set, made beside its place so that an interrupted one is not taken for whole
$(STANDIN)/%/standin.json: | $(STAMP)
	$(PY) -m shared.standin.all --out $(STANDIN)/.part --datasets $* --frames $(standin_frames) --seed 0
	rm -rf $(STANDIN)/$* && mv $(STANDIN)/.part/$* $(STANDIN)/$* && echo '{"frames": $(standin_frames), "seed": 0}' > $@

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

# ---- HO-3D stand-in and HandOccNet

data-ho3d: $(STANDIN)/ho3d/standin.json ## make the stand-in HO-3D data: 800 + 400 pictures of a procedural hand with an object

mano: $(STAMP) ## read MANO_RIGHT.pkl without executing anything, save it as plain arrays: MANO=/path/MANO_RIGHT.pkl
	@test -n "$(MANO)" || { echo "error: name the file: make mano MANO=/path/MANO_RIGHT.pkl (mano.is.tue.mpg.de, registration)" >&2; exit 2; }
	$(PY) -m shared.mano_import --input $(MANO) --output data/mano/$(basename $(notdir $(MANO))).npz $(ARGS)

HON_RUN = $(or $(RUN),runs/handoccnet/$(basename $(notdir $(CONFIG))))
HON_DATA = $(or $(DATA),$(STANDIN)/ho3d)
HON_CKPT = $(or $(CKPT),$(HON_RUN)/checkpoints/last.pt)
HON_MANO = $(or $(MANO),$(if $(DATA),,standin))
hon_mano = $(if $(HON_MANO),--data.mano $(HON_MANO)) $(if $(MANO_LEFT),--data.mano_left $(MANO_LEFT))
hon_resume = $(if $(wildcard $(HON_RUN)/checkpoints/last.pt),--resume)
hon_train = $(PY) -m handoccnet.train --config $(call config,handoccnet) --data.root $(HON_DATA) $(hon_mano) --run $(HON_RUN) $(hon_resume) $(ARGS)

train-handoccnet: $(STAMP) $(if $(DATA),,data-ho3d) ## train HandOccNet, evaluate it, write a report with pictures; again: continue
	$(hon_train)
	$(PY) -m handoccnet.eval $(HON_RUN)/checkpoints/last.pt --data.root $(HON_DATA) $(hon_mano)

eval-handoccnet: $(STAMP) $(if $(DATA),,data-ho3d) ## evaluate HandOccNet, write pred.json and the challenge's zip (trains the stand-in first if there is none)
ifeq ($(CKPT),)
	@test -f $(HON_CKPT) || echo "no checkpoint at $(HON_CKPT): training one first"
	$(if $(wildcard $(HON_CKPT)),,$(hon_train))
endif
	$(PY) -m handoccnet.eval $(HON_CKPT) --data.root $(HON_DATA) $(hon_mano) $(if $(CKPT)$(wildcard $(HON_CKPT)),$(ARGS))

# without ARGS: two stand-in pictures with the boxes of their annotations
HON_BOXES := $(STANDIN)/ho3d/annotations/HO3D_evaluation_data.json
hon_demo = $(STANDIN)/ho3d/evaluation/SM1/rgb/0000.png $(STANDIN)/ho3d/evaluation/AP10/rgb/0001.png --boxes $(HON_BOXES) --fit --out runs/handoccnet/demo

demo-handoccnet: $(STAMP) $(if $(ARGS),,$(HON_BOXES)) ## mesh of a hand in your picture: ARGS="photo.jpg --bbox 340,232,120,140 --out out" MANO=... CKPT=...
	@test -f $(HON_CKPT) || { echo "error: no checkpoint at $(HON_CKPT); make train-handoccnet trains one, CKPT=file names another" >&2; exit 2; }
	$(PY) -m handoccnet.predict --checkpoint $(HON_CKPT) $(if $(HON_MANO),--mano $(HON_MANO)) $(or $(ARGS),$(hon_demo))

$(HON_BOXES): $(STANDIN)/ho3d/standin.json
	$(PY) -m handoccnet.prepare --dataset ho3d --root $(STANDIN)/ho3d --mano standin

# ---- anybody's results

score: $(STAMP) ## score anyone's predictions: ARGS="--dataset icvl --predictions FILE --ground-truth FILE"
	$(PY) -m shared.score $(or $(ARGS),--help)

# ---- optional extras: a viewer, a demo, and nvcc for machines with a GPU but no CUDA toolkit

.venv/.viewer .venv/.demo .venv/.gpu: .venv/.%: requirements/%.txt $(STAMP)
	$(PY) -m pip --disable-pip-version-check install --quiet --no-deps --require-hashes -r $<
	@touch $@

viewer: .venv/.viewer ## turn predicted and labelled hands in the browser: RUN=folder, or ARGS="--dataset msra --predictions FILE --ground-truth FILE"
	$(PY) -m shared.viewer $(if $(findstring --predictions,$(ARGS))$(findstring --eval,$(ARGS)),,--eval $(V2V_RUN)/eval) $(ARGS)

demo-v2v: .venv/.demo ## a page on this machine to try a checkpoint of V2V-PoseNet on depth images: CKPT=file
	@test -f $(V2V_CKPT) || { echo "error: no checkpoint at $(V2V_CKPT); make train-v2v trains one, CKPT=file names another" >&2; exit 2; }
	$(PY) -m v2v_posenet.demo --checkpoint $(V2V_CKPT) $(ARGS)

kernels-gpu: .venv/.gpu ## build the CUDA kernels with nvcc from Python packages (no CUDA toolkit needed)
	$(MAKE) kernels

# ---- the project itself

test: $(STAMP) ## the default tests: no data, no network, no GPU
	$(PY) -m pytest -n 2 $(ARGS)

lint: $(STAMP) ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

bench: $(STAMP) ## the benchmarks: each prints ratios against its baseline and writes benchmarks/results/
	@for name in $(basename $(notdir $(wildcard benchmarks/bm_*.py))); do \
		echo "$(PY) -m benchmarks.$$name"; $(PY) -m benchmarks.$$name || exit 1; done

clean: ## remove builds and caches (not data/, runs/ or .venv)
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
