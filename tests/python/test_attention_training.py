#!/usr/bin/env python3
"""Attention for training through the unmodified Python client: values, gradients, packed sequences, on the CPU and,
where there is one, on a GPU.

    GRAFT_BUILD=<build folder> python tests/python/test_attention_training.py
"""

import os
import pathlib
import unittest

import torch
from kernels import get_local_kernel

PACKAGE = pathlib.Path(os.environ["GRAFT_BUILD"]) / "share/graft/hub/graft-kernels/attention"
# S, T, D, query heads, key heads, softcap, window, causal
CASES = [(1, 1, 64, 4, 4, 0, 0, False), (7, 7, 80, 4, 2, 0, 0, True), (127, 129, 64, 4, 1, 0, 0, True),
         (129, 127, 96, 2, 2, 0, 0, True), (40, 300, 128, 6, 2, 3.0, 0, False), (130, 130, 192, 2, 1, 0, 17, True),
         (33, 65, 256, 2, 2, 2.0, 20, True), (1000, 1000, 64, 2, 1, 0, 0, True), (5, 0, 16, 2, 1, 0, 0, False)]


def formula(query, key, value, sinks, softcap, window, causal):
    """Softmax in float32 or wider, the rest in the dtype of the arguments."""
    groups, length, keys = query.shape[2] // key.shape[1], query.shape[1], key.shape[2]
    scores = query.transpose(1, 2) @ key.repeat_interleave(groups, 1).transpose(2, 3) * query.shape[3] ** -0.5
    if softcap:
        scores = torch.tanh(scores / softcap) * softcap
    own, place = torch.arange(length)[:, None] + keys - length, torch.arange(keys)[None]
    hidden = torch.zeros(length, keys, dtype=torch.bool)
    hidden |= (place > own) if causal else hidden
    hidden |= (place <= own - window) if window else hidden
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)).masked_fill(hidden, -torch.inf)
    if sinks is not None:
        column = sinks.to(scores.dtype).view(1, -1, 1, 1).expand(scores.shape[0], -1, length, 1)
        scores = torch.cat([scores, column], -1)
    weights = torch.softmax(scores, -1)[..., :keys]
    weights = torch.where(hidden.expand_as(weights), torch.zeros_like(weights), weights).to(query.dtype)
    return (weights @ value.repeat_interleave(groups, 1)).transpose(1, 2), torch.logsumexp(scores, -1)


def gradients(function, inputs, grad, dtype):
    leaves = [None if x is None else x.detach().to(dtype).requires_grad_() for x in inputs]
    out, lse = function(*leaves)
    wanted = [x for x in leaves if x is not None]
    return [out.detach(), lse.detach(), *torch.autograd.grad(out, wanted, grad.to(dtype))]


