# Everything runs in a virtual environment of its own; exact versions stand in constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed

.PHONY: setup setup-espnet demo test test-slow check format docs dist dist-check bench

setup: $(STAMP)

# torch goes in first and alone: with the exact version present, no other package pulls a larger build of it.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "ssvd needs Python 3.11 or newer; name one with: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' constraints.txt)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

# OWSM models. The last ESPnet for Python 3.11 has pins that contradict torch's, so it goes in without its dependencies;
# on newer Pythons the second line brings those.
setup-espnet: $(VENV)/espnet

$(VENV)/espnet: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps espnet
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,espnet]'
	@# The only torchaudio does not load beside a torch for CPUs alone, and then nor does Transformers.
	$(BIN)/python -c 'import torchaudio' 2> /dev/null || $(BIN)/python -m pip uninstall --quiet --yes torchaudio
	touch $@

demo: setup
	$(BIN)/ssvd demo

# No test asks a hub. One thread a process: two processes of two threads each on two cores take three times as long.
test: setup
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder

test-slow: setup
	$(BIN)/python -m pytest -m slow

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The documentation site, in site/. A broken link or reference is an error.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The wheel and the source archive, in dist/.
dist: setup
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/twine check --strict dist/*

# Both are installed and tried, each in an environment of its own.
dist-check: dist
	scripts/try_distributions $(BIN)/python dist

# About two hours on one core; figures go to speed/results, tables and curves to docs.
RESULTS := speed/results
RUN := OMP_NUM_THREADS=1 $(BIN)/python
STEP := $(RUN) speed/training_step.py --steps 3
# All at once would take 20 GB with small.
NEAREST := lora,psoft approx,psoft strict,ssvd approx,ssvd strict,ssvd stride 4

bench: setup setup-espnet
	$(STEP) --size tiny --batch 8 --portions 0.1,0.25,0.4,1.0 --json $(RESULTS)/step_tiny_10s.json
	$(STEP) --size tiny --batch 2 --window 30 --labels 64 --portions 0.25,0.4 --json $(RESULTS)/step_tiny_30s.json
	$(STEP) --size base --batch 4 --portions 0.25,0.4 --json $(RESULTS)/step_base_10s.json
	$(STEP) --size small --batch 2 --labels 24 --portions 0.25,0.4 --methods "$(NEAREST)" \
	  --json $(RESULTS)/step_small_10s.json
	$(STEP) --size small --batch 8 --labels 24 --methods "$(NEAREST)" --json $(RESULTS)/step_small_10s_8.json
	$(STEP) --espnet base --batch 4 --portions 0.4 --json $(RESULTS)/step_owsm_base_10s.json
	$(STEP) --size tiny --batch 4 --methods "frozen compiled,lora,lora compiled,ssvd approx,ssvd approx compiled" \
	  --compiled --steps 5 --json $(RESULTS)/step_compiled.json
	$(RUN) speed/layer_growth.py --json $(RESULTS)/layer_growth.json --plot docs/layer-growth.png
	$(RUN) speed/token_stride.py --json $(RESULTS)/token_stride.json
	$(RUN) speed/decoding.py --json $(RESULTS)/decoding.json
	$(RUN) speed/model_setup.py --json $(RESULTS)/model_setup.json
	$(RUN) speed/loading.py --json $(RESULTS)/loading.json --plot docs/loading.png
	$(BIN)/python speed/performance_page.py
