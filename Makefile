# diffnr: the two commands are `make demo` and `make test`.
#
#   make demo [CT=volume.nii.gz]   simulate a scan, play it from a C gantry into the daemon, save and score the volume;
#                                  then the methods from 24 views side by side (demo/methods.png)
#   make test                      every test: Rust, C, Python, the model check of the shared-memory protocol
#   make lint                      formatting and clippy, warnings are errors
#   make onnxruntime               ONNX Runtime (for SliceFixer) into .onnxruntime; ONNXRUNTIME=onnxruntime-gpu==1.31.1 for NVIDIA GPUs
#   make bench                     speed against the machine's floor
#   make bench-peers               the same beside RTK (installs the PyPI package itk-rtk into .venv-peers)
#   make methods CT="a.nii.gz b.nii.gz" [OUT=methods VIEWS=36,24,12 PHOTONS=1e5 METHODS=field,field+slice-fixer]
#                                  all methods on these volumes: table, PSNR against seconds, slices side by side
#   make engines [MODEL=models]    whether TensorRT-RTX builds engines of a SliceFixer model; needs no GPU (installs tensorrt_rtx_cu13 into .venv-engines)
#   make test-models              the tests of models/ (SliceFixer's Python package), where PyTorch is installed
#   make test-kernels             the CUDA kernels on the CPU: the executor's own tests and conformance, under AddressSanitizer and UBSan; needs no GPU
#   make kernels                  compiles kernels/*.cu for GPUs into kernels/prebuilt (installs NVIDIA's compiler into .venv-nvcc; needs no GPU)
#   make check-kernels            the same into another folder: whether the bytes are those in kernels/prebuilt
#   make gpu-check                builds and gathers in target/gpu-check what tries everything on a machine with a GPU, and says the command for there (docs/gpu.md)
#   make gpu-check-stand-in       the same check on a stand-in for NVIDIA's driver, sizes next to nothing: whether the check works; needs no GPU
#   make fuzz SECONDS=600          mutational fuzzing of every parser of outside bytes

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help build bridge onnxruntime demo test test-rust test-release test-loom test-kernels test-models kernels check-kernels gpu-check gpu-check-stand-in engines lint bench bench-peers methods fuzz clean

CARGO ?= cargo
PYTHON ?= python3
SECONDS_TO_FUZZ := $(if $(SECONDS),$(SECONDS),600)

help:
	@sed -n 's/^#   //p' Makefile

build:
	$(CARGO) build --release --locked

bridge:
	$(MAKE) -C firmware-bridge

demo: build bridge
	scripts/demo.sh $(if $(CT),"$(CT)")

# numpy, nibabel and scikit-image are independent references; where they cannot be had the tests that need them say SKIPPED.
.venv/ready:
	$(PYTHON) -m venv .venv && .venv/bin/pip install --quiet --disable-pip-version-check -r tests/python/requirements.txt && touch .venv/ready

# The library out of the PyPI wheel; nothing of Python stays.
ONNXRUNTIME ?= onnxruntime==1.32.0
ONNXRUNTIME_READY := .onnxruntime/$(subst ==,-,$(ONNXRUNTIME)).ready

onnxruntime: $(ONNXRUNTIME_READY)

$(ONNXRUNTIME_READY):
	rm -rf .onnxruntime && mkdir .onnxruntime && $(PYTHON) -m venv .onnxruntime/venv
	.onnxruntime/venv/bin/pip install --quiet --disable-pip-version-check --no-deps --target .onnxruntime/wheel $(ONNXRUNTIME)
	mv .onnxruntime/wheel/onnxruntime/capi/libonnxruntime*.so* .onnxruntime/
	rm -rf .onnxruntime/venv .onnxruntime/wheel && touch $@

test: test-rust test-release test-loom test-kernels test-models

test-rust: bridge
	$(MAKE) .venv/ready || echo "SKIPPED: Python references (no virtual environment could be made)"
	$(MAKE) onnxruntime || echo "SKIPPED: SliceFixer (ONNX Runtime could not be fetched)"
	DIFFNR_PYTHON="$$(test -f .venv/ready && echo $(CURDIR)/.venv/bin/python || command -v $(PYTHON))" $(CARGO) test --workspace --locked

