# make run    four methods on the embedded sample, and their leaderboard
# make test   the tests            make check  ruff, mypy, import-linter
# make test-long  the longer tests: most of those through the command, ablations, crashes and resuming
# make test-default  the numeric tests with the kernels of the oldest CPUs: no test may depend on one CPU's bits
# make sweep  the leaderboard of the embedded sample: every method, tuned, with three seeds (two hours on two cores)
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: run test test-long test-default check sweep

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt 'torch==2.13.0'
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

# Both methods learn at 5e-3. A leaderboard chooses the rate of each row on dev (harness sweep).
run: $(STAMP)
	$(BIN)/harness run --suite promptcblue --method majority
	$(BIN)/harness run --suite promptcblue --method no_finetune
	$(BIN)/harness run --suite promptcblue --method lora_all --set train.lr=5e-3
	$(BIN)/harness run --suite promptcblue --method cgc_lora --set train.lr=5e-3
	$(BIN)/harness leaderboard promptcblue

sweep: $(STAMP)
	$(BIN)/harness sweep leaderboards/promptcblue.toml --out runs/sweep

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses=4 --dist loadfile

test-long: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'long and not slow and not gpu' -n auto --maxprocesses=4 --dist loadfile

# With these variables PyTorch, MKL and oneDNN use neither AVX2 nor AVX-512.
test-default: $(STAMP)
	ATEN_CPU_CAPABILITY=default MKL_ENABLE_INSTRUCTIONS=SSE4_2 ONEDNN_MAX_CPU_ISA=SSE41 OMP_NUM_THREADS=1 \
	$(BIN)/python -m pytest -m 'numeric and not long and not slow and not gpu' -n auto --maxprocesses=4 --dist loadfile

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