class Training(unittest.TestCase):
    device = "cpu"

    @classmethod
    def setUpClass(cls):
        cls.kernel = get_local_kernel(PACKAGE, backend=cls.device)

    def setUp(self):
        torch.manual_seed(0)
        torch.set_default_device(self.device)
        self.addCleanup(torch.set_default_device, None)

    def check(self, dtype, case, with_sinks):
        length, keys, size, heads, key_heads, *options = case
        shapes = ((2, length, heads, size), (2, key_heads, keys, size), (2, key_heads, keys, size))
        inputs = [torch.randn(s).to(dtype) for s in shapes] + [torch.randn(heads).to(dtype) if with_sinks else None]
        grad = torch.randn(shapes[0]).to(dtype)

        def ours(q, k, v, sinks):
            return self.kernel.attention_train(q, k, v, None, sinks, None, *options)

        def theirs(q, k, v, sinks):
            return formula(q, k, v, sinks, *options)

        own = gradients(ours, inputs, grad, dtype)
        exact, eager = gradients(theirs, inputs, grad, torch.float64), gradients(theirs, inputs, grad, dtype)
        torch.testing.assert_close(own[1].double(), exact[1], rtol=1e-5, atol=2e-5)
        del own[1], exact[1], eager[1]
        rounding = {torch.float32: 2**-20, torch.bfloat16: 2**-9, torch.float16: 2**-12}[dtype]
        # What rounding may do to the difference of two equal sums of `size` products each.
        cancel = 2**-23 * size if keys else 0.0
        for index, (a, b, c) in enumerate(zip(own, exact, eager)):
            if b.numel() == 0:
                continue
            b, c = b.nan_to_num(), c.double().nan_to_num()
            floor = rounding * b.abs().max() + cancel
            self.assertLessEqual((a.double() - b).abs().max(), (3 if index else 2) * (c - b).abs().max() + floor,
                                 (dtype, case, with_sinks, index))

    def test_results_and_gradients_are_right_for_every_kind_of_call(self):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            for case in CASES:
                for with_sinks in (False, True):
                    self.check(dtype, case, with_sinks)

    def test_packed_sequences_equal_each_alone_and_repeat_bit_for_bit(self):
        queries, keys = torch.tensor([0, 5, 5, 6, 46], dtype=torch.int32), torch.tensor([0, 9, 12, 13, 46], dtype=torch.int32)
        inputs = [torch.randn(46, h, 64) for h in (4, 2, 2)]
        grad = torch.randn(46, 4, 64)

        def packed(q, k, v):
            return self.kernel.attention_varlen(q, k, v, queries, keys, causal=True)

        whole = gradients(packed, inputs, grad, torch.float32)
        for i in range(4):
            q, k = slice(queries[i], queries[i + 1]), slice(keys[i], keys[i + 1])
            alone = gradients(lambda *x: self.kernel.attention_train(*x, causal=True),
                              [inputs[0][q][None], *(x[k].transpose(0, 1)[None] for x in inputs[1:])],
                              grad[q][None], torch.float32)
            for a, b in ((whole[0][q], alone[0][0]), (whole[1][:, q], alone[1][0]), (whole[2][q], alone[2][0]),
                         (whole[3][k], alone[3][0].transpose(0, 1)), (whole[4][k], alone[4][0].transpose(0, 1))):
                self.assertTrue(torch.equal(a, b), i)
        for _ in range(100):
            for a, b in zip(whole, gradients(packed, inputs, grad, torch.float32)):
                self.assertTrue(torch.equal(a, b))

    def test_nan_that_the_mask_hides_never_leaks(self):
        query, grad = torch.randn(2, 20, 4, 32), torch.randn(2, 20, 4, 32)
        key, value = torch.randn(2, 2, 50, 32), torch.randn(2, 2, 50, 32)
        mask = torch.zeros(2, 1, 1, 50)
        mask[..., 37:] = -torch.inf
        clean = gradients(lambda *x: self.kernel.attention_train(*x, mask), [query, key, value], grad, torch.float32)
        key[:, :, 37:], value[:, :, 37:] = torch.nan, torch.nan
        dirty = gradients(lambda *x: self.kernel.attention_train(*x, mask), [query, key, value], grad, torch.float32)
        for a, b in zip(clean, dirty):
            self.assertTrue(torch.equal(a, b))

    def test_starts_that_do_not_fit_are_named(self):
        x = torch.randn(4, 2, 16)
        with self.assertRaisesRegex(RuntimeError, "cu_seqlens_q: expected numbers from 0 to 4, never falling"):
            starts = torch.tensor([0, 5], dtype=torch.int32)
            self.kernel.attention_varlen(x, x, x, starts, starts)


@unittest.skipUnless(torch.cuda.is_available(), "no CUDA device")
class TrainingOnCuda(Training):
    device = "cuda"

    def test_starts_that_do_not_fit_are_named(self):
        """On the device they are not looked at by the host: the kernels keep them within the tensors."""
        x = torch.randn(4, 2, 16)
        beyond, within = (torch.tensor([0, end], dtype=torch.int32) for end in (5, 4))
        for a, b in zip(self.kernel.attention_varlen(x, x, x, beyond, beyond),
                        self.kernel.attention_varlen(x, x, x, within, within)):
            self.assertTrue(torch.equal(a, b))


if __name__ == "__main__":
    unittest.main()
