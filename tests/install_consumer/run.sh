#!/usr/bin/env bash
# Installs a build into a fresh folder, builds this consumer against it, and runs both.
#   run.sh BUILD MODEL.gguf
set -euo pipefail
build=$(realpath "$1") model=$2
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset LD_LIBRARY_PATH GRAFT_EMBEDDED_HUB
cmake --install "$build" --prefix "$work/prefix" >/dev/null
if grep -rlF "$build" "$work/prefix"; then
  echo "install_consumer: these installed files name the build folder"
  exit 1
fi
# Not optimized: the consumer's own code is a few lines, and parsing libtorch's headers is what takes time.
cmake -S "$here" -B "$work/build" -G Ninja -DCMAKE_PREFIX_PATH="$work/prefix" >/dev/null
cmake --build "$work/build"
"$work/build/consumer" "$model"
"$work/prefix/bin/graft" --version
"$work/prefix/bin/graft" generate "$model" --prompt "The capital of France is" --max-new-tokens 2
