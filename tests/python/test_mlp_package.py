#!/usr/bin/env python3
"""The mlp package through the unmodified Python client: transformers' own modules, op schemas, compilation.

    GRAFT_BUILD=<build folder> python tests/python/test_mlp_package.py
"""

import os
import pathlib
import sys
import unittest
import warnings

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
os.environ.setdefault("GRAFT_HUB_DIR", str(pathlib.Path(os.environ["GRAFT_BUILD"]).resolve() / "share/graft/hub"))
sys.path.insert(0, str(REPOSITORY / "python"))

import torch
from kernels import get_local_kernel
from transformers import GemmaConfig, LlamaConfig
from transformers.models.gemma.modeling_gemma import GemmaMLP
from transformers.models.llama.modeling_llama import LlamaMLP

import graft_kernels

PACKAGE = pathlib.Path(os.environ["GRAFT_BUILD"]) / "share/graft/hub/graft-kernels/mlp"
KERNEL = get_local_kernel(PACKAGE, backend="cpu")
SIZES = {"hidden_size": 96, "intermediate_size": 200}
MODULES = (
    (LlamaMLP(LlamaConfig(mlp_bias=True, **SIZES)), KERNEL.layers.SwiGLUMLP),
    (GemmaMLP(GemmaConfig(hidden_activation="gelu_pytorch_tanh", **SIZES)), KERNEL.layers.GeGLUMLP),
    (LlamaMLP(LlamaConfig(hidden_act="gelu", **SIZES)), KERNEL.layers.MLP),
    (LlamaMLP(LlamaConfig(mlp_bias=True, **SIZES)), KERNEL.layers.MLP),
    (GemmaMLP(GemmaConfig(hidden_activation="gelu_pytorch_tanh", **SIZES)), KERNEL.layers.MLP),
)


class Layers(unittest.TestCase):
    def test_they_are_transformers_own_modules(self):
        torch.manual_seed(0)
        with torch.no_grad():
            for module, layer in MODULES:
                for shape in ((1, 1, 96), (2, 5, 96), (3, 40, 96)):
                    x = torch.randn(shape)
                    torch.testing.assert_close(layer.forward(module, x), module(x), rtol=1e-4, atol=1e-5)

    def test_gradients_of_a_training_module(self):
        torch.manual_seed(0)
        for module, layer in MODULES:
            for rows in (3, 40):
                x, upstream = torch.randn(2, rows, 96), torch.randn(2, rows, 96)
                results = []
                for forward in (lambda v: layer.forward(module, v), module):
                    module.zero_grad()
                    own = x.clone().requires_grad_()
                    forward(own).backward(upstream)
                    results.append([own.grad, *(parameter.grad.clone() for parameter in module.parameters())])
                for own, expected in zip(*results):
                    torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5)

    def test_frozen_weights_get_no_gradient(self):
        module, layer = MODULES[0]
        module.requires_grad_(False)
        module.zero_grad()
        x = torch.randn(4, 96, requires_grad=True)
        layer.forward(module, x).sum().backward()
        own = x.grad.clone()
        x.grad = None
        module(x).sum().backward()
        torch.testing.assert_close(own, x.grad, rtol=1e-4, atol=1e-5)
        self.assertTrue(all(parameter.grad is None for parameter in module.parameters()))
        module.requires_grad_(True)

    def test_training_compiles_without_a_graph_break(self):
        for module, layer in MODULES:
            x = torch.randn(2, 96, requires_grad=True)
            compiled = torch.compile(lambda v: layer.forward(module, v).sum(), fullgraph=True, backend="aot_eager")
            compiled(x).backward()
            own = x.grad.clone()
            x.grad = None
            module(x).sum().backward()
            torch.testing.assert_close(own, x.grad, rtol=1e-4, atol=1e-5)

    def test_autocast_keeps_the_class(self):
        module, layer = MODULES[0]
        x = torch.randn(4, 96)
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            self.assertTrue(torch.equal(layer.forward(module, x), module(x)))

    def test_no_graph_break_under_compilation(self):
        with torch.no_grad():
            for module, layer in MODULES:
                x = torch.randn(2, 96)
                compiled = torch.compile(lambda v: layer.forward(module, v), fullgraph=True, backend="aot_eager")
                torch.testing.assert_close(compiled(x), module(x), rtol=1e-4, atol=1e-5)


