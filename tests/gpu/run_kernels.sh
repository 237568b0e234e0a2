#!/usr/bin/env bash
# Runs prebuilt kernel tests and benchmarks on a machine with an NVIDIA GPU, from the repository root.
#   tests/gpu/run_kernels.sh BUILD [OUT]
# BUILD holds bin/kernels_*_{test,bench} and share/graft/hub/graft-kernels (a build folder, or a copy of these
# two, with libfmt.so.9 in lib/ where the machine lacks it); OUT gets logs, test reports and benchmark rows (default: BUILD/gpu-results).
# Needs python3 with a torch wheel of the same version as the build's, for libtorch alone (GRAFT_TORCH_PYTHON).
# GRAFT_GPU_STEPS picks steps, in order: tests sanitizer bench (default: all three).
set -uo pipefail
build=$(realpath "${1:?usage: tests/gpu/run_kernels.sh BUILD [OUT]}")
out=${2:-$build/gpu-results}
python=${GRAFT_TORCH_PYTHON:-python3}
mkdir -p "$out"

torch_dir=$("$python" -c "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])")
site_packages=$(dirname "$torch_dir")
library_path=$build/lib:$torch_dir/lib
for folder in "$site_packages"/nvidia/*/lib; do
  [ -d "$folder" ] && library_path=$library_path:$folder
done
export LD_LIBRARY_PATH=$library_path:${LD_LIBRARY_PATH:-}
export GRAFT_KERNELS_DIR=$build/share/graft/hub/graft-kernels
export GRAFT_BENCH_COMMIT=${GRAFT_BENCH_COMMIT:-$(git rev-parse --short HEAD 2>/dev/null || echo unknown)}
nvidia-smi --query-gpu=name,clocks.sm,clocks.mem,driver_version --format=csv || true
failed=0

run_tests() {
  for program in "$build"/bin/kernels_*_test; do
    name=$(basename "$program")
    echo "== $name"
    "$program" --gtest_brief=1 --gtest_output="xml:$out/$name.xml" > "$out/$name.log" 2>&1 || failed=1
    grep -vE 'Skipped$' "$out/$name.log" | tail -40
  done
}

run_sanitizer() {
  local sanitizer
  sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer \
    "$site_packages"/nvidia/*/bin/compute-sanitizer 2>/dev/null | head -1)
  if [ -z "$sanitizer" ]; then
    echo "== compute-sanitizer: not on this machine: not run"
    return
  fi
  for tool in memcheck racecheck; do
    for program in "$build"/bin/kernels_*_test; do
      name=$(basename "$program")
      echo "== $tool $name"
      # The cases that need a host library's own kernels (comparisons) run under the tool too: names of ours
      # only would hide overruns that eager's kernels see first.
      local status=0
      GRAFT_TEST_SMALL=1 timeout 280 "$sanitizer" --tool "$tool" --error-exitcode 9 --print-limit 20 \
        "$program" --gtest_brief=1 --gtest_filter='*cuda*:*Cuda*:-*NamesTheArgument*' \
        > "$out/$tool-$name.log" 2>&1 || status=$?
      # racecheck reports cuBLAS's own kernels as well: those of ours count.
      if [ $status = 9 ] && [ $tool = racecheck ] && ! grep -q 'Race reported.*graft_kernels' "$out/$tool-$name.log"; then
        status=0
      fi
      [ $status = 0 ] || failed=1
      grep -E 'ERROR SUMMARY|RACECHECK SUMMARY|PASSED|FAILED|Error' "$out/$tool-$name.log" | tail -8
    done
  done
}

run_benchmarks() {
  for program in "$build"/bin/kernels_*_bench; do
    name=$(basename "$program")
    echo "== $name"
    GRAFT_BENCH_DEVICE=cuda "$program" > "$out/$name.jsonl" 2> "$out/$name.err" || failed=1
    cat "$out/$name.err"
    "$python" - "$out/$name.jsonl" <<'PYTHON'
import json, sys
for line in open(sys.argv[1]):
    row = json.loads(line)
    peers = ", ".join(f"{p['name']} {p['median_us']:.1f}" for p in row.get("peers", []))
    print(f"{row['op']:18} {row['dtype']:9} {row['shape']:13} {row['median_us']:8.1f} us {row['GBps']:7.0f} GB/s "
          f"{100 * row['share_of_ceiling']:5.1f} % of copy, chained {row['chained_us']:6.2f}, "
          f"host {row['host_us']:5.2f} | {peers}")
PYTHON
  done
}

for step in ${GRAFT_GPU_STEPS:-tests sanitizer bench}; do
  case $step in
    tests) run_tests ;;
    sanitizer) run_sanitizer ;;
    bench) run_benchmarks ;;
    *) echo "unknown step: $step" >&2; exit 2 ;;
  esac
done
exit $failed
