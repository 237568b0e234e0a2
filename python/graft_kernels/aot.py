#!/usr/bin/env python3
"""Compiles one layer of a Python-only kernel (Triton, plain torch) ahead of time into a package that graft loads
without Python: `torch.export`, then AOTInductor. `graft kernels aot` runs this file; it needs torch, a C++ compiler
and, for Triton kernels, Triton; nothing of graft.

    aot.py --package VARIANT_FOLDER --layer RMSNorm --out FOLDER [--device cuda --dtype bfloat16 --columns 2048 …]

The result is FOLDER/build/<variant>/ with a library for every dtype, eps and width of rows, `aot.json` (which library
serves what), `layers.json`, `metadata.json` with a digest, and the kernel's own Python files, so that Python's
`kernels` takes the package too. Libraries hold machine code of this torch and, for CUDA, of this GPU's compute
capability.
"""

import argparse
import base64
import hashlib
import importlib.util
import json
import os
import pathlib
import platform
import re
import shutil
import sys
import tempfile
import time
import zipfile

import torch

NORM_VARIANTS = ("cast_before_weight", "cast_after_weight", "float_weight", "zero_centered")
ACTIVATIONS = ("SiLU", "GeLU", "GeluTanh", "NewGELU", "FastGELU", "QuickGELU")
DTYPES = ("float32", "bfloat16", "float16")
# Of the compiled layer against the layer itself: a few units in the last place, since sums are taken in another order.
TOLERANCES = {"float32": 2**-18, "bfloat16": 2**-6, "float16": 2**-9}
SAMPLE_ROWS, SAMPLE_COLUMNS = 6, 48
MOST_LIBRARIES = 64  # as graft/kernel/compiled_layer.cpp


class AotError(Exception):
    """`[where] what: expected …, got …`, a reason for its code, and a hint."""

    def __init__(self, reason, text, hint=""):
        super().__init__(text)
        self.reason, self.hint = reason, hint


def parse_arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--package", type=pathlib.Path, required=True, help="variant folder of the Python-only kernel")
    parser.add_argument("--layer", required=True, help="class in its layers module")
    parser.add_argument("--contract", default="", help="what it stands for: RMSNorm or an activation (default: LAYER)")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="folder of the new package")
    parser.add_argument("--source", default="", help="where the kernel came from, for metadata.json")
    parser.add_argument("--torch", default="", help="the only torch whose libraries are of use")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", nargs="+", default=["float32"], choices=DTYPES)
    parser.add_argument("--columns", type=int, nargs="*", default=[],
                        help="widths of rows (hidden sizes) to serve, one library each; none: one for any width")
    parser.add_argument("--eps", type=float, nargs="+", default=[1e-5], help="of a norm, as the model's config has it")
    parser.add_argument("--variant", default=NORM_VARIANTS[0], choices=NORM_VARIANTS, help="how a norm rounds")
    return parser.parse_args(argv)


def load_layer(folder, layer):
    """Imports a variant folder as `kernels` does and returns the layer's class."""
    if not (folder / "__init__.py").is_file():
        raise AotError("package", f"expected `{folder}/__init__.py`, got nothing there")
    name = "_graft_aot_" + hashlib.sha256(str(folder).encode()).hexdigest()[:12]
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py",
                                                  submodule_search_locations=[str(folder)])
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise AotError("package", f"expected a package that can be imported, got {type(error).__name__}: {error}",
                       "its python-depends may be missing in this Python") from error
    layers = getattr(module, "layers", None)
    found = getattr(layers, layer, None)
    if not (isinstance(found, type) and issubclass(found, torch.nn.Module)):
        known = [key for key, value in vars(layers).items() if isinstance(value, type)] if layers else []
        raise AotError("layer", f"expected `{layer}` in the package's layers, got {', '.join(known) or 'none'}")
    return found


class Norm(torch.nn.Module):
    """A layer as `kernels` puts it to use: its forward on a module that has weight and eps."""

    def __init__(self, layer, eps):
        super().__init__()
        self.inner = layer.__new__(layer)
        torch.nn.Module.__init__(self.inner)
        self.inner.variance_epsilon = self.inner.eps = eps
        self.inner.weight = None

    def forward(self, x, weight):
        self.inner.weight = weight
        return self.inner(x)