class InModels(unittest.TestCase):
    """graft_kernels.kernelize finds the modules by what they compute."""

    def setUp(self):
        torch.manual_seed(0)

    def rows(self, module, mode="inference"):
        model = torch.nn.ModuleDict({"mlp": module})
        graft_kernels.kernelize(model, mode)
        return model, [row for row in graft_kernels.report(model).rows if row.slot.layer == "MLP"]

    def test_served_and_restored(self):
        for module, layer in ((LlamaMLP(LlamaConfig(**SIZES)), "SwiGLUMLP"),
                              (GemmaMLP(GemmaConfig(hidden_activation="gelu_pytorch_tanh", **SIZES)), "GeGLUMLP"),
                              (LlamaMLP(LlamaConfig(hidden_act="gelu", **SIZES)), "MLP")):
            x = torch.randn(4, 96)
            expected = module(x)
            model, (row,) = self.rows(module)
            self.assertEqual((row.refusal, row.slot.kernel), ("", layer))
            torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-5)
            self.assertIsNotNone(module(x).grad_fn)   # a gradient is there all the same
            graft_kernels.unkernelize(model)
            self.assertTrue(torch.equal(module(x), expected))

    def test_what_an_activation_was_made_with_decides(self):
        class Scaled(torch.nn.Module):
            def __init__(self, factor):
                super().__init__()
                self.factor = torch.nn.Parameter(torch.tensor(factor), requires_grad=False)

            def forward(self, x):
                return torch.nn.functional.silu(x) * self.factor

        for act_fn, layer in ((torch.nn.GELU(), "MLP"), (torch.nn.GELU(approximate="tanh"), "GeGLUMLP"),
                              (Scaled(1.0), "SwiGLUMLP"), (Scaled(2.0), None)):
            module, x = LlamaMLP(LlamaConfig(**SIZES)), torch.randn(4, 96)
            module.act_fn = act_fn
            expected = module(x)
            _, (row,) = self.rows(module)
            self.assertEqual(None if row.refusal else row.slot.kernel, layer)
            torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-5)

    def test_a_function_of_an_unknown_class_is_known_by_what_it_computes(self):
        class ErfGate(torch.nn.Module):
            def forward(self, x):
                return 0.5 * x * (1 + torch.erf(x * 0.5 ** 0.5))

        module, x = LlamaMLP(LlamaConfig(**SIZES)), torch.randn(4, 96)
        module.act_fn = ErfGate()
        expected = module(x)
        with torch.no_grad():  # of the class alone nothing is known: its own forward
            torch.testing.assert_close(KERNEL.layers.MLP.forward(module, x), expected)
        _, (row,) = self.rows(module)
        self.assertEqual((row.refusal, row.slot.kernel), ("", "MLP"))
        torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-5)

    def test_refusals_say_why(self):
        class TwiceMLP(LlamaMLP):
            def forward(self, x):
                return 2 * super().forward(x)

        hooked = LlamaMLP(LlamaConfig(**SIZES))
        hooked.up_proj.register_forward_hook(lambda *arguments: None)
        cases = ((TwiceMLP(LlamaConfig(**SIZES)), "computes none of the package's MLPs"),
                 (LlamaMLP(LlamaConfig(hidden_act="relu", **SIZES)), "computes none of the package's MLPs"),
                 (hooked, "hooks on its parts would not be called"),
                 (LlamaMLP(LlamaConfig(**SIZES)).bfloat16(), "16-bit products of many rows on the CPU are torch's own"))
        for module, reason in cases:
            self.assertEqual([row.refusal for row in self.rows(module)[1]], [reason])
        _, (row,) = self.rows(LlamaMLP(LlamaConfig(**SIZES)), "training")
        self.assertEqual(row.refusal, "in training on the CPU, separate products and their gradients are a tenth faster")


class Function(unittest.TestCase):
    def test_activations_by_name(self):
        torch.manual_seed(0)
        x, gate, up, down = torch.randn(3, 8), torch.randn(6, 8), torch.randn(6, 8), torch.randn(8, 6)
        for act, function in (("silu", torch.nn.functional.silu), ("gelu", torch.nn.functional.gelu)):
            torch.testing.assert_close(KERNEL.mlp(x, gate, up, down, act), (function(x @ gate.T) * (x @ up.T)) @ down.T)
        with self.assertRaisesRegex(ValueError, "act: expected one of silu, gelu, gelu_tanh, got relu"):
            KERNEL.mlp(x, gate, up, down, "relu")


    def test_gradients_match_differences(self):
        torch.manual_seed(0)
        warnings.simplefilter("ignore")   # gradcheck's advice of float64
        leaves = [torch.randn(*shape, requires_grad=True) for shape in
                  ((3, 5), (4, 5), (4, 5), (5, 4), (4,), (4,), (5,))]
        for act in ("silu", "gelu", "gelu_tanh"):
            for recompute in (False, True):
                # Ops compute in float32 at most: wide steps, and no more digits than those leave.
                self.assertTrue(torch.autograd.gradcheck(
                    lambda x, gate, up, down, *biases: KERNEL.mlp(x, gate, up, down, act, *biases, recompute=recompute),
                    leaves, eps=1e-2, atol=5e-3, rtol=2e-2, nondet_tol=0.0))

    def test_recomputing_keeps_less_and_gives_the_same(self):
        torch.manual_seed(0)
        results = []
        for recompute in (False, True):
            torch.manual_seed(0)
            leaves = [torch.randn(*shape, requires_grad=True) for shape in ((40, 8), (16, 8), (16, 8), (8, 16))]
            kept = []
            with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
                out = KERNEL.mlp(*leaves, "silu", recompute=recompute)
            out.square().sum().backward()
            results.append((sum(kept), [leaf.grad for leaf in leaves]))
        self.assertEqual(results[0][0] - results[1][0], 2 * 40 * 16)
        for one, other in zip(results[0][1], results[1][1]):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


if __name__ == "__main__":
    unittest.main()
