# make segment         the demo: environment, a generated CT, segmentation, report, picture
# make segment CT=...  the same for your own file or DICOM folder
# make test            style, types, tests
#
# TORCH_INDEX=https://download.pytorch.org/whl/cpu takes PyTorch's smaller build without CUDA.

PYTHON ?= python3
VENV ?= .venv
OUTPUT ?= output
CT ?=
TORCH_INDEX ?=

BIN = $(VENV)/bin
PIP = $(BIN)/pip install --quiet --disable-pip-version-check --constraint Testing/constraints.txt \
	$(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
DEMO = $(OUTPUT)/demo
DEMO_CASE = $(DEMO)/case_00000

.PHONY: segment test clean

segment: $(VENV)/segment.stamp $(if $(CT),,$(DEMO_CASE))
	$(BIN)/kidneyseg segment "$(or $(CT),$(DEMO_CASE))" --output "$(OUTPUT)/kidneys.seg.nrrd" \
		$(if $(CT),,--reference "$(DEMO_CASE)/sides.nii.gz") \
		--overlay "$(OUTPUT)/overlay.png" --report "$(OUTPUT)/report.json"
	@echo
	@echo "segmentation  $(abspath $(OUTPUT))/kidneys.seg.nrrd (opens in 3D Slicer)"
	@echo "picture       $(abspath $(OUTPUT))/overlay.png"
	@echo "report        $(abspath $(OUTPUT))/report.json"

$(DEMO_CASE): | $(VENV)/segment.stamp
	$(BIN)/kidneyseg phantom "$(DEMO)" --cases 1 --seed 1 --size 384x384x120

test: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "error: Python 3.10 or later is needed; run make PYTHON=/path/to/python3"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/segment.stamp: pyproject.toml Testing/constraints.txt | $(VENV)/bin/pip
	$(PIP) --editable .
	@touch $@

$(VENV)/test.stamp: pyproject.toml Testing/constraints.txt | $(VENV)/bin/pip
	$(PIP) --editable ".[train,mrml,test]"
	@touch $@ $(VENV)/segment.stamp

clean:
	rm -rf $(VENV) $(OUTPUT) build .mypy_cache .ruff_cache .pytest_cache
