"""The command `graft`: the C++ program that the wheel carries."""

import os
import pathlib
import sys

import torch

from .errors import GraftError


def main() -> None:
    """Becomes the program; libtorch is the one of this Python's torch."""
    here = pathlib.Path(__file__).resolve().parent
    program = here / "bin/graft"
    if not program.is_file():
        raise GraftError("python.graft", f"program: expected {program}, got nothing there",
                         "only an installed wheel carries it; in a checkout it is build/bin/graft")
    torch_lib = pathlib.Path(torch.__file__).parent / "lib"
    nvidia = sorted((torch_lib.parents[1] / "nvidia").glob("*/lib"))
    paths = [str(here / "lib"), str(torch_lib), *map(str, nvidia), os.environ.get("LD_LIBRARY_PATH", "")]
    os.environ["LD_LIBRARY_PATH"] = ":".join(filter(None, paths))
    os.execv(program, ["graft", *sys.argv[1:]])
