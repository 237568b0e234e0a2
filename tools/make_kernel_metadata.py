#!/usr/bin/env python3
"""Completes a kernel variant folder: copies the package's files, writes `_ops.py`, and describes it all in
`metadata.json` with a digest over every file. Runs at build time; nothing of it is needed at run time.

    make_kernel_metadata.py --variant-dir DIR --name rms-norm --id _rms_norm_cpu_1a2b3c4 --version 1
                            --backend cpu [--archs 8.0+PTX,9.0a] FILE…
"""

import argparse
import base64
import hashlib
import json
import pathlib
import shutil

OPS_TEMPLATE = '''import torch
from . import {id}
ops = torch.ops.{id}

def add_op_namespace_prefix(op_name: str):
    """
    Prefix op by namespace.
    """
    return f"{id}::{{op_name}}"
'''
NOT_HASHED = {"metadata.json", "metadata.json.sigstore"}


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variant-dir", type=pathlib.Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--id", required=True)
    parser.add_argument("--version", type=int, required=True)
    parser.add_argument("--backend", required=True)
    parser.add_argument("--archs", default="")
    parser.add_argument("files", nargs="*", type=pathlib.Path)
    return parser.parse_args()


def remove_stale(folder, keep):
    """An earlier build of other sources had another id: its files must not be hashed or loaded."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in keep:
            path.unlink()


def digest_of(folder):
    files = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if not path.is_file() or "__pycache__" in relative.parts or path.suffix == ".pyc":
            continue
        if str(relative) not in NOT_HASHED:
            files[relative.as_posix()] = base64.b64encode(hashlib.sha256(path.read_bytes()).digest()).decode()
    return {"algorithm": "sha256", "files": files}


def main():
    arguments = parse_arguments()
    folder = arguments.variant_dir
    remove_stale(folder, {f"{arguments.id}.abi3.so"})
    for path in arguments.files:
        shutil.copyfile(path, folder / path.name)
    (folder / "_ops.py").write_text(OPS_TEMPLATE.format(id=arguments.id))
    backend = {"type": arguments.backend}
    if arguments.archs:
        backend["archs"] = arguments.archs.split(",")
    metadata = {"name": arguments.name, "id": arguments.id, "version": arguments.version,
                "license": "apache-2.0", "python-depends": [], "backend": backend,
                "digest": digest_of(folder)}
    temporary = folder / "metadata.json.part"
    temporary.write_text(json.dumps(metadata, indent=2) + "\n")
    temporary.rename(folder / "metadata.json")


if __name__ == "__main__":
    main()