class Elementwise(torch.nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.inner = layer.__new__(layer)
        torch.nn.Module.__init__(self.inner)

    def forward(self, x):
        return self.inner(x)


def export(module, arguments, any_width):
    """Exports for any number of rows of the first argument and, where asked, for any width of all."""
    rows = torch.export.Dim("rows", min=1, max=2**30)
    width = torch.export.Dim("columns", min=2, max=2**24)
    shapes = []
    for index, argument in enumerate(arguments):
        dims = {0: rows} if index == 0 else {}
        if any_width and len(arguments) > 1:
            dims[argument.dim() - 1] = width
        shapes.append(dims)
    with torch.no_grad():
        return torch.export.export(module, tuple(arguments), dynamic_shapes=tuple(shapes), strict=True)


def processor():
    """The oldest processor that the libraries run on: code for this very one would crash on another."""
    flags = pathlib.Path("/proc/cpuinfo").read_text().split()
    return "x86-64-v3" if {"avx2", "fma", "bmi2"} <= set(flags) else "x86-64"


def use_compiler(folder):
    """Puts a compiler in front of the real one that makes libraries as graft loads them: for `processor()`, without an
    executable stack, which AOTInductor's constants ask for by accident, and with every symbol but the entry points
    their own. Templates of the C++ library that libtorch exports too would else be taken from there, whatever compiler
    made it: a std::regex of GCC 13 crashes on one of GCC 11."""
    real = shutil.which(os.environ.get("CXX", "g++"))
    if real is None:
        raise AotError("compiler", "expected a C++ compiler, got none", "install g++, or name one with CXX")
    exports = folder / "exports.map"
    exports.write_text("{ global: AOTInductor*; local: *; };\n")
    wrapper = folder / pathlib.Path(real).name
    wrapper.write_text(f"""#!/bin/sh
for word; do shift; [ "$word" = -march=native ] && word=-march={processor()}; set -- "$@" "$word"; done
for word; do [ "$word" = -c ] && exec "{real}" "$@"; done
exec "{real}" "$@" -Wl,--version-script="{exports}" -Wl,-z,noexecstack
""")
    wrapper.chmod(0o755)
    torch._inductor.config.cpp.cxx = (None, str(wrapper))
    torch._inductor.config.cpp.simdlen = 256 if processor() == "x86-64-v3" else 1
    torch._inductor.config.aot_inductor.embed_kernel_binary = True  # GPU code inside the library, no files beside it
    torch._inductor.config.aot_inductor.precompile_headers = False


def take_library(archive, path):
    """The one library of an AOTInductor package. Anything else that has to be there to run it would be a surprise."""
    with zipfile.ZipFile(archive) as files:
        names = [name for name in files.namelist() if not name.endswith((".cpp", "_metadata.json"))]
        libraries = [name for name in names if name.endswith(".so")]
        needed = [name for name in names if name.endswith((".cubin", ".hsaco", ".spv", ".json", ".bin", ".o"))]
        if len(libraries) != 1 or needed:
            raise AotError("archive", f"expected one library that stands alone, got {', '.join(libraries + needed)}",
                           "layers that call ops of Python's own cannot be compiled")
        path.write_bytes(files.read(libraries[0]))


def run_samples(module, samples):
    with torch.no_grad():
        return [module(*arguments) for arguments in samples]


def check_archive(archive, samples, answers, dtype):
    """Holds the compiled layer against what the layer itself computed."""
    compiled = torch._inductor.aoti_load_package(str(archive))
    for arguments, own, expected in zip(samples, run_samples(compiled, samples), answers):
        tolerance = TOLERANCES[dtype]
        is_close = torch.allclose(own.float(), expected.float(), rtol=tolerance, atol=tolerance)
        if own.dtype != expected.dtype or not is_close:
            raise AotError("answer", f"expected the layer's own results on {list(arguments[0].shape)}, got others")


class Builder:
    """Compiles libraries into a temporary folder that becomes the variant when all is there."""

    def __init__(self, options, layer, folder, identifier):
        self.options, self.layer, self.folder, self.id = options, layer, folder, identifier
        self.libraries = []

    def add(self, module, make_arguments, dtype, columns, eps=""):
        start, width = time.monotonic(), columns or SAMPLE_COLUMNS
        what = f"{dtype}, " + (f"{columns} columns" if columns else "any width") + (f", eps {eps}" if eps else "")
        samples = [make_arguments(rows, width) for rows in (1, 2, 37)]
        hint = "a kernel made for one width wants the model's: --columns 2048" if columns == 0 else ""
        try:
            answers = run_samples(module, samples)
        except Exception as error:
            raise AotError("run", f"{what}: expected a layer that runs on rows of {width} elements, got "
                           f"{first_line(error)}", hint) from error
        try:
            exported = export(module, make_arguments(SAMPLE_ROWS, width), any_width=columns == 0)
        except Exception as error:  # says in a hundred ways that a kernel is made for one width, or is not traceable
            raise AotError("export", f"{what}: expected a layer that torch.export takes, got {first_line(error)}",
                           hint) from error
        archive = self.folder / "archive.pt2"
        try:
            torch._inductor.aoti_compile_and_package(exported, package_path=str(archive))
        except Exception as error:
            raise AotError("inductor",
                           f"{what}: expected a layer that AOTInductor takes, got {first_line(error)}") from error
        check_archive(archive, samples, answers, dtype)
        path = self.folder / f"{self.id}_{len(self.libraries)}.so"
        take_library(archive, path)
        archive.unlink()
        self.libraries.append({"file": path.name, "dtype": dtype, "columns": columns, "eps": eps})
        print(f"[kernel.aot] {what}: {path.stat().st_size} bytes in {time.monotonic() - start:.1f} s", file=sys.stderr)

    def add_norms(self):
        for dtype in self.options.dtype:
            def make(rows, width):
                return random(self.options.device, dtype, rows, width), random(self.options.device, dtype, width)
            for eps in self.options.eps:
                module = Norm(self.layer, eps).to(self.options.device)
                for columns in self.options.columns or [0]:
                    self.add(module, make, dtype, columns, repr(eps))

    def add_activations(self):
        module = Elementwise(self.layer).to(self.options.device)
        for dtype in self.options.dtype:
            self.add(module, lambda rows, width: (random(self.options.device, dtype, rows * width),), dtype, 0)


def random(device, dtype, *sizes):
    return torch.randn(*sizes, device=device).to(getattr(torch, dtype))


def first_line(error):
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)[:300]}"


