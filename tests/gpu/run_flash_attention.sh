#!/usr/bin/env bash
# A real FA3 build by name, on a machine with an NVIDIA Hopper GPU: the library of the wheel fa3-fwd, made into a
# kernel package, loaded by graft without Python and held against PyTorch.
#   tests/gpu/run_flash_attention.sh BUILD FA3_FWD.whl [OUT]
# BUILD holds bin/graft_nn_test, lib/ and share/ of a build; OUT gets the log.
set -euo pipefail
build=$(realpath "$1") wheel=$(realpath "$2") out=${3:-/tmp}
torch=$(python3 -c 'import torch, os; print(os.path.dirname(torch.__file__))')
export LD_LIBRARY_PATH=$build/lib:$torch/lib:$(echo "$torch"/../nvidia/*/lib | tr ' ' ':')

package=$(mktemp -d)/fa3
variant=$package/build/torch-stable-abi29-cu130-x86_64-linux
mkdir -p "$variant"
python3 - "$wheel" "$variant" <<'PYTHON'
import base64, hashlib, json, pathlib, sys, zipfile
wheel, variant = sys.argv[1], pathlib.Path(sys.argv[2])
library = zipfile.ZipFile(wheel).read("fa3_fwd/_C.abi3.so")
(variant / "fa3_fwd.abi3.so").write_bytes(library)
digest = base64.b64encode(hashlib.sha256(library).digest()).decode()
(variant / "metadata.json").write_text(json.dumps({
    "name": "flash-attn3", "id": "fa3_fwd", "version": 1, "license": "BSD-3-Clause", "python-depends": [],
    "backend": {"type": "cuda", "archs": ["8.0", "9.0a"]},
    "digest": {"algorithm": "sha256", "files": {"fa3_fwd.abi3.so": digest}}}))
PYTHON
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
GRAFT_EMBEDDED_HUB=$build/share/graft/hub GRAFT_TEST_FA3=$package \
  "$build/bin/graft_nn_test" --gtest_filter='*FlashAttentionOnCuda*' 2>&1 | tee "$out/flash_attention.log"
