#!/usr/bin/env bash
# What `tools/fuzz.sh pack FOLDER` calls: puts built fuzz targets into a folder that runs on another machine.
#   tools/fuzz_pack.sh BUILT FOLDER TARGET…
# There: `FOLDER/run_fuzz.sh SECONDS OUT` starts all targets in the background, `FOLDER/collect.sh OUT` says how they are.
set -euo pipefail
built=$1 pack=$2; shift 2
mkdir -p "$pack"/{bin,lib,seeds}
rm -rf "${pack:?}"/{bin,lib,seeds}/*
for target in "$@"; do
  strip -o "$pack/bin/$target" "$built/$target"
  mkdir "$pack/seeds/$target"
  # Seeds alone, not what earlier runs found: each under a name of its own.
  find "$built/$target.corpus" -mindepth 2 -type f | while read -r seed; do
    cp "$seed" "$pack/seeds/$target/$(sha1sum "$seed" | cut -c1-40)"
  done
done
# Libraries that are neither in the programs nor in every C library.
for target in "$@"; do ldd "$pack/bin/$target" | awk '$3 ~ /^\// {print $3}'; done | sort -u |
  grep -v '/\(libc\|libm\|libdl\|librt\|libpthread\|libresolv\)\.so' | xargs -r cp -L -t "$pack/lib" || true
tar -C "$pack" -czf "$pack/programs.tar.gz" bin lib && rm -r "$pack/bin" "$pack/lib"
mkdir -p "$pack/tests/data/trust" "$pack/tests/data/models/llama_sharded"  # what two targets read
cp tests/data/trust/cases.json "$pack/tests/data/trust/"
cp tests/data/models/llama_sharded/model-* "$pack/tests/data/models/llama_sharded/"

cat >"$pack/run_fuzz.sh" <<'END'
#!/usr/bin/env bash
# run_fuzz.sh SECONDS OUT [TARGET…]: starts every target in the background, at low priority; OUT gets logs, corpora and inputs that break one.
set -euo pipefail
seconds=$1; mkdir -p "$2"; out=$(realpath "$2"); shift 2
cd "$(dirname "$0")"
[ -d bin ] || tar -xzf programs.tar.gz
export LD_LIBRARY_PATH="$PWD/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
if [ -w /dev/shm ]; then export TMPDIR=/dev/shm; fi
if [ $# -eq 0 ]; then mapfile -t targets < <(ls bin); else targets=("$@"); fi
for target in "${targets[@]}"; do
  mkdir -p "$out/$target.corpus"
  setsid nice -n 19 "bin/$target" -max_total_time="$seconds" -rss_limit_mb=2500 -max_len=200000 -timeout=25 \
    -print_final_stats=1 -artifact_prefix="$out/$target-" "$out/$target.corpus" "seeds/$target" >"$out/$target.log" 2>&1 </dev/null &
done
echo "started ${#targets[@]} targets for $seconds s; logs in $out"
END
cat >"$pack/collect.sh" <<'END'
#!/usr/bin/env bash
# collect.sh OUT: one line for each target: executions, coverage, running, clean or BROKEN.
cd "${1:?collect.sh OUT}" || exit 2
status=0
for log in *.log; do
  target=${log%.log}
  runs=$(grep -a '^#[0-9]' "$log" | tail -1 | grep -ao '^#[0-9]*' | tr -d '#')
  covered=$(grep -ao 'cov: [0-9]*' "$log" | tail -1)
  if grep -aq 'ERROR\|SUMMARY\|runtime error\|Test unit written\|loading shared libraries' "$log"; then
    state="BROKEN: $(grep -a 'ERROR\|SUMMARY\|runtime error\|Test unit written\|loading shared' "$log" | head -2 | tr '\n' ' ')"
    status=1
  elif done_line=$(grep -a '^Done ' "$log"); then
    state="clean, $done_line"
  else
    state=running
  fi
  echo "$target: ${runs:-0} executions, ${covered:-cov: 0}, $state"
done
exit $status
END
chmod +x "$pack/run_fuzz.sh" "$pack/collect.sh"
du -sh "$pack" | cut -f1 | sed "s|^|packed into $pack: |"
