#!/usr/bin/env python3
"""Gated RMSNorm and LayerNorm of the rms-norm package: beside transformers' own classes, gradients, op schemas,
compilation.

    GRAFT_BUILD=<build folder> python tests/python/test_norm_package.py
"""

import copy
import os
import pathlib
import sys
import unittest
import warnings

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
os.environ.setdefault("GRAFT_HUB_DIR", str(pathlib.Path(os.environ["GRAFT_BUILD"]).resolve() / "share/graft/hub"))
os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(REPOSITORY / "python"))

import torch
from kernels import LocalLayerRepository, Mode, get_local_kernel, use_kernel_mapping
from kernels import kernelize as kernelize_with_kernels
from torch.nn import functional
from transformers.models.bamba.modeling_bamba import BambaRMSNormGated
from transformers.models.falcon_h1.modeling_falcon_h1 import FalconH1RMSNormGated
from transformers.models.mamba2.modeling_mamba2 import MambaRMSNormGated
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHRMSNormGated
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextRMSNormGated
from transformers.models.zamba2.modeling_zamba2 import Zamba2RMSNormGated

import graft_kernels

PACKAGE = pathlib.Path(os.environ["GRAFT_BUILD"]) / "share/graft/hub/graft-kernels/rms-norm"
KERNEL = get_local_kernel(PACKAGE, backend="cpu")


def gated_norms():
    """(what, a gated norm of 48 columns as a model makes it, the variant in words)."""
    yield Qwen3NextRMSNormGated(48), "cast_before_weight, silu after it"
    yield MambaRMSNormGated(48), "cast_before_weight, silu before the norm"
    yield BambaRMSNormGated(48), "cast_before_weight, silu before the norm"
    yield Zamba2RMSNormGated(48, group_size=16), "cast_before_weight, silu before the norm, 3 groups"
    yield NemotronHRMSNormGated(48, group_size=24), "cast_before_weight, silu before the norm, 2 groups"
    yield FalconH1RMSNormGated(48, n_groups=3), "float_weight, silu after it, 3 groups"
    yield FalconH1RMSNormGated(48, norm_before_gate=False), "float_weight, silu before the norm"
    try:
        from transformers.models.kimi_linear.modeling_kimi_linear import KimiLinearRMSNormGated
    except ImportError:  # a younger family than this transformers
        return
    yield KimiLinearRMSNormGated(48), "float_weight, sigmoid after it"


def randomized(norm, dtype):
    norm = norm.to(dtype)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return norm


