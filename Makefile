# Two commands: `make demo` and `make test`. Both are enough on a fresh clone; both are quick when repeated.
#
#   PYTHON       the interpreter to build .venv with (3.11 or newer)
#   TORCH_INDEX  another package index for torch: where your default index serves torch with gigabytes of CUDA,
#                give the address of PyTorch's own index of CPU builds
#   PIP_ARGS     anything else for pip
#   PYTHONS      what `make dist` tries the wheel with: PYTHONS="python3.11 python3.12 python3.13"
PYTHON      ?= python3
TORCH_INDEX ?=
PIP_ARGS    ?=
PYTHONS     ?= $(PYTHON)

BIN   := .venv/bin
STAMP := .venv/installed
PIP   := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS)
TORCH := $(shell grep '^torch==' constraints.txt)
DEMO  := runs/demo

.PHONY: demo demo-again test test-statistical claims book tour lint types honesty bench bench-peers dist clean

demo: $(STAMP) .venv/weights
	@if [ -f $(DEMO)/report.html ]; then \
	  echo "$(DEMO) is there already: here is its comparison again (make demo-again runs it anew)"; \
	  $(BIN)/ppl-align compare $(DEMO); \
	else $(MAKE) --no-print-directory demo-again; fi

demo-again: $(STAMP) .venv/weights
	$(BIN)/ppl-align run models/positive_review.py --engine importance --engine smc --engine svi --engine rejection --out $(DEMO) --force

test: $(STAMP) .venv/weights
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

# Longer runs of the same judges: more draws, more seeds, the real language model. SEED=7 takes other random numbers.
test-statistical: $(STAMP) .venv/weights
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m statistical tests

claims: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/ppl-align claims

book: $(STAMP) .venv/weights
	OMP_NUM_THREADS=1 $(BIN)/ppl-align claims --lm --book docs/claims.md

# Every command of docs/models.md again (half an hour); ONLY="infill topic" these alone, ONLY=stale those that have changed.
tour: $(STAMP) .venv/weights
	$(BIN)/python docs/tour.py $(if $(ONLY),--only $(ONLY))

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

# How often error bars hold and green lights are false, against exact answers (an hour on two cores; goes on
# where it was stopped). SHARE=0.1 takes a tenth of the seeds.
honesty: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m ppl_align.testing.honesty --seed $(or $(SEED),0) --share $(or $(SHARE),1) --page docs/honesty.md

bench: $(STAMP) .venv/weights
	$(BIN)/python benchmarks/decoding.py; short=$$?; $(BIN)/python benchmarks/long_texts.py && exit $$short

bench-peers: .venv-peers/installed

# Wheel and sdist in dist/, then the wheel in empty environments: with each extra on the first of PYTHONS, alone on the others.
dist:
	rm -rf dist .venv-dist
	$(PYTHON) -m venv .venv-dist
	.venv-dist/bin/python -m pip install --quiet $(PIP_ARGS) --constraint constraints.txt hatchling
	.venv-dist/bin/hatchling build --directory dist
	.venv-dist/bin/python tools/try_wheel.py dist $(foreach p,$(PYTHONS),--python $(p)) $(if $(TORCH_INDEX),--torch-index $(TORCH_INDEX))
	rm -rf .venv-dist

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	$(PIP) --constraint constraints.txt --editable '.[dev]'
	@touch $@

.venv/weights: $(STAMP)
	$(BIN)/ppl-align fetch smollm2-135m
	$(BIN)/ppl-align fetch prompts
	$(BIN)/ppl-align fetch reviews
	$(BIN)/ppl-align fetch minilm
	@touch $@

# The libraries we compare with, in an environment of their own (about 2 GB).
.venv-peers/installed: benchmarks/requirements-peers.txt
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet $(PIP_ARGS) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH)
	.venv-peers/bin/python -m pip install --quiet $(PIP_ARGS) $(TORCH) -r benchmarks/requirements-peers.txt
	.venv-peers/bin/python -m pip install --quiet $(PIP_ARGS) --no-deps llamppl==0.2.3
	@touch $@

clean:
	rm -rf .venv .venv-dist .venv-peers .venv-arviz1 runs build dist