# The proofs that belong to the optimised build: no allocation after "ready".
test-release: bridge
	$(CARGO) test --release --locked --test no_allocation
	$(CARGO) test --release --locked --test gaussians_allocate_nothing
	$(CARGO) test --release --locked --test field_allocate_nothing

# Every interleaving of the frame ring and the volume slots, within loom's bounds.
test-loom:
	RUSTFLAGS="--cfg loom" $(CARGO) test -p firmware-bridge --release --locked --target-dir target/loom --test loom

# tests/conformance builds the executor with the same flags, but for the sanitizers. Rust's test program is not instrumented itself, so
# that AddressSanitizer must be there before it; what it holds of memory when it ends is not the kernels' leak. The device's self-test is left out: it
# asks of the same kernels what the other tests do, and takes minutes so.
KERNEL_FLAGS := -std=c++17 -g1 -pthread -ffp-contract=off -Wall -Wextra -Werror -Wno-unknown-pragmas
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=all
# Products and sums joined, functions a unit in the last place off: as nvcc's code rounds, not as the tests of test-rust have it.
LIKE_NVCC := -DEXECUTOR_LIKE_NVCC -ffp-contract=fast $(if $(shell grep -ws -m1 fma /proc/cpuinfo),-mfma)
KERNEL_TESTS := $(CURDIR)/target/kernels

test-kernels:
	@if ! command -v $(CXX) >/dev/null; then echo "SKIPPED: the kernels on the CPU (no C++ compiler; install g++ or set CXX)"; exit 0; fi; \
	mkdir -p $(KERNEL_TESTS); set -x; \
	$(CXX) $(KERNEL_FLAGS) -O2 kernels/host/self_test.cpp -o $(KERNEL_TESTS)/self_test; \
	$(KERNEL_TESTS)/self_test; set +x; \
	if ! { echo "int main() {}" | $(CXX) -x c++ $(SANITIZE) - -o $(KERNEL_TESTS)/probe && $(KERNEL_TESTS)/probe; } 2>/dev/null; then \
	    echo "SKIPPED: the kernels under sanitizers ($(CXX) has none that work here; install libasan and libubsan)"; exit 0; \
	fi; set -x; \
	$(CXX) $(KERNEL_FLAGS) -O1 $(SANITIZE) -DEXECUTOR_UCONTEXT kernels/host/self_test.cpp -o $(KERNEL_TESTS)/self_test_ucontext; \
	$(KERNEL_TESTS)/self_test_ucontext; \
	$(CXX) $(KERNEL_FLAGS) -O1 $(SANITIZE) kernels/host/self_test.cpp -o $(KERNEL_TESTS)/self_test_sanitized; \
	$(KERNEL_TESTS)/self_test_sanitized; \
	$(CXX) $(KERNEL_FLAGS) $(LIKE_NVCC) -O1 $(SANITIZE) -fPIC -shared kernels/host/library.cpp -o $(KERNEL_TESTS)/sanitized.so; \
	DIFFNR_KERNEL_EXECUTOR=$(KERNEL_TESTS)/sanitized.so ASAN_OPTIONS=detect_leaks=0 PROPTEST_CASES=$${PROPTEST_CASES:-16} $(CARGO) test --locked --test conformance \
	    --config "target.'cfg(all())'.runner = ['env', 'LD_PRELOAD=$$($(CXX) -print-file-name=libasan.so)']" -- --skip self_test

.venv-nvcc/ready:
	$(PYTHON) -m venv .venv-nvcc && .venv-nvcc/bin/pip install --quiet --disable-pip-version-check "cuda-toolkit[nvcc,cccl]==13.0.*" && touch $@

# Code for A100, H100 and H200, RTX 50; PTX for what comes between and after.
NVCC_FLAGS := -std=c++17 -Xptxas -warn-spills -Werror all-warnings -fatbin --compress-mode=size \
    -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90,code=sm_90 -gencode arch=compute_120,code=sm_120 \
    -gencode arch=compute_90,code=compute_90
