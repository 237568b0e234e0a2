#!/usr/bin/env python3
"""The mlp package through the unmodified Python client: transformers' own modules, op schemas, compilation.

    GRAFT_BUILD=<build folder> python tests/python/test_mlp_package.py
"""

import os
import pathlib
import unittest

import torch
from kernels import get_local_kernel
from transformers import GemmaConfig, LlamaConfig
from transformers.models.gemma.modeling_gemma import GemmaMLP
from transformers.models.llama.modeling_llama import LlamaMLP

PACKAGE = pathlib.Path(os.environ["GRAFT_BUILD"]) / "share/graft/hub/graft-kernels/mlp"
KERNEL = get_local_kernel(PACKAGE, backend="cpu")
SIZES = {"hidden_size": 96, "intermediate_size": 200}
MODULES = (
    (LlamaMLP(LlamaConfig(mlp_bias=True, **SIZES)), KERNEL.layers.SwiGLUMLP),
    (GemmaMLP(GemmaConfig(hidden_activation="gelu_pytorch_tanh", **SIZES)), KERNEL.layers.GeGLUMLP),
)


class Layers(unittest.TestCase):
    def test_they_are_transformers_own_modules(self):
        torch.manual_seed(0)
        with torch.no_grad():
            for module, layer in MODULES:
                for shape in ((1, 1, 96), (2, 5, 96), (3, 40, 96)):
                    x = torch.randn(shape)
                    torch.testing.assert_close(layer.forward(module, x), module(x), rtol=1e-4, atol=1e-5)

    def test_no_graph_break_under_compilation(self):
        with torch.no_grad():
            for module, layer in MODULES:
                x = torch.randn(2, 96)
                compiled = torch.compile(lambda v: layer.forward(module, v), fullgraph=True, backend="aot_eager")
                torch.testing.assert_close(compiled(x), module(x), rtol=1e-4, atol=1e-5)


class Function(unittest.TestCase):
    def test_activations_by_name(self):
        torch.manual_seed(0)
        x, gate, up, down = torch.randn(3, 8), torch.randn(6, 8), torch.randn(6, 8), torch.randn(8, 6)
        for act, function in (("silu", torch.nn.functional.silu), ("gelu", torch.nn.functional.gelu)):
            torch.testing.assert_close(KERNEL.mlp(x, gate, up, down, act), (function(x @ gate.T) * (x @ up.T)) @ down.T)
        with self.assertRaisesRegex(ValueError, "act: expected one of silu, gelu, gelu_tanh, got relu"):
            KERNEL.mlp(x, gate, up, down, "relu")


class Schemas(unittest.TestCase):
    def test_every_op(self):
        torch.manual_seed(0)
        x, bias = torch.randn(3, 8), torch.randn(6)
        weights = (torch.randn(6, 8), torch.randn(6, 8), torch.randn(8, 6))
        for biases in ((None, None, None), (bias, bias, torch.randn(8))):
            for name, made in (("mlp", ()), ("mlp_out", (torch.empty_like(x),))):
                op = getattr(KERNEL.ops, name)
                torch.library.opcheck(getattr(op, "default", op), (*made, x, *weights, 0, *biases),
                                      test_utils=("test_schema", "test_faketensor", "test_autograd_registration"))


if __name__ == "__main__":
    unittest.main()
