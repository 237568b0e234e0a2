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
  if "$@" > "$out/$what.log" 2>&1; then
    echo "$what: ok"
  else
    failed=1; echo "$what: FAILED (exit $?)"; tail -c 1500 "$out/$what.log"
  fi
}

nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
"$python" -c 'import torch, triton; print("torch", torch.__version__, "triton", triton.__version__)'
for shape in tiny llama-3.2-1b; do
  "$python" tools/write_random_llama.py --shape $shape --out "$work/$shape" > /dev/null
done

# Without compiling, the package is refused, and the way on is named.
"$graft" kernels info "$PWD/tests/kernels/python-norms" --device cuda > "$out/refused.log" 2>&1
grep -q "Python files only" "$out/refused.log" && grep -q "graft kernels aot" "$out/refused.log" && echo "refused: ok" ||
  { failed=1; echo "refused: FAILED"; cat "$out/refused.log"; }

start=$SECONDS
check compile "$graft" kernels aot "$PWD/tests/kernels/python-norms:TritonRMSNorm" --contract RMSNorm --device cuda \
  --dtype float32 bfloat16 --columns 256 2048 --eps 1e-5 --out "$work/triton-norm"
echo "compiled in $((SECONDS - start)) s"; grep 'kernel.aot' "$out/compile.log"
config="{\"kernel_mapping\": {\"RMSNorm\": {\"cuda\": \"$work/triton-norm:TritonRMSNorm\"}}, \"inherit_mapping\": false}"

# First load: through the canary, which must be able to isolate CUDA.
GRAFT_CANARY=strict GRAFT_LOG=info "$graft" explain "$work/tiny" --device cuda --dtype float32 --kernel-config "$config" \
  > "$out/explain.log" 2>&1 || failed=1
grep -h 'kernel.canary' "$out/explain.log"; grep -h 'RMSNorm' "$out/explain.log" | head -4

check answers "$python" tests/gpu/report_aot.py "$graft" "$work" "$config"
cat "$out/answers.log"

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
  name=$(basename "$package") # GRAFT_CANARY=always runs what comes with graft too
  GRAFT_CANARY=always GRAFT_LOG=info "$graft" explain "$work/tiny" --device cuda --dtype bfloat16 \
    --kernel-config "{\"kernel_mapping\": {\"RMSNorm\": {\"cuda\": \"$package:RMSNorm\"}}, \"inherit_mapping\": false}" \
    > "$out/canary-$name.log" 2>&1
  grep -h 'kernel.canary' "$out/canary-$name.log" | cut -c1-400 | head -4
  grep -q 'canary.*: ok in' "$out/canary-$name.log" || { failed=1; echo "canary $name: FAILED"; }
done
exit $failed