class Models(torch.nn.Module):
    """A model of one norm."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm


class BesideTransformers(unittest.TestCase):
    def setUp(self):
        torch.manual_seed(0)

    def test_a_gated_norm_in_bfloat16_is_its_class_to_a_rounding(self):
        for norm, variant in gated_norms():
            with self.subTest(type(norm).__name__):
                model = Models(randomized(norm, torch.bfloat16)).eval()
                x, gate = (torch.randn(3, 7, 48, dtype=torch.bfloat16) for _ in range(2))
                with torch.no_grad():
                    expected = model.norm(x, gate)
                    graft_kernels.kernelize(model)
                    row, = graft_kernels.report(model).rows
                    self.assertEqual((row.refusal, row.slot.layer, row.slot.variant), ("", "RMSNormGated", variant))
                    own = model.norm(x, gate)
                torch.testing.assert_close(own, expected, rtol=0.0079, atol=1e-6)   # one unit in the last place
                self.assertLess((own != expected).float().mean(), 0.01)
                graft_kernels.unkernelize(model)
                self.assertTrue(torch.equal(model.norm(x, gate), expected))
                self.assertEqual([key for key in model.norm.__dict__ if key.startswith("graft_")], [])

    def test_gradients_of_a_training_model(self):
        for norm, _ in gated_norms():
            with self.subTest(type(norm).__name__):
                model = Models(randomized(norm, torch.float32)).train()
                other = copy.deepcopy(model)
                graft_kernels.kernelize(model)
                inputs = [torch.randn(3, 7, 48) for _ in range(2)]
                upstream = torch.randn(3, 7, 48)
                leaves = [[x.clone().requires_grad_() for x in inputs] for _ in range(2)]
                for each, own in zip((model, other), leaves):
                    each.norm(*own).backward(upstream)
                for own, expected in zip(*leaves):
                    torch.testing.assert_close(own.grad, expected.grad, rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(model.norm.weight.grad, other.norm.weight.grad, rtol=1e-4, atol=1e-5)

    def test_what_the_package_does_not_compute_stays(self):
        class OddRMSNormGated(Qwen3NextRMSNormGated):
            def forward(self, hidden_states, gate):
                return 2 * super().forward(hidden_states, gate)

        model = graft_kernels.kernelize(Models(OddRMSNormGated(16)))
        self.assertEqual([row.refusal for row in graft_kernels.report(model).rows],
                         ["computes none of the package's gated norms"])

    def test_a_call_without_a_gate_or_in_float64_keeps_the_class(self):
        model = Models(randomized(MambaRMSNormGated(48), torch.float32)).eval()
        x, gate = torch.randn(3, 48), torch.randn(3, 48)
        expected = model.norm(x)
        graft_kernels.kernelize(model)
        self.assertTrue(torch.equal(model.norm(x), expected))
        model.double()
        own = model.norm(x.double(), gate.double())
        graft_kernels.unkernelize(model)
        self.assertTrue(torch.equal(own, model.norm(x.double(), gate.double())))

    def test_the_layer_of_linear_attention_through_kernels(self):
        model = Models(randomized(Qwen3NextRMSNormGated(48), torch.float32)).eval()
        x, gate = torch.randn(5, 48), torch.randn(5, 48)
        expected = model.norm(x, gate)
        mapping = {"RMSNormGated": {"cpu": LocalLayerRepository(PACKAGE, layer_name="RMSNormGated")}}
        with use_kernel_mapping(mapping, inherit_mapping=False):
            model = kernelize_with_kernels(model, mode=Mode.TRAINING, device="cpu")
        self.assertIn("RMSNormGated.forward", model.norm.forward.__qualname__)
        self.assertNotIn("transformers", model.norm.forward.__func__.__module__)
        torch.testing.assert_close(model.norm(x, gate), expected)

    def test_layer_norm_modules(self):
        for arguments in ({}, {"bias": False}, {"elementwise_affine": False}):
            with self.subTest(str(arguments)):
                model = Models(randomized(torch.nn.LayerNorm(48, **arguments), torch.float32)).train()
                other = copy.deepcopy(model)
                graft_kernels.kernelize(model)
                self.assertEqual(graft_kernels.report(model).swapped, 1)
                x, upstream = torch.randn(3, 7, 48), torch.randn(3, 7, 48)
                own, expected = x.clone().requires_grad_(), x.clone().requires_grad_()
                model.norm(own).backward(upstream)
                other.norm(expected).backward(upstream)
                torch.testing.assert_close(own.grad, expected.grad, rtol=1e-4, atol=1e-5)
                for ours, theirs in zip(model.parameters(), other.parameters()):
                    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)
        model = graft_kernels.kernelize(Models(torch.nn.LayerNorm((4, 48))))
        self.assertEqual(graft_kernels.report(model).swapped, 0)
        model, x = Models(torch.nn.LayerNorm(48)), torch.randn(3, 48)
        graft_kernels.kernelize(model)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            self.assertEqual(model.norm(x.bfloat16()).dtype, functional.layer_norm(x.bfloat16(), (48,)).dtype)


class Package(unittest.TestCase):
    def setUp(self):
        torch.manual_seed(0)

    def test_gradients_match_differences(self):
        warnings.simplefilter("ignore")   # gradcheck's advice of float64

        def check(function, *inputs):
            # Ops compute in float32 at most: wide steps, and no more digits than those leave.
            self.assertTrue(torch.autograd.gradcheck(function, inputs, eps=1e-2, atol=2e-3, rtol=2e-2,
                                                     nondet_tol=0.0))

        def leaf(*shape):
            return torch.randn(*shape, requires_grad=True)

        for gate_first in (False, True):
            for act in ("silu", "sigmoid"):
                check(lambda x, g, w: KERNEL.gated_rms_norm(x, g, w, 1e-2, 3, act, gate_first),
                      leaf(3, 6), leaf(3, 6), leaf(6))
        check(lambda x, g, w: KERNEL.gated_rms_norm(x, g, w, 1e-2, 2), leaf(3, 2, 6), leaf(3, 2, 6), leaf(2, 6))
        check(lambda x, w, b: KERNEL.layer_norm(x, w, b, 1e-2), leaf(3, 6), leaf(6), leaf(6))

    def test_no_graph_break_under_compilation(self):
        weight, bias = torch.randn(32, requires_grad=True), torch.randn(32, requires_grad=True)

        def function(x, gate):
            return KERNEL.layer_norm(KERNEL.gated_rms_norm(x, gate, weight), weight, bias).sum()

        compiled = torch.compile(function, fullgraph=True, dynamic=True, backend="aot_eager")
        for rows in (3, 5):
            inputs = [torch.randn(rows, 32) for _ in range(2)]
            leaves = [[x.clone().requires_grad_() for x in inputs] for _ in range(2)]
            compiled(*leaves[0]).backward()
            function(*leaves[1]).backward()
            for own, expected in zip(*leaves):
                torch.testing.assert_close(own.grad, expected.grad)

    def test_an_error_names_the_argument(self):
        x, weight = torch.randn(3, 8), torch.randn(8)
        with self.assertRaisesRegex(RuntimeError, r"\[gated_rms_norm\] gate: expected shape \[3, 8\]"):
            KERNEL.gated_rms_norm(x, x[:2], weight)
        with self.assertRaisesRegex(ValueError, "act: expected silu or sigmoid, got 'relu'"):
            KERNEL.gated_rms_norm(x, x, weight, act="relu")


if __name__ == "__main__":
    unittest.main()
