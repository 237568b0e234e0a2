"""The embedded hub: where it lies, which variant of a package this process can load, and loading it."""

import base64
import functools
import hashlib
import importlib.util
import json
import os
import pathlib
import sys
from types import ModuleType

import torch

from .errors import GraftError

ORGANISATION = "graft-kernels"
_HERE = pathlib.Path(__file__).resolve().parent


def hub_dir() -> pathlib.Path:
    """Returns the root of the embedded hub.

    Looked at in this order: the variable GRAFT_HUB_DIR (or GRAFT_EMBEDDED_HUB, as the
    C++ library names it), the installed package, the build folder of a checkout.
    Throws GraftError where none of them holds packages."""
    named = os.environ.get("GRAFT_HUB_DIR") or os.environ.get("GRAFT_EMBEDDED_HUB")
    candidates = [pathlib.Path(named)] if named else [
        _HERE / "share/graft/hub", _HERE.parents[1] / "build/share/graft/hub"]
    for root in candidates:
        if (root / ORGANISATION).is_dir():
            return root
    raise GraftError("python.hub", "embedded hub: expected a folder with graft-kernels/, got none of "
                     + ", ".join(map(str, candidates)),
                     "build the packages (make build), install the wheel, or name the folder in GRAFT_HUB_DIR")


def package_dir(package: str) -> pathlib.Path:
    """Returns the folder of a package, e.g. rms-norm, which `kernels` loads with get_local_kernel."""
    folder = hub_dir() / ORGANISATION / package
    if not (folder / "build").is_dir():
        raise GraftError("python.hub", f"package {package}: expected {folder}/build, got nothing there")
    return folder


def variant_dir(package: str, device: str) -> pathlib.Path:
    """Returns the build variant that serves `device` (cpu or cuda) in this process.

    The CPU is served by the CPU variant; where there is none, by the CUDA variant, which carries both."""
    if _release() < (2, 11):
        raise GraftError("python.hub", f"torch: expected 2.11 or later, got {torch.__version__}",
                         "the packages are built against PyTorch's stable ABI of 2.11")
    build = package_dir(package) / "build"
    cuda = sorted(build.glob("torch-stable-abi*-cu*"))
    major = (torch.version.cuda or "").split(".")[0]
    fitting = [path for path in cuda if major and f"-cu{major}" in path.name]
    choices = fitting if device == "cuda" else sorted(build.glob("torch-stable-abi*-cpu-*")) + fitting
    if not choices:
        found = ", ".join(sorted(path.name for path in build.iterdir())) or "none"
        raise GraftError("python.hub", f"package {package}: expected a variant for {device} and CUDA "
                         f"{torch.version.cuda}, got {found}")
    return choices[0]


def _release() -> tuple:
    return tuple(int("".join(filter(str.isdigit, part)) or 0) for part in torch.__version__.split(".")[:2])


def verify(folder: pathlib.Path) -> dict:
    """Compares every file of a variant with metadata.json's digests and returns the metadata."""
    metadata = json.loads((folder / "metadata.json").read_text())
    for name, expected in metadata["digest"]["files"].items():
        actual = base64.b64encode(hashlib.sha256((folder / name).read_bytes()).digest()).decode()
        if actual != expected:
            raise GraftError("python.hub", f"{folder / name}: expected SHA-256 {expected}, got {actual}",
                             "the file changed after it was built: build or install anew")
    return metadata


@functools.lru_cache(maxsize=None)
def load(folder: pathlib.Path) -> ModuleType:
    """Verifies and imports a variant; without the library `kernels`. Loaded once for a process."""
    name = "graft_kernels._loaded." + verify(folder)["id"]
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py",
                                                  submodule_search_locations=[str(folder)])
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def layer_class(package: str, layer: str, device: str) -> type:
    """Returns a package's layer class for `device`."""
    return getattr(load(variant_dir(package, device)).layers, layer)
