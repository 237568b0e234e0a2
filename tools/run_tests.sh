#!/usr/bin/env bash
# Runs every test of a build folder that this machine can run, then checks what was skipped and why.
set -euo pipefail
cd "$(dirname "$0")/.."
build=$1
results=$build/test-results
rm -rf "$results" && mkdir -p "$results"
export GTEST_OUTPUT="xml:$PWD/$results/"
for model in "$build"/share/graft/models/*.gguf; do
  if [ -e "$model" ]; then GRAFT_DEMO_MODEL=$(realpath "$model"); export GRAFT_DEMO_MODEL; fi
done
# Undefined behaviour ends a test. The thread sanitizer does not see into libgomp, whose barriers it would take for races.
export UBSAN_OPTIONS=${UBSAN_OPTIONS:-halt_on_error=1:print_stacktrace=1}
if grep -q '^GRAFT_SANITIZE:STRING=thread' "$build/CMakeCache.txt"; then export OMP_NUM_THREADS=1 OMP_THREAD_LIMIT=1 MKL_NUM_THREADS=1; fi
ctest --test-dir "$build" --output-on-failure --no-tests=error --parallel "${GRAFT_TEST_JOBS:-2}"
python3 tools/check_skips.py "$results"
