# Every target prints the plain command that it runs. `make` lists them.
#   DATA=/path    root of a real data set; empty means the licence-free stand-in, made on first use
#   DATASET=name  for check-data: msra, icvl, nyu, hands2017, itop-front, ho3d-v2, dexycb, stb, ...
#   CONFIG=name   a preset of the method (v2v_posenet/configs/name.yaml) or a path to a YAML file
#   RUN=dir       folder of the run          CKPT=file  checkpoint to evaluate or to predict with
#   MANO=file     MANO_RIGHT.pkl, or the .npz that `make mano` made of it; not needed for the stand-ins
#   SEED=n        of both stages of train-selfsup; 0 if not given
#   WORKERS=n     processes that make stand-ins and prepare data; 2 if not given
#   ARGS="..."    anything else, handed to the program as it is

DATA ?=
MANO ?=
CONFIG ?= $(if $(DATA),paper,standin)
CKPT ?=
SEED ?=
WORKERS ?= 2
ARGS ?=
PYTHON ?=

PY := .venv/bin/python
STAMP := .venv/.installed
STANDIN := data/standin

# a preset's name or a path
config = $(if $(wildcard $(CONFIG)),$(CONFIG),$(1)/configs/$(CONFIG).yaml)

# run folder: continues what is there
resume = $(if $(wildcard $(1)/checkpoints/last.pt),--resume)

comma := ,
# checkpoint, train target
define need_checkpoint
	@test -f $(1) || { echo "error: no checkpoint at $(1); make $(2) trains one, CKPT=file names another" >&2; exit 2; }
endef
# checkpoint, train target, its commands: nobody waits days by mistake, so with DATA a missing checkpoint is an error
define train_first
	@test -f $(1) || { $(if $(DATA),echo "error: no checkpoint at $(1): make $(2) DATA=$(DATA) trains one$(comma) CKPT=file names another" >&2; exit 2,echo "no checkpoint at $(1): training one first"); }
	$(if $(DATA)$(wildcard $(1)),,$(3))
endef

.DEFAULT_GOAL := help
.PHONY: help install kernels data-msra check-data train-v2v eval-v2v predict-v2v data-ho3d mano train-handoccnet eval-handoccnet demo-handoccnet prepare-sohandnet train-sohandnet train-sohandnet-semi ablation-sohandnet eval-sohandnet prepare-selfsup train-selfsup eval-selfsup viewer synthesize-wild prepare-wild pretrain-wild train-wild eval-wild score view-results demo-v2v kernels-gpu test lint bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-21s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
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
	$(PY) -m shared.standin.msra --out $(STANDIN)/msra --frames 2000 --seed 0 --workers $(WORKERS)

frames_ho3d := 800
frames_icvl := 1000
frames_nyu := 400
frames_stb := 600
frames_panoptic := 100
frames_mpii_nzsl := 100
standin_frames = $(or $(frames_$*),64)
# a small stand-in of any other set, made beside its place so that an interrupted one is not taken for whole
$(STANDIN)/%/standin.json: | $(STAMP)
	$(PY) -m shared.standin.all --out $(STANDIN)/.part --datasets $* --frames $(standin_frames) --seed 0 --workers $(WORKERS)
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
v2v_train = $(PY) -m v2v_posenet.train --config $(call config,v2v_posenet) --data.root $(V2V_DATA) --run $(V2V_RUN) $(call resume,$(V2V_RUN)) $(ARGS)

train-v2v: $(STAMP) $(v2v_data_made) ## train V2V-PoseNet, evaluate it, write a report with pictures; again: continue
	$(v2v_train)
	$(PY) -m v2v_posenet.eval $(V2V_RUN)/checkpoints/last.pt --data.root $(V2V_DATA)

eval-v2v: $(STAMP) $(v2v_data_made) ## evaluate a checkpoint of V2V-PoseNet (trains the stand-in first if there is no checkpoint)
ifeq ($(CKPT),)
	$(call train_first,$(V2V_CKPT),train-v2v,$(v2v_train))
