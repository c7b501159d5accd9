# make demo        evaluate the package's own tiny model in stock lm-eval and stock OpenCompass (CPU, no network), and show
#                  every answer step by step in outputs/demo/view.html
# make ablation    confidence sources and adaptive rules on the tiny model: tables and a plot in outputs/ablation (4 CPU minutes)
# make ablation-prm  what a process reward model buys: candidates, back-masking, window refinement; table in outputs/ablation_prm (3 CPU minutes)
# make test        the fast tests; make test-slow runs the others. WORKERS=2 is how many run at once
# make test-machines  the fast tests with the kernels of other processors, and with two threads
# make test-floats    the tests that compare floats, with the kernels of other processors
# make test-browser   the viewer and the playground in headless Chromium, which apt-get installs if it may
# make check       lint and format (ruff), types (mypy), the direction of imports (import-linter)
# make docs        the documentation as a web site in outputs/docs; fails on a broken link. No network
# make picture     draws README's picture, docs/unmasking.svg, from a run of the tiny model
# make options     writes docs/options.md from the dataclasses
# make doctor      is the installation whole, and do both harnesses find our models
# make fuzz        50,000 damaged checkpoints: each loads, or ends in one line that names the file (10 CPU minutes)
# make faults      both harnesses killed at random moments, without memory, on full and read-only disks, with spoilt caches, in OpenCompass' traps: the same answers in the end (15 CPU minutes)
# make matrix      other versions of transformers, lm-eval, peft and Python, each in a throw-away environment; writes the table of docs/install.md
# make install     .venv with the tested versions of both harnesses and this package, editable; demo and test do it by themselves
# make clean       remove what the targets above made
#
# make install PYTHON=/path/to/python3.11 TORCH='torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu'

# a version manager's launcher may be on the path and refuse to run, so each candidate has to prove its version
CANDIDATES := python3 python3.12 python3.11 python3.10
USABLE := import ensurepip, sys, venv; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, 13))
PYTHON ?= $(shell for python in $(CANDIDATES); do $$python -c '$(USABLE)' 2>/dev/null && echo $$python && break; done)
TORCH ?= torch==2.13.0
BIN := .venv/bin
INSTALLED := .venv/installed

WORKERS ?= 2
# Tests run as if this machine had no vector instructions, or those of AVX2: of PyTorch's own kernels, of MKL's and of oneDNN's.
KERNELS_scalar = ATEN_CPU_CAPABILITY=default MKL_ENABLE_INSTRUCTIONS=SSE4_2 ONEDNN_MAX_CPU_ISA=SSE41
KERNELS_avx2 = ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=AVX2 ONEDNN_MAX_CPU_ISA=AVX2
PYTEST = $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal
# what each worker imports before its first test is what these files import: those of browsers import Gradio and playwright
TESTS = --ignore-glob='*_browser.py' tests
FLOATS = $(shell grep -l 'mark\.floats' tests/test_*.py)

# Python's and pytest's compiled files are kept: else each process of the tests compiles all of them again, 8 seconds a worker
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo ablation ablation-prm test test-slow test-machines test-floats test-browser fuzz faults matrix check docs picture options doctor install clean

demo ablation ablation-prm test test-slow test-machines test-floats test-browser fuzz faults: export HF_HUB_OFFLINE = 1
demo ablation ablation-prm test test-slow test-machines test-floats test-browser fuzz faults: export HF_DATASETS_OFFLINE = 1
demo ablation ablation-prm test test-slow test-machines test-floats test-browser fuzz faults: export TRANSFORMERS_OFFLINE = 1
demo ablation ablation-prm test test-slow test-machines test-floats test-browser fuzz faults: export TOKENIZERS_PARALLELISM = false

SUDOKU4 = $(BIN)/lm_eval --model llada --tasks sudoku4 --include_path configs/lmeval --batch_size 50 --log_samples \
	--model_args record=trajectory

