#!/usr/bin/env python3
"""Every op of every package through torch.library.opcheck: what its schema says it writes, its shapes under tracing with
fixed and with symbolic sizes, its registration for autograd. An op without arguments here fails the test.

    GRAFT_BUILD=<build folder> python tests/python/test_schemas.py
"""

import os
import pathlib
import unittest

import torch
from kernels import get_local_kernel

PACKAGES = pathlib.Path(os.environ["GRAFT_BUILD"]) / "share/graft/hub/graft-kernels"


def ints(*values, dtype=torch.int32):
    return torch.tensor(values, dtype=dtype)


def activation(ops):
    x, half, whole = torch.randn(3, 16), torch.empty(3, 8), torch.empty(3, 16)
    for name in ("silu", "gelu", "gelu_tanh", "gelu_new", "gelu_fast", "gelu_quick"):
        yield name, (whole, x)
        yield name + "_backward", (whole, x.clone(), x)
    for name in ("silu_mul", "gelu_mul", "gelu_tanh_mul"):
        yield name, (whole, x, x.clone())
        yield name + "_backward", (whole, whole.clone(), x, x.clone(), x.clone())
    for name in ("silu_and_mul", "mul_and_silu", "gelu_and_mul", "gelu_tanh_and_mul"):
        yield name, (half, x)
    yield "swigluoai_and_mul", (half, x, 1.702, 7.0)
    yield "swigluoai_and_mul_backward", (whole, half.clone(), x, 1.702, 7.0)


def attention(ops):
    query, key, value = torch.randn(2, 5, 4, 16), torch.randn(2, 2, 5, 16), torch.randn(2, 2, 5, 16)
    grad, mask, sinks = torch.randn_like(query), torch.zeros(2, 1, 5, 5), torch.randn(4)
    out, lse = ops.attention_forward_lse(query, key, value, None, None, 0.25, 0.0, 0, True)
    for each in (None, mask):
        yield "attention", (query, key, value, each, 0.25, 0.0, each is None)
        yield "attention_out", (out.clone(), query, key, value, each, 0.25, 0.0, each is None)
        yield "attention_forward_lse", (query, key, value, each, None, 0.25, 0.0, 0, each is None)
        yield "attention_backward", (grad, query, key, value, out, lse, each, 0.25, 0.0, 0, each is None, False)
    yield "attention_forward_lse", (query, key, value, None, sinks, 0.25, 0.0, 3, True)

    packed = [torch.randn(10, heads, 16) for heads in (4, 2, 2)]
    bounds = (ints(0, 3, 10), ints(0, 3, 10))
    out, lse = ops.attention_varlen(*packed, *bounds, None, 0.25, 0.0, 0, True)
    yield "attention_varlen", (*packed, *bounds, sinks, 0.25, 0.0, 0, True)
    yield "attention_varlen_backward", (torch.randn_like(out), *packed, out, lse, *bounds, 0.25, 0.0, 0, True, False)

    new_query, new_key, new_value = (torch.randn(2, 1, heads, 16) for heads in (4, 2, 2))
    tables = (torch.rand(9, 16), torch.rand(9, 16))
    lengths, options = ints(3, 5), (0.25, 0.0, 0, True)
    paged, pages = [torch.randn(4, 2, 16, 16) for _ in range(2)], ints(0, 2, 1, 3).view(2, 2)
    for cache, table in (((key, value), None), (paged, pages)):
        cache = [each.clone() for each in cache]
        yield "attention_decode_out", (torch.empty_like(new_query), torch.empty(2, 4, 1), new_query, *cache, lengths, table,
                                       None, None, *options, 0)
        yield "attention_append_out", (torch.empty_like(new_query), None, *cache, new_query, new_key, new_value, *tables,
                                       lengths, ints(3, 5), table, None, *options, False, 0)