endif
	$(PY) -m v2v_posenet.eval $(V2V_CKPT) --data.root $(V2V_DATA) $(ARGS)

predict-v2v: $(STAMP) $(if $(ARGS),,$(STANDIN)/msra/standin.json) ## joints of your own depth image: ARGS="depth.png --fx 475 --fy 475 --u0 320 --v0 240"
	$(call need_checkpoint,$(V2V_CKPT),train-v2v)
	$(PY) -m v2v_posenet.predict --checkpoint $(V2V_CKPT) $(or $(ARGS),$(STANDIN)/msra/P3/5 --dataset msra --out runs/v2v/predict)

# ---- HO-3D stand-in and HandOccNet

data-ho3d: $(STANDIN)/ho3d/standin.json ## make the stand-in HO-3D data: 800 + 400 pictures of a procedural hand with an object

mano: $(STAMP) ## read MANO_RIGHT.pkl without executing anything, save it as plain arrays: MANO=/path/MANO_RIGHT.pkl
	@test -n "$(MANO)" || { echo "error: name the file: make mano MANO=/path/MANO_RIGHT.pkl (mano.is.tue.mpg.de, registration)" >&2; exit 2; }
	$(PY) -m shared.mano_import --input "$(MANO)" --output data/mano/ $(ARGS)

HON_RUN = $(or $(RUN),runs/handoccnet/$(basename $(notdir $(CONFIG))))
HON_DATA = $(or $(DATA),$(STANDIN)/ho3d)
HON_CKPT = $(or $(CKPT),$(HON_RUN)/checkpoints/last.pt)
HON_MANO = $(or $(MANO),$(if $(DATA),,standin))
hon_mano = $(if $(HON_MANO),--data.mano $(HON_MANO)) $(if $(MANO_LEFT),--data.mano_left $(MANO_LEFT))
hon_train = $(PY) -m handoccnet.train --config $(call config,handoccnet) --data.root $(HON_DATA) $(hon_mano) --run $(HON_RUN) $(call resume,$(HON_RUN)) $(ARGS)

train-handoccnet: $(STAMP) $(if $(DATA),,data-ho3d) ## train HandOccNet, evaluate it, write a report with pictures; again: continue
	$(hon_train)
	$(PY) -m handoccnet.eval $(HON_RUN)/checkpoints/last.pt --data.root $(HON_DATA) $(hon_mano)

eval-handoccnet: $(STAMP) $(if $(DATA),,data-ho3d) ## evaluate HandOccNet, write pred.json and the challenge's zip (trains the stand-in first if there is no checkpoint)
ifeq ($(CKPT),)
	$(call train_first,$(HON_CKPT),train-handoccnet,$(hon_train))
endif
	$(PY) -m handoccnet.eval $(HON_CKPT) --data.root $(HON_DATA) $(hon_mano) $(if $(CKPT)$(wildcard $(HON_CKPT)),$(ARGS))

# without ARGS: two stand-in pictures with the boxes of their annotations
HON_BOXES := $(STANDIN)/ho3d/annotations/HO3D_evaluation_data.json
hon_demo = $(STANDIN)/ho3d/evaluation/SM1/rgb/0000.png $(STANDIN)/ho3d/evaluation/AP10/rgb/0001.png --boxes $(HON_BOXES) --fit --out runs/handoccnet/demo

demo-handoccnet: $(STAMP) $(if $(ARGS),,$(if $(wildcard $(HON_CKPT)),$(HON_BOXES))) ## mesh of a hand in your picture: ARGS="photo.jpg --bbox 340,232,120,140 --out out" MANO=... CKPT=...
	$(call need_checkpoint,$(HON_CKPT),train-handoccnet)
	$(PY) -m handoccnet.predict --checkpoint $(HON_CKPT) $(if $(HON_MANO),--mano $(HON_MANO)) $(or $(ARGS),$(hon_demo))

