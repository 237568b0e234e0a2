#!/usr/bin/env bash
# Installs a build into a fresh folder, builds this consumer against it, and runs both; then the same files as the wheel
# of `pip install .` holds them, through the wheel's command.
#   run.sh BUILD MODEL.gguf PYTHON
set -euo pipefail
build=$(realpath "$1") model=$2 python=$3
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

# pyproject.toml, [tool.scikit-build]: the installed tree lies inside the Python package.
mkdir "$work/wheel"
cp -r "$here/../../python/graft_kernels" "$work/wheel/"
cp -r "$work/prefix/." "$work/wheel/graft_kernels/"
rm -rf "$work/prefix"
export PYTHONPATH=$work/wheel
graft=("$python" -c 'from graft_kernels.command import main; main()')
"${graft[@]}" --version
"${graft[@]}" generate "$model" --prompt "The capital of France is" --max-new-tokens 2 --json | tee "$work/said.json"
grep -q '"package":"graft-kernels/rms-norm' "$work/said.json"
"$python" -c 'import graft_kernels; print(graft_kernels.hub_dir())' | grep -F "$work/wheel"
