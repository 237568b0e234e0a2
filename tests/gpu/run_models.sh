#!/usr/bin/env bash
# The main path on a machine with an NVIDIA GPU: a random checkpoint in Llama-3.2-1B's shape, and SmolLM2 when
# its .gguf file is named; kernels off and on, ids compared, the process's maps checked for Python.
#   tests/gpu/run_models.sh BUILD [SMOLLM2.gguf]     BUILD holds bin/, lib/ and share/ of a build with CUDA
# GRAFT_GPU_MODELS picks models: llama-1b graph smollm2 (default: those that there are files for); graph is llama-1b
# with a static cache, its steps launched one by one and replayed from a CUDA graph.
set -euo pipefail
cd "$(dirname "$0")/../.."
build=$(realpath "$1") smollm2=${2:-}
torch=$(python3 -c 'import torch, os; print(os.path.dirname(torch.__file__))')
export LD_LIBRARY_PATH=$build/lib:$torch/lib:$(echo "$torch"/../nvidia/*/lib | tr ' ' ':')
graft=$build/bin/graft
work=${GRAFT_WORK:-/tmp/graft-models}
mkdir -p "$work"

models=${GRAFT_GPU_MODELS:-llama-1b graph ${smollm2:+smollm2}}
ids=$(python3 -c 'import random; random.seed(0); print(",".join(str(random.randrange(3, 128256)) for _ in range(512)))')

"$graft" doctor
# No Python library in the process, and the kernel libraries are there.
check_maps() {  # MODEL-ARGUMENTS…
  "$graft" generate "$@" --device cuda --kernels on --max-new-tokens 4000 --ignore-eos --json >/dev/null 2>&1 &
  local pid=$!
  sleep 12
  if grep -q 'libpython\|libtorch_python' "/proc/$pid/maps"; then
    echo "maps: FAILED: a Python library is mapped"
    exit 1
  fi
  grep -c 'abi3.so' "/proc/$pid/maps" | sed 's/^/maps: no Python library; mappings of kernel libraries: /'
  kill $pid
}
run() {  # NAME MODEL-ARGUMENTS… : generate with kernels off and on, compare
  local name=$1; shift
  for kernels in off on; do
    "$graft" generate "$@" --kernels "$kernels" --max-new-tokens 128 --ignore-eos --json > "$work/$name.$kernels.json"
  done
  python3 tests/gpu/report_runs.py "$graft" "$name" "$work/$name.off.json" "$work/$name.on.json" "$@"
}
# A static cache with its steps launched one by one and replayed from a graph, twice.
check_graph() {  # NAME KERNELS MODEL-ARGUMENTS…
  local name=$1 kernels=$2; shift 2
  for graph in off on again; do
    "$graft" generate "$@" --device cuda --dtype bfloat16 --cache static --kernels "$kernels" \
      --cuda-graph ${graph/again/on} --max-new-tokens 96 --ignore-eos --json > "$work/$name.graph-$graph.json"
  done
  python3 tests/gpu/report_graph.py "$graft" "$name" "$kernels" "$1" "$work/$name".graph-{off,on,again}.json
}
if [[ $models == *llama-1b* || $models == *graph* ]]; then
  [ -e "$work/llama-1b/model.safetensors" ] ||
    python3 tools/write_random_llama.py --shape llama-3.2-1b --out "$work/llama-1b"
fi
if [[ $models == *graph* ]]; then
  for kernels in off on; do
    check_graph "llama-1b" "$kernels" "$work/llama-1b" --prompt-ids "$ids"
    check_graph "llama-1b-sampled" "$kernels" "$work/llama-1b" --prompt-ids "$ids" --temperature 0.8 --seed 3
  done
  check_graph "llama-1b-beams" on "$work/llama-1b" --prompt-ids "$ids" --num-beams 3
fi
if [[ $models == *llama-1b* ]]; then
  python3 tests/gpu/compare_logits.py "$graft" "$work/llama-1b" "$ids"
  for dtype in float32 bfloat16; do
    run "llama-1b-$dtype" "$work/llama-1b" --device cuda --dtype $dtype --prompt-ids "$ids"
  done
  run "llama-1b-static" "$work/llama-1b" --device cuda --dtype bfloat16 --cache static --prompt-ids "$ids"
  check_maps "$work/llama-1b" --prompt-ids "$ids"
fi
if [[ $models == *smollm2* ]]; then
  for dtype in bfloat16 float32; do
    run "smollm2-$dtype" "$smollm2" --device cuda --dtype $dtype --chat "Explain in two sentences why the sky is blue."
  done
  check_maps "$smollm2" --prompt "The sky is"
fi