$(HON_BOXES): $(STANDIN)/ho3d/standin.json
	$(PY) -m handoccnet.prepare --dataset ho3d --root $(STANDIN)/ho3d --mano standin

# ---- SO-HandNet: DATA is the folder of ICVL

SOH_RUN = $(or $(RUN),runs/sohandnet/$(basename $(notdir $(CONFIG))))
SOH_DATA = $(or $(DATA),$(STANDIN)/icvl)
SOH_STORE = $(or $(STORE),data/prepared/sohandnet-$(if $(DATA),icvl,standin))
SOH_CKPT = $(or $(CKPT),$(SOH_RUN)/joint/checkpoints/last.pt)
soh_config = --config $(call config,sohandnet) --data.store $(SOH_STORE)
soh_train = $(PY) -m sohandnet.pipeline $(soh_config) --run $(SOH_RUN) $(ARGS)

prepare-sohandnet: $(STAMP) $(if $(DATA),,$(STANDIN)/icvl/standin.json) ## oriented point clouds with normals and SOM nodes, once: DATA=/path/ICVL
	$(PY) -m sohandnet.prepare --data $(SOH_DATA) --out $(SOH_STORE) --workers $(WORKERS) --resume$(if $(DATA),, --points 512)

train-sohandnet: prepare-sohandnet ## train SO-HandNet in its three stages, evaluate it, write a report with pictures; again: continue
	$(soh_train)

eval-sohandnet: prepare-sohandnet ## evaluate SO-HandNet, in true millimetres and in the original's (trains the stand-in first if there is no checkpoint)
ifeq ($(CKPT),)
	$(call train_first,$(SOH_CKPT),train-sohandnet,$(soh_train))
endif
	$(PY) -m sohandnet.eval $(SOH_CKPT) --store $(SOH_STORE) --data $(SOH_DATA) $(if $(CKPT)$(wildcard $(SOH_CKPT)),$(ARGS))

train-sohandnet-semi: CONFIG := $(if $(filter $(origin CONFIG),file),$(if $(DATA),paper-semi,standin-semi),$(CONFIG))
train-sohandnet-semi: prepare-sohandnet ## 25 % of the labels, with and without the unlabelled frames, three seeds
	$(PY) -m sohandnet.ablation $(soh_config) --ratios [0.25] --seeds [0,1,2] --run runs/sohandnet/semi $(ARGS)

ablation-sohandnet: CONFIG := $(if $(filter $(origin CONFIG),file),$(if $(DATA),paper-semi,standin-semi),$(CONFIG))
ablation-sohandnet: prepare-sohandnet ## labels 25, 50, 75, 100 %, with and without unlabelled frames: a table and a plot
	$(PY) -m sohandnet.ablation $(soh_config) --run runs/sohandnet/ablation $(ARGS)

# ---- self-supervised training by fitting: DATA is the folder of NYU

SSF_RUN = $(or $(RUN),runs/selfsup/$(if $(DATA),nyu,standin))
SSF_DATA = $(or $(DATA),$(STANDIN)/nyu)
SSF_SHARDS = $(or $(STORE),data/prepared/selfsup-$(if $(DATA),nyu,standin))
SSF_CKPT = $(or $(CKPT),$(SSF_RUN)/self-supervised/checkpoints/last.pt)
# CONFIG is stage two's preset
ssf_config = $(if $(filter $(origin CONFIG),file),selfsup_fitting/configs/$(if $(DATA),author_log,standin_selfsup).yaml,$(call config,selfsup_fitting))
ssf_seed = $(if $(SEED),--seed $(SEED))

# hands of captured crops, and so of the stand-in's training and priors, are centred on the palm
ssf_prior = $(if $(wildcard $(SSF_RUN)/prior/$(1)/prior.pt),,$(PY) -m selfsup_fitting.train_prior $(1) --center palm $(if $(DATA),,--samples 200000) --run $(SSF_RUN)/prior/$(1))

