# The commands people use daily. `make help` lists them.
BUILD ?= build
JOBS ?= $(shell nproc)
MODEL ?= models/weir-tiny
GRPC ?= 127.0.0.1:50051
METRICS ?= 127.0.0.1:9464
SERVE_FLAGS ?=
CMAKE_FLAGS ?=
DIST ?= dist
FUZZ_SECONDS ?= 600
CLANGXX ?= $(firstword $(wildcard /usr/bin/clang++ /usr/bin/clang++-[0-9]*) clang++)
# The CUDA toolkit: auto: used where one is found, fetched where a GPU is; always: fetched where none is found.
CUDA ?= auto
export CMAKE_FLAGS

.PHONY: help build serve test test-slow bench gpu-check dist format tidy asan tsan fuzz clean dependencies test-dependencies python node cuda cuda-toolkit

help:            ## this list
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /  make \1\t/' | expand -t 24

dependencies:
	@tools/install_dependencies.sh

test-dependencies:
	@tools/install_dependencies.sh --test

cuda: dependencies
	@tools/provide_cuda.sh $(if $(filter always,$(CUDA)),--always)

cuda-toolkit: dependencies  ## fetch the pinned CUDA toolkit into .cuda; needs no GPU
	@tools/install_cuda_toolkit.sh .cuda

build: dependencies cuda  ## install what is missing, build the server: build/weir
	@cmake -S . -B $(BUILD) -G Ninja -DCMAKE_BUILD_TYPE=Release $(CMAKE_FLAGS) > $(BUILD).log 2>&1 || { cat $(BUILD).log; exit 1; }
	@mkdir -p $(BUILD) && mv $(BUILD).log $(BUILD)/configure.log
	@ninja -C $(BUILD) -j $(JOBS) --quiet weir

serve: build     ## serve the model that ships: OpenAI API and page on 127.0.0.1:8080, gRPC on 127.0.0.1:50051
	@$(BUILD)/weir serve $(MODEL) --grpc $(GRPC) --metrics $(METRICS) $(SERVE_FLAGS)

$(BUILD)/venv/done: tools/requirements-test.txt
	@python3 -m venv $(BUILD)/venv
	@$(BUILD)/venv/bin/pip install -q --disable-pip-version-check -r tools/requirements-test.txt
	@touch $@

$(BUILD)/python/done: $(BUILD)/venv/done $(wildcard proto/weir/v1/*.proto)
	@mkdir -p $(BUILD)/python
	@$(BUILD)/venv/bin/python -m grpc_tools.protoc -I proto --python_out=$(BUILD)/python \
	  --grpc_python_out=$(BUILD)/python proto/weir/v1/*.proto
	@touch $@

python: $(BUILD)/python/done  ## what Python clients need: grpcio in build/venv, stubs in build/python

$(BUILD)/node/done: $(BUILD)/venv/done tools/provide_node.sh tools/node/package-lock.json
	@tools/provide_node.sh $(BUILD)
	@touch $@

node: $(BUILD)/node/done  ## what the tests in JavaScript need: build/node/bin/node and its packages

test: CUDA = always
test: test-dependencies build python node  ## install what is missing, build, run all tests but the slow ones
	@ninja -C $(BUILD) -j $(JOBS) --quiet
	@ctest --test-dir $(BUILD) --output-on-failure -j $(JOBS) -LE 'slow|gpu'

test-slow: build python  ## the long tests: soak, long simulations
	@ninja -C $(BUILD) -j $(JOBS) --quiet
	@ctest --test-dir $(BUILD) --output-on-failure -L slow

bench: build     ## kernel benchmarks, and the step benchmark of the model that ships
	@ninja -C $(BUILD) -j $(JOBS) --quiet benches
	@for b in $(BUILD)/bench/*_bench; do $$b --benchmark_min_time=0.2 || exit 1; done
	@$(BUILD)/weir bench step $(MODEL)

gpu-check: build ## on a machine with an NVIDIA GPU: kernel tests, goldens, benchmarks (tools/gpu_check.sh)
	@ninja -C $(BUILD) -j $(JOBS) --quiet
	@tools/gpu_check.sh --folder $(BUILD) $(PARTS)

dist: build      ## a folder that runs on a bare Debian 12 or Ubuntu 24.04: dist/weir-VERSION (CUBLASLT=0: without it)
	@tools/make_dist.py $(BUILD) $(DIST) $(if $(filter 0,$(CUBLASLT)),--without-cublaslt)

format:          ## clang-format every C++ file of the project
	@git ls-files '*.cc' '*.h' '*.cu' '*.cuh' | xargs clang-format -i

asan:            ## unit tests under AddressSanitizer and UBSan: build-asan
	@UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 ASAN_OPTIONS=detect_stack_use_after_return=1 \
	  $(MAKE) --no-print-directory test BUILD=build-asan \
	  CMAKE_FLAGS="-DCMAKE_BUILD_TYPE=RelWithDebInfo -DWEIR_SANITIZE=address,undefined -DWEIR_STATIC=OFF -DWEIR_CUDA=OFF"

tsan:            ## unit tests under ThreadSanitizer: build-tsan
	@TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1:suppressions=$(CURDIR)/tests/server/tsan.supp \
	  $(MAKE) --no-print-directory test BUILD=build-tsan \
	  CMAKE_FLAGS="-DCMAKE_BUILD_TYPE=RelWithDebInfo -DWEIR_SANITIZE=thread -DWEIR_STATIC=OFF -DWEIR_CUDA=OFF"

fuzz:            ## every fuzz target for FUZZ_SECONDS (600), with clang: build-fuzz
	@cmake -S . -B build-fuzz -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCMAKE_C_COMPILER=$(subst ++,,$(CLANGXX)) -DCMAKE_CXX_COMPILER=$(CLANGXX) \
	  -DWEIR_FUZZ=ON -DWEIR_SANITIZE=address,undefined -DWEIR_STATIC=OFF -DWEIR_CUDA=OFF > build-fuzz.log 2>&1 || { cat build-fuzz.log; exit 1; }
	@mv build-fuzz.log build-fuzz/configure.log
	@ninja -C build-fuzz -j $(JOBS) --quiet fuzzers
	@set -e; for target in build-fuzz/fuzz/*_fuzz; do \
	  mkdir -p build-fuzz/corpus/$$(basename $$target); \
	  own=tests/fuzz/$$(basename $$target); \
	  UBSAN_OPTIONS=halt_on_error=1 $$target -max_total_time=$(FUZZ_SECONDS) -max_len=4096 -print_final_stats=1 \
	    -artifact_prefix=build-fuzz/fuzz/ $$(ls $${own}.dict 2>/dev/null | sed s/^/-dict=/) \
	    build-fuzz/corpus/$$(basename $$target) $$(ls -d $${own}_seeds 2>/dev/null || true); \
	done

clean:           ## remove the build folders
	@rm -rf build build-*
