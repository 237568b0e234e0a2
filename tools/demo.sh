#!/usr/bin/env bash
# The demo: the same prompt with kernels off and on, equal token ids, the swap table, tokens per second.
set -euo pipefail
cd "$(dirname "$0")/.."
graft=$1/bin/graft
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
question="Explain in two sentences why the sky is blue."
device=cpu
if "$graft" doctor --json 2>/dev/null | grep -q '"cuda_available": *true'; then device=cuda; fi
for kernels in off on; do
  "$graft" generate --chat "$question" --max-new-tokens 64 --device "$device" --dtype float32 \
    --kernels "$kernels" --json > "$work/$kernels.json"
done
.venv/bin/python tools/show_demo.py "$work/off.json" "$work/on.json" "$graft" "$device" float32