define ssf_train
	$(call ssf_prior,vae)
	$(PY) -m selfsup_fitting.train --mode synthetic --config selfsup_fitting/configs/$(if $(DATA),synthetic,standin_synthetic).yaml --run $(SSF_RUN)/synthetic $(call resume,$(SSF_RUN)/synthetic) $(ssf_seed)
	$(PY) -m selfsup_fitting.train --mode self-supervised --config $(ssf_config) --data.root $(SSF_SHARDS) --vae $(SSF_RUN)/prior/vae/prior.pt $(or $(call resume,$(SSF_RUN)/self-supervised),--init $(SSF_RUN)/synthetic/checkpoints/last.pt) --run $(SSF_RUN)/self-supervised $(ssf_seed) $(ARGS)
endef
ssf_eval = $(PY) -m selfsup_fitting.eval $(1) --data $(SSF_SHARDS)

prepare-selfsup: $(STAMP) $(if $(DATA),,$(STANDIN)/nyu/standin.json) ## crops of three cameras as shards, once: DATA=/path/NYU
	$(PY) -m selfsup_fitting.prepare --data $(SSF_DATA) --out $(SSF_SHARDS)

train-selfsup: prepare-selfsup ## train on synthetic hands, then on unlabelled views; evaluate both, write a report with pictures
	$(ssf_train)
	$(call ssf_eval,$(SSF_RUN)/synthetic/checkpoints/last.pt)
	$(call ssf_eval,$(SSF_RUN)/self-supervised/checkpoints/last.pt) --compare $(SSF_RUN)/synthetic/eval/metrics.json

eval-selfsup: prepare-selfsup ## evaluate a checkpoint of training by fitting (trains the stand-in first if there is no checkpoint)
ifeq ($(CKPT),)
	$(call train_first,$(SSF_CKPT),train-selfsup,$(ssf_train))
endif
	$(call ssf_eval,$(SSF_CKPT)) $(if $(CKPT)$(wildcard $(SSF_CKPT)),$(ARGS))

viewer: .venv/.viewer ## a hand with 26 sliders in the browser: spheres, depth, loss terms; load a crop: ARGS="--crop FILE"
	$(PY) -m selfsup_fitting.viewer $(ARGS)

# ---- hand shape and pose in the wild: DATA holds panoptic/, mpii_nzsl/ and stb/

WILD_RUN = $(or $(RUN),runs/wild/$(basename $(notdir $(CONFIG))))
WILD_DATA = $(or $(DATA),$(STANDIN))
WILD_SYNTH = data/prepared/wild-synthetic-$(if $(DATA),mano,standin)
WILD_PICTURES = $(if $(DATA),,--train 4000 --test 100 --facing 45 --spread 0.1 --shape_range 0.5)
WILD_STORE = $(or $(STORE),data/prepared/wild-$(if $(DATA),real,standin))
WILD_CKPT = $(or $(CKPT),$(WILD_RUN)/checkpoints/last.pt)
WILD_MANO = $(or $(MANO),$(if $(DATA),,standin))
wild_preset = $(if $(filter paper,$(CONFIG)),hand3d_wild/configs/perspective.yaml,$(call config,hand3d_wild))
wild_pretrain = $(if $(filter tiny,$(CONFIG)),tiny,$(if $(DATA),pretrain,pretrain_standin))
wild_sets = $(if $(DATA),,$(foreach set,panoptic mpii_nzsl stb,$(STANDIN)/$(set)/standin.json))
wild_train = $(PY) -m hand3d_wild.train --config $(wild_preset) --data.store $(WILD_STORE) --data.mano $(WILD_MANO) $(or $(call resume,$(WILD_RUN)),--init_from $(WILD_RUN)-pretrain/checkpoints/last.pt) --run $(WILD_RUN) $(ARGS)
wild_mano = $(if $(WILD_MANO),--mano $(WILD_MANO))
wild_eval = $(PY) -m hand3d_wild.eval $(WILD_CKPT) --dataset stb --root $(WILD_DATA)/stb --store $(WILD_STORE) $(wild_mano)
# of your own sets those that are there; all three, and so an error that names them, where none is
wild_found = $(wildcard $(WILD_DATA)/panoptic $(WILD_DATA)/mpii_nzsl $(WILD_DATA)/stb)
wild_have = $(if $(and $(DATA),$(wild_found)),$(filter $(notdir $(wild_found)),$(1)),$(1))
wild_trees = $(if $(call wild_have,panoptic),--panoptic $(WILD_DATA)/panoptic) $(if $(call wild_have,mpii_nzsl),--mpii $(WILD_DATA)/mpii_nzsl) $(if $(call wild_have,stb),--stb $(WILD_DATA)/stb)