demo: $(INSTALLED)
	rm -rf outputs/demo
	$(SUDOKU4) --gen_kwargs steps=16 --output_path outputs/demo/lmeval/steps=16
	$(SUDOKU4) --gen_kwargs steps=8 --output_path outputs/demo/lmeval/steps=8
	$(BIN)/opencompass configs/eval_llada.py -w outputs/demo/opencompass
	$(BIN)/python -m llada_plugins.compare outputs/demo/lmeval/steps=16 outputs/demo/opencompass/*/predictions/*steps=16
	$(BIN)/python -m llada_plugins.compare outputs/demo/lmeval/steps=8 outputs/demo/opencompass/*/predictions/*steps=8
	$(BIN)/python -m llada_plugins.view outputs/demo/lmeval --html outputs/demo/view.html

ablation: $(INSTALLED)
	rm -rf outputs/ablation
	$(BIN)/python -m benchmarks.ablation --output outputs/ablation

ablation-prm: $(INSTALLED)
	rm -rf outputs/ablation_prm
	$(BIN)/python -m benchmarks.ablation_prm --output outputs/ablation_prm

test: $(INSTALLED)
	$(PYTEST) -m "not slow and not browser" $(TESTS)

test-slow: $(INSTALLED)
	$(PYTEST) -m "slow and not browser" $(TESTS)

# without Chromium the tests are skipped, and say so
CHROMIA = chromium chromium-browser google-chrome google-chrome-stable
test-browser: $(INSTALLED)
	@for name in $(CHROMIA); do command -v $$name >/dev/null && exit 0; done; \
	echo "no Chromium: apt-get install chromium"; apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null \
	|| echo "*** NO CHROMIUM, AND IT COULD NOT BE INSTALLED: THE TESTS OF THE VIEWER AND THE PLAYGROUND ARE SKIPPED ***"
	$(BIN)/python -m pytest -q -rs -m browser tests/test_view_browser.py tests/test_app_browser.py || test $$? -eq 5

test-floats: $(INSTALLED)
	$(KERNELS_scalar) $(PYTEST) -m "floats and not slow" $(FLOATS)
	$(KERNELS_avx2) $(PYTEST) -m "floats and not slow" $(FLOATS)

# two threads in one worker: more threads than cores wait for each other
test-machines: test
	$(KERNELS_scalar) $(PYTEST) -m "not slow and not browser" $(TESTS)
	$(KERNELS_avx2) $(PYTEST) -m "not slow and not browser" $(TESTS)
	LLADA_TEST_THREADS=2 $(PYTEST) -n 1 -m "not slow and not browser" $(TESTS)

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

picture: $(INSTALLED)
	rm -rf outputs/picture
	HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 $(BIN)/lm_eval --model llada_ups --tasks sudoku4 --include_path configs/lmeval --batch_size 50 \
		--limit 119 --gen_kwargs steps=8 --output_path outputs/picture --log_samples --model_args record=trajectory
	$(BIN)/python -m llada_plugins.view outputs/picture --question sudoku4:118 --picture docs/unmasking.svg

options: $(INSTALLED)
	$(BIN)/python -m llada_plugins.reference > docs/options.md

doctor: $(INSTALLED)
	@PATH=$(CURDIR)/$(BIN):$$PATH $(BIN)/python -m llada_plugins.doctor

fuzz: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.mutations 50000

faults: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults

matrix: $(INSTALLED)
	TORCH='$(TORCH)' nice $(BIN)/python -m tests.matrix

install: $(INSTALLED)

# torch comes first and alone: it is the one package whose build (CPU, CUDA) a machine chooses
$(INSTALLED): setup.cfg pyproject.toml constraints.txt _ship.py llada_plugins_lm_eval.pth
	@test -n "$(PYTHON)" || { echo "none of $(CANDIDATES) is Python 3.10 to 3.12 with venv: give make PYTHON=/path/to/one" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt $(TORCH)
	$(BIN)/python -m pip install -c constraints.txt -e '.[all,dev]'
	touch $@

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache outputs/demo outputs/docs outputs/ablation outputs/ablation_prm
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
