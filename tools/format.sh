#!/usr/bin/env bash
# Formats every C++ file, then runs clang-tidy (with --tidy) on the host code of the release build.
set -euo pipefail
cd "$(dirname "$0")/.."
git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' | xargs clang-format -i
python3 tools/check_includes.py
if [ "${1:-}" = --tidy ]; then
  git ls-files 'graft/**.cpp' 'cli/*.cpp' | grep -v _fuzz.cpp | xargs -P 2 -n 4 clang-tidy --quiet -p build
fi
