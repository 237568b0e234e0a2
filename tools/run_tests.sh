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
ctest --test-dir "$build" --output-on-failure --no-tests=error --parallel "${GRAFT_TEST_JOBS:-2}"
python3 tools/check_skips.py "$results"
