#!/usr/bin/env python3
"""The CPU's kernels on tensors that end where memory ends and begin where it begins: one element read or written beyond them
ends the process. Each instruction set in a process of its own.

    GRAFT_BUILD=<build folder> python tests/python/test_ends_of_memory.py
"""

import ctypes
import itertools
import mmap
import os
import pathlib
import subprocess
import sys
import unittest

import torch
from kernels import get_local_kernel

PACKAGES = pathlib.Path(os.environ["GRAFT_BUILD"]) / "share/graft/hub/graft-kernels"
INSTRUCTION_SETS = ("avx512_bf16", "avx512", "avx2", "plain")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class Fenced:
    """Makes tensors between two pages that nobody may touch; they live as long as this."""

    def __init__(self, at_end):
        self.at_end, self.maps = at_end, []

    def __call__(self, tensor):
        size, page = tensor.numel() * tensor.element_size(), mmap.PAGESIZE
        room = -(-size // page) * page
        memory = mmap.mmap(-1, room + 2 * page)
        base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        for fence in (base, base + page + room):
            if LIBC.mprotect(fence, page, 0) != 0:
                raise OSError(ctypes.get_errno(), "mprotect")
        self.maps.append(memory)
        offset = page + (room - size if self.at_end else 0)
        fenced = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=offset).view(tensor.shape)
        return fenced.copy_(tensor)

    def random(self, *shape, dtype):
        return self(torch.randn(shape).to(dtype))


def run_attention(ops, fenced, dtype):
    for head, (queries, keys), (heads, key_heads) in itertools.product(
            (64, 80, 96, 128, 256), ((1, 1), (1, 129), (1, 1000), (3, 65), (16, 128), (33, 33), (130, 200)), ((4, 4), (6, 1))):
        query, out = (fenced.random(1, queries, heads, head, dtype=dtype) for _ in range(2))
        key, value = (fenced.random(1, key_heads, keys, head, dtype=dtype) for _ in range(2))
        ops.attention_out(out, query, key, value, None, 0.1, 0.0, True)
        ops.attention_decode_out(out, None, query, key, value, torch.tensor([keys], dtype=torch.int32), None, None, None,
                                 0.1, 0.0, 0, True, 0)


def run_activation(ops, fenced, dtype):
    for columns in range(1, 70):
        x, out, grad = (fenced.random(size, dtype=dtype) for size in (2 * columns, columns, 2 * columns))
        ops.swigluoai_and_mul(out, x, 1.702, 7.0)
        ops.swigluoai_and_mul_backward(grad, out, x, 1.702, 7.0)
        ops.silu_and_mul(out, x)
        ops.gelu_new(grad, x)


def run_rotary(ops, fenced, dtype):
    for head, tokens, interleaved in itertools.product((16, 64, 80, 128, 256), (1, 3, 17), (False, True)):
        query, query_out = (fenced.random(1, tokens, 3, head, dtype=dtype) for _ in range(2))
        key, key_out = (fenced.random(1, tokens, 1, head, dtype=dtype) for _ in range(2))
        tables, weight = [fenced.random(1, tokens, head, dtype=dtype) for _ in range(2)], fenced.random(head, dtype=dtype)
        ops.rotary_out(query_out, key_out, query, key, *tables, interleaved, False)
        ops.norm_rotary_out(query_out, key_out, query, key, weight, weight, *tables, 1e-6, 0, interleaved)


def run_rms_norm(ops, fenced, dtype):
    for columns in (1, 7, 16, 33, 576, 1001):
        x, out, other = (fenced.random(3, columns, dtype=dtype) for _ in range(3))
        weight, grad = (fenced.random(columns, dtype=dtype) for _ in range(2))
        ops.rms_norm_out(out, x, weight, 1e-6, 0)
        ops.add_rms_norm_out(out, other, x, out.clone(), weight, 1e-6, 0)
        ops.rms_norm_backward_out(out, grad, other, x, weight, 1e-6, 0)


def run_linear(ops, fenced, dtype):
    for rows, columns, depth in itertools.product((1, 5, 17), (1, 33, 64), (1, 40, 257)):
        x, weight = fenced.random(rows, depth, dtype=dtype), fenced.random(columns, depth, dtype=dtype)
        ops.linear_out(fenced.random(rows, columns, dtype=dtype), x, weight, fenced.random(columns, dtype=dtype))


RUNS = {"attention": run_attention, "activation": run_activation, "rotary": run_rotary, "rms-norm": run_rms_norm,
        "linear": run_linear}


def run_all():
    torch.manual_seed(0)
    for (package, run), dtype, at_end in itertools.product(RUNS.items(), DTYPES, (True, False)):
        print(package, dtype, "at the end" if at_end else "at the start", flush=True)
        run(get_local_kernel(PACKAGES / package, backend="cpu").layers.ops, Fenced(at_end), dtype)


class EndsOfMemory(unittest.TestCase):
    def test_nothing_beyond_a_tensor_is_touched(self):
        for name in (None, *INSTRUCTION_SETS):
            environment = dict(os.environ) if name is None else dict(os.environ, GRAFT_CPU_ISA=name)
            done = subprocess.run([sys.executable, __file__, "run"], env=environment, stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT, text=True)
            self.assertEqual(done.returncode, 0, f"{name}: {done.stdout[-2000:]}")

    def test_the_fences_hold(self):
        program = ("import ctypes, torch, test_ends_of_memory as t; x = t.Fenced(True)(torch.zeros(8)); "
                   "ctypes.c_float.from_address(x.data_ptr() + 32).value")
        done = subprocess.run([sys.executable, "-c", program], cwd=pathlib.Path(__file__).parent)
        self.assertLess(done.returncode, 0)  # a signal


if __name__ == "__main__":
    run_all() if sys.argv[1:] == ["run"] else unittest.main()
