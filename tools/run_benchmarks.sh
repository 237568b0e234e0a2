#!/usr/bin/env bash
# Runs the benchmarks of a build; JSON lines go to bench/results/<machine>/ (override: GRAFT_BENCH_MACHINE).
set -euo pipefail
cd "$(dirname "$0")/.."
build=$1
machine=${GRAFT_BENCH_MACHINE:-local}
out=bench/results/$machine
mkdir -p "$out"
for program in "$build"/bin/*_bench; do
  [ -x "$program" ] || continue
  name=$(basename "$program")
  echo "bench: $name"
  "$program" | tee "$out/$name.jsonl"
done
