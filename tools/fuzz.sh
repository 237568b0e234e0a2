#!/usr/bin/env bash
# Builds the fuzz targets of every parser with clang's libFuzzer and the address and undefined-behaviour sanitizers, and
# runs each for some seconds from the stored seeds, as many at once as there are processors. Needs Debian's clang, which
# it installs; the target of config.json also the built library and torch's headers, and is left out with a word where
# those are missing.
#   tools/fuzz.sh [SECONDS] [FOLDER] [TARGET…]     defaults: 60, build/fuzz, all; inputs that break a target stay in FOLDER
#   LIMIT=840 tools/fuzz.sh                        no more than so many seconds, the building included
#   tools/fuzz.sh pack FOLDER                      programs, seeds and scripts to run elsewhere, without clang and network
set -euo pipefail
cd "$(dirname "$0")/.."
pack=
if [ "${1:-}" = pack ]; then pack=${2:?tools/fuzz.sh pack FOLDER}; set --; fi
export seconds=${1:-60} folder=${2:-build/fuzz}
wanted=("${@:3}") jobs=$(nproc)
SECONDS=0
is_wanted() { [ ${#wanted[@]} -eq 0 ] || [[ " ${wanted[*]} " == *" $1 "* ]]; }

if ! command -v clang++ >/dev/null; then
  echo "fuzz: installing Debian's clang"
  sudo=$([ "$(id -u)" -eq 0 ] || echo sudo)
  $sudo apt-get update -qq
  $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends clang libclang-rt-dev >/dev/null
fi
mkdir -p "$folder/objects"
export compile="clang++ -std=c++20 -gline-tables-only -O1 -fsanitize=address,undefined -fno-sanitize-recover=undefined
  -DSPDLOG_FMT_EXTERNAL -DPCRE2_CODE_UNIT_WIDTH=8 -DUTF8PROC_STATIC -I."
if command -v ccache >/dev/null; then compile="ccache $compile"; fi
# What can go into the programs does, so that they run on another machine.
# shellcheck disable=SC2054
libraries=(-static-libstdc++ -static-libgcc -Wl,-Bstatic -lutf8proc -lpcre2-8 -Wl,-Bdynamic -Wl,--as-needed -lcrypto -lfmt -lcurl)
torch=$(echo .venv/lib/python3*/site-packages/torch)

# Every source once, anew where it or any header changed; the targets take from the archive what they use.
rooms=(graft/core graft/hub graft/io)
if is_wanted bundle || is_wanted policy || is_wanted metadata || is_wanted lock; then rooms+=(graft/trust); fi
if is_wanted tokenizer || is_wanted jinja; then rooms+=(graft/text); fi
newest_header=$(find graft -name '*.h' -printf '%T@ %p\n' | sort -n | tail -1 | cut -d' ' -f2)
export newest_header
sources=$(find "${rooms[@]}" graft/kernel/{metadata,lock_file,elf_check,elf_image,elf_symbols}.cpp -name '*.cpp' |
  grep -v '_test\|_fuzz\|_bench\|/server/')
echo "$sources" |
  xargs -P "$jobs" -I{} sh -c '
    object=$folder/objects/$(echo "$1" | tr / _).o
    { [ "$object" -nt "$1" ] && [ "$object" -nt "$newest_header" ]; } || $compile -fsanitize=fuzzer-no-link -c "$1" -o "$object"' _ {}
rm -f "$folder/objects.a"
echo "$sources" | tr / _ | sed "s|.*|$folder/objects/&.o|" | xargs ar rcs "$folder/objects.a"

targets=()
fuzz() {  # NAME SEED-FOLDER SEED-PATTERN SOURCE OPTIONS…
  local name=$1 seeds=$2 pattern=$3 source=$4; shift 4
  is_wanted "$name" || return 0
  targets+=("$name")
  rm -f "$folder/$name" && mkdir -p "$folder/$name.corpus"
  find "$seeds" -name "$pattern" -type f -size "-${largest:-200k}" -exec cp --parents {} "$folder/$name.corpus/" \;
  while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do wait -n; done
  # shellcheck disable=SC2086
  $compile -fsanitize=fuzzer -o "$folder/$name" "$source" "$@" "$folder/objects.a" "${libraries[@]}" &
}
fuzz safetensors tests/data '*.safetensors' graft/io/safetensors_fuzz.cpp
fuzz gguf tests/data/fuzz/gguf '*.gguf' graft/io/gguf_fuzz.cpp
largest=20k fuzz json tests/data '*.json' graft/io/json_fuzz.cpp
fuzz checkpoint tests/data '*.index.json' graft/io/checkpoint_fuzz.cpp
fuzz tokenizer tests/data tokenizer.json graft/text/tokenizer_fuzz.cpp
fuzz jinja tests/data '*.jinja' graft/text/jinja_fuzz.cpp
fuzz payload tests/data/fuzz/payload '*' graft/hub/payload_fuzz.cpp
fuzz listing tests/data/fuzz/listing '*' graft/hub/listing_fuzz.cpp
fuzz metadata tests/data/fuzz/metadata '*' graft/kernel/metadata_fuzz.cpp
fuzz lock tests/data/fuzz/lock '*' graft/kernel/lock_file_fuzz.cpp
fuzz redirect tests/data/fuzz/redirect '*' graft/hub/redirect_fuzz.cpp
fuzz policy tests/data/fuzz/policy '*' graft/trust/policy_fuzz.cpp
fuzz bundle tests/data '*.sigstore' graft/trust/sigstore/bundle_fuzz.cpp
mkdir -p "$folder/elf.seeds"
echo 'int answer(void) { return 42; }' | cc -shared -fPIC -nostdlib -x c - -o "$folder/elf.seeds/answer.so"
fuzz elf "$folder/elf.seeds" '*.so' graft/kernel/elf_check_fuzz.cpp
if [ -n "$pack" ]; then
  : # config needs libtorch, which is too large to take along
elif [ -e build/lib/libgraft.so ] && [ -d "$torch" ]; then
  fuzz config tests/data/models config.json graft/models/decoder_config_fuzz.cpp graft/models/decoder_config.cpp \
    graft/models/config_reader.cpp -isystem build/fmt_headers -isystem "$torch/include" \
    -isystem "$torch/include/torch/csrc/api/include" \
    -Lbuild/lib -lgraft -lgraft_base -L"$torch/lib" -ltorch_cpu -lc10 -Wl,-rpath,"$PWD/build/lib:$PWD/$torch/lib"
else
  echo "fuzz: config is left out: it needs the built library and .venv"
fi
while [ "$(jobs -rp | wc -l)" -gt 0 ]; do wait -n; done
for name in "${targets[@]}"; do [ -x "$folder/$name" ] || { echo "fuzz: $name was not built" >&2; exit 1; }; done
echo "fuzz: ${#targets[@]} targets, built in $SECONDS s"
if [ -n "$pack" ]; then exec tools/fuzz_pack.sh "$folder" "$pack" "${targets[@]}"; fi

if [ -n "${LIMIT:-}" ]; then
  left=$(((LIMIT - SECONDS) * jobs / ${#targets[@]} - 2))
  if [ "$left" -lt "$seconds" ]; then
    seconds=$((left < 5 ? 5 : left))
    echo "fuzz: $seconds s a target: more does not fit into $LIMIT s"
  fi
fi
if [ -w /dev/shm ]; then export TMPDIR=/dev/shm; fi  # some targets write a file for every input
ended=0
printf '%s\n' "${targets[@]}" | xargs -P "$jobs" -I{} sh -c '
  "$folder/$1" -max_total_time="$seconds" -rss_limit_mb=2500 -max_len=200000 -timeout=25 -artifact_prefix="$folder/$1-" \
    "$folder/$1.corpus" >"$folder/$1.log" 2>&1 && ended=clean || ended=BROKEN
  echo "$1: $ended, $(grep -a "^Done\|DONE" "$folder/$1.log" | tail -1)"
  [ "$ended" = clean ] || { grep -a "ERROR\|SUMMARY\|runtime error\|Test unit written" "$folder/$1.log"; exit 1; }' _ {} || ended=1
echo "fuzz: ${#targets[@]} targets, $SECONDS s in all$([ $ended -eq 0 ] || echo ', BROKEN ones among them')"
exit $ended
