#!/usr/bin/env bash
# Builds the fuzz targets of the file formats, of libraries, tokenizer.json and the template language with clang's libFuzzer
# and the address and undefined-behaviour sanitizers, and runs each on the test data for some seconds.
#   tools/fuzz.sh [SECONDS] [FOLDER]          defaults: 60, build/fuzz; what breaks a target stays in FOLDER
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-60} folder=${2:-build/fuzz}
mkdir -p "$folder/objects"
flags=(-std=c++20 -g -O1 -fsanitize=address,undefined -DFMT_HEADER_ONLY -DSPDLOG_FMT_EXTERNAL
  -DPCRE2_CODE_UNIT_WIDTH=8 -DUTF8PROC_STATIC -I"$PWD")
sources() { find "$@" -name '*.cpp' | grep -v '_test\|_fuzz\|_bench'; }

fuzz() {  # NAME PATTERN-OF-SEEDS TARGET-SOURCE LIBRARIES…
  local name=$1 seeds=$2; shift 2
  clang++ "${flags[@]}" -fsanitize=fuzzer -o "$folder/$name" "$@"
  mkdir -p "$folder/$name.corpus"
  find tests/data -name "$seeds" -size -200k -exec cp --parents {} "$folder/$name.corpus/" \;
  "$folder/$name" -max_total_time="$seconds" -rss_limit_mb=2500 -max_len=200000 -artifact_prefix="$folder/" \
    "$folder/$name.corpus" 2>&1 | grep -a 'Done\|ERROR\|SUMMARY\|runtime error'
}
# Every source once, one per processor; the targets take from the archive what they use.
sources "$PWD"/graft/{io,core,text,trust} "$PWD"/graft/hub/disk.cpp |
  (cd "$folder/objects" && xargs -P "$(nproc)" -n 1 clang++ "${flags[@]}" -fsanitize=fuzzer-no-link -c)
rm -f "$folder/objects.a" && ar rcs "$folder/objects.a" "$folder"/objects/*.o
fuzz safetensors '*.safetensors' graft/io/safetensors_fuzz.cpp "$folder/objects.a"
fuzz gguf '*.gguf' graft/io/gguf_fuzz.cpp "$folder/objects.a"
fuzz json '*.json' graft/io/json_fuzz.cpp "$folder/objects.a"
fuzz tokenizer 'tokenizer.json' graft/text/tokenizer_fuzz.cpp "$folder/objects.a" -lutf8proc -lpcre2-8
fuzz jinja '*.jinja' graft/text/jinja_fuzz.cpp "$folder/objects.a" -lutf8proc -lpcre2-8
fuzz bundle '*.sigstore' graft/trust/sigstore/bundle_fuzz.cpp "$folder/objects.a" -lcrypto
mkdir -p "$folder/elf.corpus"
echo 'int answer(void) { return 42; }' | cc -shared -fPIC -nostdlib -x c - -o "$folder/elf.corpus/answer.so"
fuzz elf '*.so' graft/kernel/elf_check_fuzz.cpp graft/kernel/elf_check.cpp "$folder/objects.a"