synthesize-wild: $(STAMP) ## pictures of coloured hands for pretraining, once: MANO=file with your own hand model, BACKGROUNDS=folder
	@test -n "$(WILD_MANO)" || { echo "error: name the hand model: MANO=/path/MANO_RIGHT.pkl (mano.is.tue.mpg.de), or MANO=standin" >&2; exit 2; }
	$(PY) -m hand3d_wild.synthesize --out $(WILD_SYNTH) --mano $(WILD_MANO) $(if $(BACKGROUNDS),--backgrounds $(BACKGROUNDS)) --workers $(WORKERS) --resume $(WILD_PICTURES)

prepare-wild: $(STAMP) $(wild_sets) ## crops, masks and joints of Panoptic, MPII+NZSL and STB, once: DATA=/path with any of panoptic, mpii_nzsl, stb
	$(PY) -m hand3d_wild.prepare $(wild_trees) --out $(WILD_STORE) --workers $(WORKERS) $(if $(wildcard $(WILD_STORE)/manifest.json),--resume)

pretrain-wild: synthesize-wild ## the first stage alone
	$(PY) -m hand3d_wild.pretrain --config hand3d_wild/configs/$(wild_pretrain).yaml --data.root $(WILD_SYNTH) --data.mano $(WILD_MANO) $(if $(DATA),,--data.cache $(WILD_SYNTH)) --run $(WILD_RUN)-pretrain $(call resume,$(WILD_RUN)-pretrain)

train-wild: pretrain-wild prepare-wild ## pretrain on synthetic hands, train on pictures, evaluate, write a report with pictures; again: continue
	$(wild_train)
	$(wild_eval)

eval-wild: prepare-wild $(if $(CKPT)$(DATA)$(wildcard $(WILD_CKPT)),,pretrain-wild) ## evaluate a checkpoint on STB's held-out sequences (trains the stand-in first if there is no checkpoint)
ifeq ($(CKPT),)
	$(call train_first,$(WILD_CKPT),train-wild,$(wild_train))
endif
	$(wild_eval) $(if $(CKPT)$(wildcard $(WILD_CKPT)),$(ARGS))

# ---- anybody's results

score: $(STAMP) ## score anyone's predictions: ARGS="--dataset icvl --predictions FILE --ground-truth FILE"
	$(PY) -m shared.score $(or $(ARGS),--help)

# ---- optional extras: a viewer, a demo, and nvcc for machines with a GPU but no CUDA toolkit

.venv/.viewer .venv/.demo .venv/.gpu: .venv/.%: requirements/%.txt $(STAMP)
	$(PY) -m pip --disable-pip-version-check install --quiet --no-deps --require-hashes -r $<
	@touch $@

view-results: .venv/.viewer ## turn predicted and labelled hands in the browser: RUN=folder, or ARGS="--dataset msra --predictions FILE --ground-truth FILE"
	$(PY) -m shared.viewer $(if $(findstring --predictions,$(ARGS))$(findstring --eval,$(ARGS)),,--eval $(V2V_RUN)/eval) $(ARGS)

demo-v2v: .venv/.demo ## a page on this machine to try a checkpoint of V2V-PoseNet on depth images: CKPT=file
	$(call need_checkpoint,$(V2V_CKPT),train-v2v)
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