IMAGES := kernels/prebuilt

kernels: .venv-nvcc/ready
	mkdir -p $(IMAGES) && rm -f $(IMAGES)/*
	cd kernels; for kernel in *.cu; do \
	    $(CURDIR)/.venv-nvcc/lib/python3*/site-packages/nvidia/cu13/bin/nvcc $(NVCC_FLAGS) $$kernel -o $(abspath $(IMAGES))/$${kernel%.cu}.fatbin; \
	done; sha256sum *.cu *.cuh > $(abspath $(IMAGES))/sources.sha256

check-kernels:
	$(MAKE) kernels IMAGES=target/prebuilt
	diff -r kernels/prebuilt target/prebuilt

gpu-check:
	scripts/gpu-check

gpu-check-stand-in:
	scripts/gpu-check --stand-in

# PyTorch is some gigabytes: not installed for this.
MODELS_PYTHON := $(if $(wildcard .venv-models/bin/python),$(CURDIR)/.venv-models/bin/python,$(PYTHON))

test-models:
	@if $(MODELS_PYTHON) -c "import torch, onnx, onnxscript, onnxruntime, safetensors, pytest" 2>/dev/null; then \
	    cd models && $(MODELS_PYTHON) -m pytest -q -rs tests; \
	else \
	    echo "SKIPPED: the tests of models/ (PyTorch is not there: python3 -m venv .venv-models && .venv-models/bin/pip install -e models[test,sd-turbo])"; \
	fi

.venv-engines/ready:
	$(PYTHON) -m venv .venv-engines && .venv-engines/bin/pip install --quiet --disable-pip-version-check tensorrt_rtx_cu13 && touch .venv-engines/ready

engines: .venv-engines/ready
	.venv-engines/bin/python scripts/engines.py $(if $(MODEL),$(MODEL),models)

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

# RTK runs beside ours where `make bench-peers` has installed it.
bench: build
	$(CARGO) bench --locked --bench projector -- --json $(CURDIR)/target/projector.json
	$(CARGO) bench --locked --bench fdk
	$(CARGO) bench --locked --bench gaussians
	$(CARGO) bench --locked --bench field
	@if [ -f .venv-peers/ready ]; then \
	    .venv-peers/bin/python benches/peers/rtk.py --projector target/projector.json; \
	else \
	    echo "RTK beside ours: not installed (make bench-peers installs the PyPI package itk-rtk)"; \
	fi

.venv-peers/ready:
	$(PYTHON) -m venv .venv-peers && .venv-peers/bin/pip install --quiet --disable-pip-version-check numpy itk-rtk && touch .venv-peers/ready

bench-peers: .venv-peers/ready
	$(MAKE) bench

.venv-methods/ready:
	$(PYTHON) -m venv .venv-methods && .venv-methods/bin/pip install --quiet --disable-pip-version-check numpy matplotlib nibabel && touch .venv-methods/ready

methods: build .venv-methods/ready
	.venv-methods/bin/python scripts/methods.py $(CT) -o $(if $(OUT),$(OUT),methods) --views $(if $(VIEWS),$(VIEWS),36,24,12) \
	    --photons $(if $(PHOTONS),$(PHOTONS),1e5) $(if $(METHODS),--methods $(METHODS)) $(if $(REPAIR),--repair "$(REPAIR)")

fuzz:
	DIFFNR_FUZZ_SECONDS=$(SECONDS_TO_FUZZ) $(CARGO) test -p firmware-bridge --release --locked --test fuzz -- --nocapture
	DIFFNR_FUZZ_SECONDS=$(SECONDS_TO_FUZZ) $(CARGO) test --release --locked --test formats_fuzz -- --nocapture

clean:
	$(CARGO) clean
	$(MAKE) -C firmware-bridge clean
	rm -rf demo .venv .onnxruntime wheels .venv-peers .venv-methods .venv-engines .venv-nvcc
