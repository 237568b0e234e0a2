#!/usr/bin/env bash
# Builds the fuzz targets of the file formats and of the template language with clang's libFuzzer and the address and
# undefined-behaviour sanitizers, and runs each on the test data for some seconds.
#   tools/fuzz.sh [SECONDS] [FOLDER]          defaults: 60, build/fuzz; what breaks a target stays in FOLDER
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-60} folder=${2:-build/fuzz}
mkdir -p "$folder"
flags=(-std=c++20 -g -O1 -fsanitize=fuzzer,address,undefined -DFMT_HEADER_ONLY -DSPDLOG_FMT_EXTERNAL -I.)
sources() { find "$@" -name '*.cpp' | grep -v '_test\|_fuzz\|_bench'; }

fuzz() {  # NAME PATTERN-OF-SEEDS SOURCES-AND-LIBRARIES…
  local name=$1 seeds=$2; shift 2
  clang++ "${flags[@]}" -o "$folder/$name" "$@"
  mkdir -p "$folder/$name.corpus"
  find tests/data -name "$seeds" -size -200k -exec cp {} "$folder/$name.corpus/" \;
  "$folder/$name" -max_total_time="$seconds" -rss_limit_mb=2500 -max_len=200000 -artifact_prefix="$folder/" \
    -print_final_stats=0 "$folder/$name.corpus" 2>&1 | grep -a 'Done\|ERROR\|SUMMARY\|runtime error'
}
io=($(sources graft/io graft/core))
fuzz safetensors '*.safetensors' graft/io/safetensors_fuzz.cpp "${io[@]}"
fuzz gguf '*.gguf' graft/io/gguf_fuzz.cpp "${io[@]}"
fuzz json '*.json' graft/io/json_fuzz.cpp "${io[@]}"
fuzz jinja '*.jinja' graft/text/jinja_*.cpp graft/text/chat_template.cpp graft/core/error.cpp -lutf8proc
