# The front door. Everything real happens in tools/ and CMake.
#   make demo     install what is missing, build, write text with kernels off and on
#   make test     build and run every test that this machine can run
#   make bench    run the benchmarks that this machine can run
#   make format   clang-format, clang-tidy and the include-order check
PRESET ?= release
BUILD := $(if $(filter release ci,$(PRESET)),build,build-$(PRESET))

.PHONY: help setup build demo test test-newest bench format check clean
help:
	@sed -n 's/^#   //p' Makefile

setup:
	@tools/setup.sh

build: setup
	@cmake --preset $(PRESET) > $(BUILD).configure.log 2>&1 || (cat $(BUILD).configure.log; exit 1)
	@grep -E 'graft:|torch ' $(BUILD).configure.log || true
	@cmake --build --preset $(PRESET)
	@tools/link_demo_model.sh $(BUILD)

demo: build
	@tools/demo.sh $(BUILD)

test: build check
	@tools/run_tests.sh $(BUILD)

# The same sources against the newest torch wheel.
test-newest:
	@tools/setup.sh newest
	@$(MAKE) --no-print-directory test PRESET=torch-newest

bench: build
	@tools/run_benchmarks.sh $(BUILD)

check:
	@python3 tools/check_includes.py

format:
	@tools/format.sh

clean:
	rm -rf build build-* .cache