def linear(ops):
    q4_0, rows, depth = 2, 64, 256
    blocks = torch.randint(0, 255, (rows * depth // 32, 18), dtype=torch.uint8)
    blocks[:, :2] = torch.tensor([0.01], dtype=torch.float16).view(torch.uint8)
    blocks = blocks.flatten()
    x, weight, bias = torch.randn(3, depth), torch.randn(rows, depth), torch.randn(rows)
    packed, out, joined = ops.pack_weight(blocks, q4_0, rows, depth), torch.empty(3, rows), torch.empty(3, 2 * rows)
    nothing = (None, None, None)
    yield "linear", (x, weight, bias)
    yield "linear_out", (out, x, weight, bias)
    yield "linear_act", (x, weight, bias, 1, torch.randn(3, rows))
    yield "linear_act_out", (out, x, weight, bias, 1, None)
    yield "linear_join_out", (joined, x, weight, weight.clone(), None, *nothing)
    yield "pack_weight", (blocks, q4_0, rows, depth)
    yield "packed_linear", (x, packed, q4_0, rows, bias, False)
    yield "packed_linear_out", (out, x, packed, q4_0, rows, None, True)
    yield "packed_linear_join_out", (joined, x, packed, packed.clone(), None, q4_0, q4_0, 0, rows, rows, 0, *nothing, False)


def loss(ops):
    logits, grad = torch.randn(5, 12), torch.randn(5)
    labels = ints(3, 0, -100, 11, 7, dtype=torch.int64)
    hidden, weight, bias = torch.randn(5, 4), torch.randn(12, 4), torch.randn(12)
    options = (-100, 0.0, 0.1)
    each, lse = ops.cross_entropy(logits, labels, *options)
    yield "cross_entropy", (logits, labels, *options)
    yield "cross_entropy_out", (each.clone(), lse.clone(), logits, labels, *options)
    yield "cross_entropy_backward", (grad, logits, labels, lse, *options)
    yield "cross_entropy_backward_out", (logits.clone(), grad, logits, labels, lse, *options)
    for optional in (None, bias):
        head = (hidden, weight, optional, labels)
        made = (torch.empty_like(hidden), torch.empty_like(weight),
                None if optional is None else torch.empty_like(bias))
        yield "linear_cross_entropy", (*head, *options, 2)
        yield "linear_cross_entropy_out", (each.clone(), lse.clone(), *head, *options, 2)
        for with_weight in (False, True):
            yield "linear_cross_entropy_backward", (grad, *head, lse, *options, 2, with_weight)
            yield "linear_cross_entropy_train", (grad, *head, *options, 2, with_weight)
        yield "linear_cross_entropy_backward_out", (*made, grad, *head, lse, *options, 2)
        yield "linear_cross_entropy_train_out", (each.clone(), lse.clone(), *made, grad, *head, *options, 2)


def mlp(ops):
    x, bias, gate, up = torch.randn(3, 8), torch.randn(6), torch.randn(3, 6), torch.randn(3, 6)
    weights = (torch.randn(6, 8), torch.randn(6, 8), torch.randn(8, 6))
    for biases in ((None, None, None), (bias, bias.clone(), torch.randn(8))):
        yield "mlp", (x, *weights, 0, *biases)
        yield "mlp_train", (x, *weights, 0, *biases)
        yield "mlp_out", (torch.empty_like(x), x, *weights, 0, *biases)
        for with_weights in (False, True):
            yield "mlp_backward", (x.clone(), x, *weights, 0, *biases, with_weights)
            yield "mlp_train_backward", (x.clone(), x, gate, up, *weights, 0, *biases, with_weights)


def rms_norm(ops):
    x, gate, grad, weight, bias = *(torch.randn(3, 8) for _ in range(3)), torch.randn(8), torch.randn(8)
    options, gated = (1e-5, 0), (1e-5, 0, 0, False)
    yield "rms_norm", (x, weight, *options)
    yield "rms_norm_out", (x.clone(), x, weight, *options)
    yield "rms_norm_backward", (grad, x, weight, *options)
    yield "rms_norm_backward_out", (x.clone(), weight.clone(), grad, x, weight, *options)
    yield "add_rms_norm", (x, gate, weight, *options)
    yield "add_rms_norm_out", (x.clone(), x.clone(), x, gate, weight, *options)
    yield "add_rms_norm_backward", (grad, gate, x, weight, *options)
    yield "add_rms_norm_backward_out", (x.clone(), weight.clone(), grad, gate, x, weight, *options)
    yield "gated_rms_norm", (x, gate, weight, *gated)
    yield "gated_rms_norm_out", (x.clone(), x, gate, weight, *gated)
    yield "gated_rms_norm_backward", (grad, x, gate, weight, *gated)
    yield "gated_rms_norm_backward_out", (x.clone(), x.clone(), weight.clone(), grad, x, gate, weight, *gated)
    for factors in ((None, None), (weight, None), (weight, bias)):
        yield "layer_norm", (x, *factors, 1e-5)
        yield "layer_norm_out", (x.clone(), x, *factors, 1e-5)
        yield "layer_norm_backward", (grad, x, factors[0], 1e-5)
        yield "layer_norm_backward_out", (x.clone(), weight.clone(), bias.clone(), grad, x, factors[0], 1e-5)


def rotary(ops):
    query, key, weights = torch.randn(2, 5, 4, 16), torch.randn(2, 5, 2, 16), (torch.randn(16), torch.randn(16))
    tables = (torch.rand(2, 5, 16), torch.rand(2, 5, 16))
    cache = [torch.zeros(2, 2, 6, 16) for _ in range(2)]
    last = [x[:, :1].contiguous() for x in (query, key)]
    counts, rows = (ints(3, 6), ints(3, 6)), (torch.rand(9, 16), torch.rand(9, 16))
    for interleaved in (False, True):
        yield "rotary", (query, key, *tables, interleaved, False)
        yield "rotary_out", (torch.empty_like(query), torch.empty_like(key), query, key, *tables, interleaved, True)
        yield "rotary_append_out", (torch.empty_like(last[0]), *cache, *last, last[1].clone(), *rows, *counts, interleaved)
        for variant in (0, 3):
            options = (1e-6, variant, interleaved)
            yield "norm_rotary", (query, key, *weights, *tables, *options)
            yield "norm_rotary_out", (torch.empty_like(query), torch.empty_like(key), query, key, *weights, *tables, *options)
            yield "norm_rotary_append_out", (torch.empty_like(last[0]), *cache, *last, last[1].clone(), *weights, *rows,
                                             *counts, *options)


NOT_ON_THE_CPU = {"add_rows_", "scale_gradient_"}


class Schemas(unittest.TestCase):
    def check(self, package, arguments):
        torch.manual_seed(0)
        ops = get_local_kernel(PACKAGES / package, backend="cpu").layers.ops
        checked = set()
        for name, values in arguments(ops):
            with self.subTest(name):
                op = getattr(ops, name)
                checked.add(op.name() if hasattr(op, "name") else op._qualified_op_name)
                torch.library.opcheck(getattr(op, "default", op), values)
        namespace = next(iter(checked)).split("::")[0] + "::"
        defined = {schema.name for schema in torch._C._jit_get_all_schemas() if schema.name.startswith(namespace)}
        self.assertEqual(checked, defined - {namespace + name for name in NOT_ON_THE_CPU})


for _package, _arguments in {"activation": activation, "attention": attention, "linear": linear, "loss": loss, "mlp": mlp,
                             "rms-norm": rms_norm, "rotary": rotary}.items():
    setattr(Schemas, "test_" + _package.replace("-", "_"),
            lambda self, package=_package, arguments=_arguments: self.check(package, arguments))


if __name__ == "__main__":
    unittest.main()
