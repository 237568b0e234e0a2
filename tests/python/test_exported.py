#!/usr/bin/env python3
"""A model that is exported with our ops inside and compiled ahead of time runs from C++ with the same bits.

    GRAFT_BUILD=<build folder> python tests/python/test_exported.py
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

BUILD = pathlib.Path(os.environ["GRAFT_BUILD"]).resolve()
PROGRAM = BUILD / "bin/example_run_exported"
os.environ.setdefault("GRAFT_HUB_DIR", str(BUILD / "share/graft/hub"))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "python"))

import torch

import graft_kernels
from graft_kernels import hub

# A compiled model asks the loader for libtorch.so by its name alone.
ENVIRONMENT = {**os.environ, "LD_LIBRARY_PATH": str(pathlib.Path(torch.__file__).parent / "lib")}


class Block(torch.nn.Module):
    """A norm and an activation as transformers has them."""

    class LlamaRMSNorm(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(64))
            self.variance_epsilon = 1e-5

        def forward(self, hidden_states):
            wide = hidden_states.float()
            wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
            return self.weight * wide.to(hidden_states.dtype)

    def __init__(self):
        super().__init__()
        self.norm, self.act = self.LlamaRMSNorm(), torch.nn.SiLU()

    def forward(self, x):
        return self.act(self.norm(x))


def values(rows):
    return torch.arange(rows * 64, dtype=torch.float32).mul(0.01).reshape(rows, 64)


@unittest.skipUnless(PROGRAM.is_file(), f"{PROGRAM} is not built")
class Exported(unittest.TestCase):
    def test_runs_from_cpp_for_any_number_of_rows(self):
        torch.manual_seed(3)
        model = Block().eval()
        plain = {rows: model(values(rows)) for rows in (1, 7)}
        graft_kernels.kernelize(model, "inference|torch_compile")
        self.assertEqual(graft_kernels.report(model).swapped, 2)
        libraries = [next(hub.variant_dir(package, "cpu").glob("*.so")) for package in ("rms-norm", "activation")]
        rows = torch.export.Dim("rows", min=1, max=4096)
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            exported = torch.export.export(model, (values(3),), dynamic_shapes=({0: rows},))
            self.assertIn(".rms_norm.default", str(exported.graph))
            package = torch._inductor.aoti_compile_and_package(exported, package_path=f"{folder}/model.pt2")
            for count, reference in plain.items():
                output = pathlib.Path(folder) / "output.bin"
                command = [PROGRAM, package, str(count), "64", output, *libraries]
                subprocess.run(command, check=True, timeout=60, env=ENVIRONMENT)
                own = torch.frombuffer(bytearray(output.read_bytes()), dtype=torch.float32).reshape(count, 64)
                self.assertTrue(torch.equal(own, model(values(count))))
                torch.testing.assert_close(own, reference)


if __name__ == "__main__":
    unittest.main()