def backend(device):
    if device != "cuda":
        return {"type": "cpu"}
    major, minor = torch.cuda.get_device_capability()
    return {"type": "cuda", "archs": [f"{major}.{minor}" + ("a" if major >= 9 else "")]}


def variant_name(device):
    version = torch.__version__.split("+")[0].split(".")
    built_for = "cu" + torch.version.cuda.replace(".", "") if device == "cuda" else "cpu"
    return f"torch{version[0]}{version[1]}-cxx11-{built_for}-{platform.machine()}-linux"


def layers_json(options, contract):
    arguments = ("out", "x", "weight", "eps") if contract == "RMSNorm" else ("out", "x")
    layer = {"contract": "RMSNorm" if contract == "RMSNorm" else "Activation", "has_backward": False,
             "can_torch_compile": True, "devices": [options.device], "dtypes": options.dtype,
             "ops": {"forward": {"op": "forward_out", "arguments": {name: name for name in arguments}}}}
    if contract == "RMSNorm":
        layer.update(variants={options.variant: 0}, eps=options.eps)
        if options.columns:
            layer["rows"] = options.columns
    # Under the layer's own name, as in Python, and under the one that says what it computes.
    return {"schema": 1, "layers": {name: layer for name in (options.layer, contract)}}


def digest_of(folder):
    return {"algorithm": "sha256", "files": {
        path.relative_to(folder).as_posix(): base64.b64encode(hashlib.sha256(path.read_bytes()).digest()).decode()
        for path in sorted(folder.rglob("*")) if path.is_file()}}


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n")


