#!/usr/bin/env python3
"""The loss package through the unmodified Python client: values, gradients, op schemas, compilation.

    GRAFT_BUILD=<build folder> python tests/python/test_loss_package.py
"""

import os
import pathlib
import unittest

import torch
from kernels import get_local_kernel
from torch.nn import functional

PACKAGE = pathlib.Path(os.environ["GRAFT_BUILD"]) / "share/graft/hub/graft-kernels/loss"
KERNEL = get_local_kernel(PACKAGE, backend="cpu")
OPTIONS = (-100, 0.0, 0.0)


def labels_for(rows, columns):
    labels = torch.randint(0, columns, (rows,))
    labels[rows // 2] = -100
    return labels


def capped(logits, softcap):
    return softcap * torch.tanh(logits / softcap) if softcap else logits


class CrossEntropy(unittest.TestCase):
    def setUp(self):
        torch.manual_seed(0)

    def compare(self, ours, theirs, *inputs, upstream=1.0):
        leaves = [[x.clone().requires_grad_() for x in inputs] for _ in range(2)]
        outs = [fn(*own) for fn, own in zip((ours, theirs), leaves)]
        torch.testing.assert_close(outs[0], outs[1], rtol=1e-5, atol=1e-5)
        for out in outs:
            (out * upstream).sum().backward()
        for own, expected in zip(*leaves):
            torch.testing.assert_close(own.grad, expected.grad, rtol=1e-4, atol=1e-6)

    def test_every_option_of_torchs_own(self):
        logits, labels = torch.randn(9, 33) * 3, labels_for(9, 33)
        for reduction in ("mean", "sum", "none"):
            for smoothing in (0.0, 0.1):
                for softcap in (0.0, 5.0):
                    self.compare(
                        lambda x: KERNEL.cross_entropy(x, labels, smoothing=smoothing, softcap=softcap,
                                                       reduction=reduction),
                        lambda x: functional.cross_entropy(capped(x, softcap), labels, reduction=reduction,
                                                           label_smoothing=smoothing), logits, upstream=0.7)

    def test_linear_form_in_one_and_in_many_chunks(self):
        hidden, weight, bias = torch.randn(21, 16), torch.randn(50, 16), torch.randn(50)
        labels = labels_for(21, 50)
        for reduction in ("mean", "sum", "none"):
            for chunk_rows in (0, 4):
                self.compare(
                    lambda h, w, b: KERNEL.linear_cross_entropy(h, w, labels, b, smoothing=0.1, softcap=8.0,
                                                                reduction=reduction, chunk_rows=chunk_rows),
                    lambda h, w, b: functional.cross_entropy(capped(functional.linear(h, w, b), 8.0), labels,
                                                             label_smoothing=0.1, reduction=reduction),
                    hidden, weight, bias, upstream=0.7)

    def test_a_frozen_weight_gets_no_gradient(self):
        weight, labels = torch.randn(50, 16), labels_for(7, 50)
        self.compare(lambda h: KERNEL.linear_cross_entropy(h, weight, labels),
                     lambda h: functional.cross_entropy(functional.linear(h, weight), labels),
                     torch.randn(7, 16))

    def test_float16_gradients_carry_the_factor_of_a_loss_scaler(self):
        hidden, weight = torch.randn(64, 8).half().requires_grad_(), torch.randn(300, 8).half()
        labels = labels_for(64, 300)
        (KERNEL.linear_cross_entropy(hidden, weight, labels) * 4096).backward()
        exact = hidden.detach().double().requires_grad_()
        (functional.cross_entropy(exact @ weight.double().T, labels) * 4096).backward()
        torch.testing.assert_close(hidden.grad.double(), exact.grad, rtol=2e-3, atol=2e-2)

    def test_the_layer_is_transformers_own_loss(self):
        from transformers.loss.loss_utils import ForCausalLMLoss
        layer = KERNEL.layers.ForCausalLMLoss()
        hidden, weight = torch.randn(2, 6, 16), torch.randn(40, 16)
        labels = torch.randint(0, 40, (2, 6))
        labels[0, :3] = -100
        for items in (None, 5, torch.tensor(7)):
            for shifted in (None, labels.roll(-1, 1)):
                def theirs(h, w):
                    return ForCausalLMLoss(h @ w.T, labels, 40, items, shift_labels=shifted)

                self.compare(lambda h, w: layer(h @ w.T, labels, 40, items, shift_labels=shifted), theirs,
                             hidden, weight)
                self.compare(lambda h, w: layer(None, labels, 40, items, shift_labels=shifted,
                                                hidden_states=h, lm_head_weight=w), theirs, hidden, weight)

    def test_gradients_match_differences(self):
        labels = labels_for(4, 7)

        def check(function, *inputs):
            # Ops compute in float32 at most: wide steps, and no more digits than those leave.
            self.assertTrue(torch.autograd.gradcheck(function, inputs, eps=1e-2, atol=2e-3, rtol=2e-2,
                                                     nondet_tol=0.0))

        check(lambda x: KERNEL.cross_entropy(x, labels, softcap=4.0, smoothing=0.1),
              torch.randn(4, 7, requires_grad=True))
        check(lambda h, w: KERNEL.linear_cross_entropy(h, w, labels, reduction="sum"),
              torch.randn(4, 5, requires_grad=True), torch.randn(7, 5, requires_grad=True))

    def test_no_graph_break_under_compilation(self):
        labels = labels_for(9, 33)

        def function(h, w):
            return KERNEL.linear_cross_entropy(h, w, labels) + KERNEL.cross_entropy(h @ w.T, labels)

        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        self.compare(compiled, function, torch.randn(9, 16), torch.randn(33, 16))


if __name__ == "__main__":
    unittest.main()
