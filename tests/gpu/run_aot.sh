#!/usr/bin/env bash
# A layer of Python alone (tests/kernels/python-norms: RMSNorm in Triton) compiled once where Python and Triton are, then
# run by `graft` without Python, held against no kernels; and CUDA packages in the canary, isolated.
#   tests/gpu/run_aot.sh BUILD [OUT]     BUILD holds bin/, lib/ and share/ of a build with CUDA; OUT gets logs
set -uo pipefail
cd "$(dirname "$0")/../.."
build=$(realpath "$1") out=${2:-/tmp/graft-aot-results}
python=${GRAFT_TORCH_PYTHON:-python3}
torch=$("$python" -c 'import torch, os; print(os.path.dirname(torch.__file__))')
export LD_LIBRARY_PATH=$build/lib:$torch/lib:$(echo "$torch"/../nvidia/*/lib | tr ' ' ':')
work=${GRAFT_WORK:-/tmp/graft-aot}
export XDG_CACHE_HOME=$work/cache XDG_STATE_HOME=$work/state XDG_CONFIG_HOME=$work/config GRAFT_PYTHON=$python HF_HUB_OFFLINE=1
graft=$build/bin/graft failed=0
rm -rf "$work"
mkdir -p "$work" "$out"
check() {  # WHAT COMMAND…
  local what=$1; shift
  local status=0
  "$@" > "$out/$what.log" 2>&1 || status=$?
  [ $status = 0 ] && echo "$what: ok" || { failed=1; echo "$what: FAILED (exit $status)"; tail -c 1500 "$out/$what.log"; }
}

nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
"$python" -c 'import torch, triton; print("torch", torch.__version__, "triton", triton.__version__)'
# Without compiling, the package is refused, and the way on is named.
"$graft" kernels info "$PWD/tests/kernels/python-norms" --device cuda > "$out/refused.log" 2>&1
grep -q "Python files only" "$out/refused.log" && grep -q "graft kernels aot" "$out/refused.log" && echo "refused: ok" ||
  { failed=1; echo "refused: FAILED"; cat "$out/refused.log"; }

# A width each: Triton's block is as wide as the row.
start=$SECONDS
compile() {  # NAME COLUMNS DTYPE…
  local name=$1 columns=$2; shift 2
  "$graft" kernels aot "$PWD/tests/kernels/python-norms:TritonRMSNorm" --contract RMSNorm --device cuda --dtype "$@" \
    --columns "$columns" --eps 1e-5 --out "$work/$name"
}
check compile-256 compile triton-norm 256 float32 bfloat16 &
check compile-2048 compile triton-norm-wide 2048 bfloat16 &
for shape in tiny llama-3.2-1b; do
  "$python" tools/write_random_llama.py --shape $shape --out "$work/$shape" > /dev/null
done
wait
echo "compiled in $((SECONDS - start)) s"; grep -h 'kernel.aot' "$out"/compile-*.log
config() { echo "{\"kernel_mapping\": {\"RMSNorm\": {\"cuda\": \"$work/$1:TritonRMSNorm\"}}, \"inherit_mapping\": false}"; }
config=$(config triton-norm)

# First load: through the canary, which must be able to isolate CUDA.
GRAFT_CANARY=strict GRAFT_LOG=info "$graft" explain "$work/tiny" --device cuda --dtype float32 --kernel-config "$config" \
  > "$out/explain.log" 2>&1
grep -h 'kernel.canary' "$out/explain.log" | cut -c1-600; grep -h ' x RMSNorm' "$out/explain.log"
grep -q 'canary.*: ok in' "$out/explain.log" || { failed=1; echo "canary: FAILED"; }

check answers "$python" tests/gpu/report_aot.py "$graft" "$work/tiny" 1000 "$config" float32 bfloat16
check answers-wide "$python" tests/gpu/report_aot.py "$graft" "$work/llama-3.2-1b" 128256 "$(config triton-norm-wide)" bfloat16
grep -h '"model"' "$out"/answers*.log
# A width that it was not compiled for is refused before the model runs.
"$graft" explain "$work/llama-3.2-1b" --device cuda --dtype bfloat16 --kernel-config "$config" > "$out/width.log" 2>&1
grep -q 'layers.adapter.*expected rows of 256' "$out/width.log" && echo "width: ok" || { failed=1; echo "width: FAILED"; tail -5 "$out/width.log"; }

# No Python library in the process, and the compiled libraries are there.
"$graft" generate "$work/tiny" --prompt-ids 1,2,3 --device cuda --kernel-config "$config" --max-new-tokens 2000 --ignore-eos \
  --json > /dev/null 2>&1 &
pid=$!
for _ in $(seq 100); do
  grep -q 'memfd:_triton_norm' "/proc/$pid/maps" 2>/dev/null && break
  sleep 0.2
done
if grep -q 'libpython\|libtorch_python' "/proc/$pid/maps"; then
  failed=1; echo "maps: FAILED: a Python library is mapped"
fi
grep -o 'memfd:_triton_norm[^ ]*' "/proc/$pid/maps" | sort -u | wc -l | sed 's/^/maps: compiled libraries: /'
grep -q 'memfd:_triton_norm' "/proc/$pid/maps" || { failed=1; echo "maps: FAILED: no compiled library is mapped"; }
kill $pid; wait $pid 2> /dev/null

# Our own packages as strangers': every layer they describe, on CUDA, isolated.
for package in "$build"/share/graft/hub/graft-kernels/*/; do
  name=$(basename "$package")  # named by its path, it is not what came with the build
  package=${package%/}
  GRAFT_CANARY=always GRAFT_LOG=info "$graft" explain "$work/tiny" --device cuda --dtype bfloat16 \
    --kernel-config "{\"kernel_mapping\": {\"RMSNorm\": {\"cuda\": \"$package:RMSNorm\"}}, \"inherit_mapping\": false}" \
    > "$out/canary-$name.log" 2>&1
  grep -h 'kernel.canary' "$out/canary-$name.log" | cut -c1-400 | head -4
  if ! grep -q 'canary.*: ok in' "$out/canary-$name.log" || grep -q 'refused: \[kernel.canary\]' "$out/canary-$name.log"; then
    failed=1; echo "canary $name: FAILED"
  fi
done
exit $failed
