#!/usr/bin/env python3
"""Norms and rotation in one call of the rotary package: beside transformers' own classes, gradients, op schemas,
compilation.

    GRAFT_BUILD=<build folder> python tests/python/test_rotary_package.py
"""

import os
import pathlib
import unittest
import warnings

import torch
from kernels import get_local_kernel
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm, apply_rotary_pos_emb

KERNEL = get_local_kernel(pathlib.Path(os.environ["GRAFT_BUILD"]) / "share/graft/hub/graft-kernels/rotary",
                          backend="cpu")
NORMS = {0: Qwen3RMSNorm, 3: Gemma3RMSNorm}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Of one unit in the last place of values near one, twice.
TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 2 ** -6, torch.float16: 2 ** -9}


def make(dtype=torch.float32, dim=16, length=5, requires_grad=False):
    """Query, key, their weights, cos and sin."""
    heads = [torch.randn(2, length, count, dim).to(dtype) for count in (4, 2)]
    weights = [torch.randn(dim).to(dtype) for _ in range(2)]
    angles = torch.rand(2, length, dim // 2).repeat(1, 1, 2)
    tensors = [x.requires_grad_(requires_grad) for x in (*heads, *weights)]
    return tensors, (angles.cos().to(dtype), angles.sin().to(dtype))


def by_transformers(query, key, query_weight, key_weight, cos, sin, eps, variant):
    def norm(x, weight):
        module = NORMS[variant](x.shape[-1], eps=eps)
        return torch.func.functional_call(module, {"weight": weight}, (x,)).transpose(1, 2)

    rotated = apply_rotary_pos_emb(norm(query, query_weight), norm(key, key_weight), cos, sin)
    return tuple(x.transpose(1, 2) for x in rotated)


class Function(unittest.TestCase):
    def setUp(self):
        torch.manual_seed(0)

    def test_is_what_transformers_computes(self):
        for dtype in DTYPES:
            for variant in NORMS:
                with self.subTest(f"{dtype} {variant}"):
                    tensors, tables = make(dtype, dim=64)
                    own = KERNEL.norm_rotary(*tensors, *tables, 1e-6, variant)
                    for ours, theirs in zip(own, by_transformers(*tensors, *tables, 1e-6, variant)):
                        self.assertEqual(ours.dtype, dtype)
                        torch.testing.assert_close(ours, theirs, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])

    def test_takes_views_and_no_dense_rows(self):
        tensors, tables = make(dim=16)
        fused = torch.cat(tensors[:2], dim=2)
        expected = KERNEL.norm_rotary(*tensors, *tables)
        for query, key in ((fused[:, :, :4], fused[:, :, 4:]),
                           (x.transpose(2, 3).contiguous().transpose(2, 3) for x in tensors[:2])):
            for ours, theirs in zip(KERNEL.norm_rotary(query, key, *tensors[2:], *tables), expected):
                self.assertTrue(torch.equal(ours, theirs))

    def test_append_is_the_call_and_two_copies(self):
        (query, key, *weights), _ = make(length=1)
        value, table = torch.randn_like(key), torch.rand(9, 16)
        keys, values = torch.zeros(2, 2, 6, 16), torch.zeros(2, 2, 6, 16)
        lengths, positions = (torch.tensor(x, dtype=torch.int32) for x in ((3, 6), (7, 0)))
        out = KERNEL.norm_rotary_append(query, key, value, keys, values, *weights, table.cos(), table.sin(), lengths,
                                        positions)
        rows = table[positions.long()].unsqueeze(1)
        expected = KERNEL.norm_rotary(query, key, *weights, rows.cos(), rows.sin())
        self.assertTrue(torch.equal(out, expected[0]))
        for row, place in enumerate((2, 5)):
            self.assertTrue(torch.equal(keys[row, :, place], expected[1][row, 0]))
            self.assertTrue(torch.equal(values[row, :, place], value[row, 0]))
        self.assertEqual(int((keys.abs().sum((1, 3)) != 0).sum()), 2)


class Gradients(unittest.TestCase):
    def setUp(self):
        torch.manual_seed(0)

    def test_match_differences(self):
        warnings.simplefilter("ignore")   # gradcheck's advice of float64
        for variant in range(4):
            for interleaved in (False, True):
                tensors, tables = make(dim=8, length=2, requires_grad=True)
                # Ops compute in float32 at most: wide steps, and no more digits than those leave.
                self.assertTrue(torch.autograd.gradcheck(
                    lambda *own: KERNEL.norm_rotary(*own, *tables, 1e-2, variant, interleaved), tensors, eps=1e-2,
                    atol=3e-3, rtol=2e-2, nondet_tol=0.0))

    def test_of_float64_are_pytorchs(self):
        for variant in range(4):
            for interleaved in (False, True):
                tensors, tables = make(torch.float64, dim=8, length=2, requires_grad=True)
                self.assertTrue(torch.autograd.gradcheck(
                    lambda *own: KERNEL.norm_rotary(*own, *tables, 1e-6, variant, interleaved), tensors))

    def test_err_at_most_twice_as_much_as_transformers(self):
        for dtype in DTYPES:
            for variant in NORMS:
                with self.subTest(f"{dtype} {variant}"):
                    tensors, tables = make(dtype, dim=64)
                    upstream = [torch.randn_like(x) for x in tensors[:2]]

                    def gradients(function, kind, *more):
                        leaves = [x.detach().to(kind).requires_grad_() for x in tensors]
                        out = function(*leaves, *(table.to(kind) for table in tables), 1e-6, variant, *more)
                        return torch.autograd.grad(out, leaves, [x.to(kind) for x in upstream])

                    exact = gradients(KERNEL.norm_rotary, torch.float64)
                    own = gradients(KERNEL.norm_rotary, dtype)
                    theirs = gradients(by_transformers, dtype)
                    for ours, their, right in zip(own, theirs, exact):
                        self.assertEqual(ours.dtype, dtype)
                        allowed = 2 * (their - right).abs().max() + 2 ** -23 * right.abs().max()
                        self.assertLessEqual(float((ours - right).abs().max()), float(allowed))

    def test_of_what_needs_none_are_none(self):
        tensors, tables = make()
        tensors[0].requires_grad_()
        out = KERNEL.norm_rotary(*tensors, *tables)
        self.assertTrue(out[0].requires_grad)
        (out[0].sum() + out[1].sum()).backward()
        self.assertIsNone(tensors[2].grad)
        with torch.no_grad():
            self.assertFalse(KERNEL.norm_rotary(*tensors, *tables)[0].requires_grad)


class Compiled(unittest.TestCase):
    def test_without_a_break_of_the_graph(self):
        torch.manual_seed(0)
        torch._dynamo.reset()
        compiled = torch.compile(KERNEL.norm_rotary, fullgraph=True, backend="aot_eager", dynamic=True)
        for length in (5, 7):
            tensors, tables = make(length=length)
            for ours, theirs in zip(compiled(*tensors, *tables), KERNEL.norm_rotary(*tensors, *tables)):
                self.assertTrue(torch.equal(ours, theirs))
        tensors, tables = make(requires_grad=True)
        grads = [torch.autograd.grad([x.sum() for x in function(*tensors, *tables)], tensors)
                 for function in (compiled, KERNEL.norm_rotary)]
        for ours, theirs in zip(*grads):
            torch.testing.assert_close(ours, theirs)


if __name__ == "__main__":
    unittest.main()