def read_source_metadata(package):
    try:
        return json.loads((package / "metadata.json").read_text())
    except FileNotFoundError:
        return {}


def make_identifier(options, name):
    sources = [path.read_text(errors="replace") for path in sorted(options.package.rglob("*.py"))]
    made_of = json.dumps([sources, options.layer, options.contract, options.device, options.dtype, options.columns,
                          options.eps, options.variant, torch.__version__])
    return f"_{name.replace('-', '_')}_{options.device}_{hashlib.sha256(made_of.encode()).hexdigest()[:7]}"


def check_options(options):
    contract, torch_version = options.contract or options.layer, torch.__version__.split("+")[0]
    if options.torch not in ("", torch_version):
        raise AotError("torch",
                       f"expected a Python with torch {options.torch}, as graft has, got one with {torch_version}",
                       "name another with --python or GRAFT_PYTHON")
    if contract != "RMSNorm" and contract not in ACTIVATIONS:
        raise AotError("contract", f"expected RMSNorm or one of {', '.join(ACTIVATIONS)}, got {contract}",
                       "say with --contract what the layer stands for")
    for name in ("dtype", "columns", "eps"):
        setattr(options, name, list(dict.fromkeys(getattr(options, name))))
    if any(width < 2 for width in options.columns) or any(not 0 < eps < 1 for eps in options.eps):
        raise AotError("options", "expected widths of two or more and an eps between 0 and 1, got others")
    count = len(options.dtype) * max(1, len(options.columns)) * (len(options.eps) if contract == "RMSNorm" else 1)
    if count > MOST_LIBRARIES:
        raise AotError("options", f"expected at most {MOST_LIBRARIES} libraries, got {count} combinations")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise AotError("device", f"expected a CUDA device, got none that torch {torch.__version__} sees")
    return contract


def build(options, contract, work):
    name = re.sub(r"[^a-z0-9]+", "-", options.out.resolve().name.lower()).strip("-")
    name = name if len(name) > 1 and name[0].isalpha() else f"aot-{name}".strip("-")
    torch.manual_seed(0)
    layer = load_layer(options.package, options.layer)
    folder = work / "variant"
    def unwanted(at, names):
        return [found for found in names
                if found == "__pycache__" or not (found.endswith(".py") or pathlib.Path(at, found).is_dir())]
    shutil.copytree(options.package, folder, ignore=unwanted)
    identifier = make_identifier(options, name)
    builder = Builder(options, layer, folder, identifier)
    builder.add_norms() if contract == "RMSNorm" else builder.add_activations()
    write_json(folder / "aot.json", {
        "schema": 1, "contract": "RMSNorm" if contract == "RMSNorm" else "Activation", "device": options.device,
        "torch": torch.__version__.split("+")[0], "processor": processor(), "libraries": builder.libraries})
    write_json(folder / "layers.json", layers_json(options, contract))
    source = read_source_metadata(options.package)
    write_json(folder / "metadata.json", {
        "name": name, "id": identifier, "version": 1, "license": source.get("license", "unknown"),
        "python-depends": source.get("python-depends", []), "backend": backend(options.device),
        **({"upstream": options.source} if options.source else {}), "digest": digest_of(folder)})
    return folder, builder.libraries


def main(argv=None):
    options = parse_arguments(argv)
    try:
        contract = check_options(options)
        (options.out / "build").mkdir(parents=True, exist_ok=True)
        final = options.out / "build" / variant_name(options.device)
        with tempfile.TemporaryDirectory(dir=options.out / "build", prefix=".aot-") as made:
            work = pathlib.Path(made)
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(work / "cache")
            os.environ.setdefault("TRITON_CACHE_DIR", str(work / "triton"))
            use_compiler(work)
            folder, libraries = build(options, contract, work)
            if final.exists():
                shutil.rmtree(final)
            folder.rename(final)
    except AotError as error:
        print(json.dumps({"error": {"reason": error.reason, "message": str(error), "hint": error.hint}}))
        return 1
    print(json.dumps({"folder": str(final), "contract": contract, "libraries": libraries}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
