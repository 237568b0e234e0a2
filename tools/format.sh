#!/usr/bin/env bash
# Formats every C++ file and checks the order of includes.
#   tools/format.sh                    formats
#   tools/format.sh --check            only says what is not formatted
#   tools/format.sh --tidy [FILE…]     clang-tidy too, on the host code of the release build (half an hour) or on FILEs
set -euo pipefail
cd "$(dirname "$0")/.."
for tool in clang-format $([ "${1:-}" != --tidy ] || echo clang-tidy); do
  command -v "$tool" > /dev/null || { echo "tools/format.sh: expected $tool, got none; hint: apt-get install $tool"; exit 1; }
done
if [ "${1:-}" = --check ]; then
  git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' | xargs clang-format --dry-run -Werror
else
  git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' | xargs clang-format -i
fi
python3 tools/check_includes.py
if [ "${1:-}" = --tidy ]; then
  shift
  python3 tools/tidy.py "${GRAFT_BUILD:-build}" "$@"
fi
