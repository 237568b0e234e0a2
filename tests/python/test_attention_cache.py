#!/usr/bin/env python3
"""Attention over caches through the unmodified Python client, on the CPU: flash_attn_with_kvcache's arguments, pages,
new tokens, and the ops under torch.compile.

    GRAFT_BUILD=<build folder> python tests/python/test_attention_cache.py
"""

import os
import pathlib
import unittest

import torch
from kernels import get_local_kernel

PACKAGE = pathlib.Path(os.environ["GRAFT_BUILD"]) / "share/graft/hub/graft-kernels/attention"
KERNEL = get_local_kernel(PACKAGE, backend="cpu")
BATCH, ROOM, HEADS, KEY_HEADS, SIZE, PAGE = 3, 48, 4, 2, 32, 16


def formula(q, k, v, lengths, causal=True, window=0):
    """q [B, S, Hq, D], k and v [B, T, Hk, D] with lengths [B] in use, in float64."""
    q, k, v = (x.double() for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], 2) for x in (k, v))
    scores = torch.einsum("bshd,bthd->bhst", q, k) * q.shape[-1] ** -0.5
    place = torch.arange(k.shape[1])
    own = lengths.view(-1, 1, 1, 1) - q.shape[1] + torch.arange(q.shape[1]).view(-1, 1)
    hidden = place >= lengths.view(-1, 1, 1, 1)
    hidden = hidden | (place > own) if causal else hidden
    hidden = hidden | (place <= own - window) if window else hidden
    scores = scores.masked_fill(hidden, -torch.inf)
    weights = torch.nan_to_num(torch.softmax(scores, -1))
    return torch.einsum("bhst,bthd->bshd", weights, v), torch.logsumexp(scores, -1)


def turned(x, cos, sin, positions, interleaved):
    """x [B, S, H, D] by flash-attn's tables [N, R / 2]."""
    cos, sin = cos[positions].unsqueeze(2), sin[positions].unsqueeze(2)
    size = 2 * cos.shape[-1]
    first, second = (x[..., 0:size:2], x[..., 1:size:2]) if interleaved else x[..., :size].chunk(2, -1)
    a, b = first * cos - second * sin, second * cos + first * sin
    pairs = torch.stack((a, b), -1).flatten(-2) if interleaved else torch.cat((a, b), -1)
    return torch.cat((pairs, x[..., size:]), -1)


class Cache(unittest.TestCase):
    def setUp(self):
        torch.manual_seed(0)

    def assert_close(self, own, expected):
        torch.testing.assert_close(own.double(), expected.double(), rtol=1e-5, atol=1e-5)

    def new_cache(self, paged):
        if not paged:
            return torch.randn(2, BATCH, ROOM, KEY_HEADS, SIZE), None
        order = torch.randperm(BATCH * ROOM // PAGE).to(torch.int32)
        return torch.randn(2, order.numel(), PAGE, KEY_HEADS, SIZE), order.view(BATCH, -1)

    @staticmethod
    def whole(cache, table):
        return cache if table is None else cache[table.long()].flatten(1, 2)

    def test_reads_a_cache_like_flash_attn(self):
        lengths = torch.tensor([0, 17, ROOM], dtype=torch.int32)
        for paged in (False, True):
            for causal, window_size in ((False, (-1, -1)), (True, (-1, -1)), (True, (9, 0))):
                with self.subTest(paged=paged, causal=causal, window_size=window_size):
                    (k, v), table = self.new_cache(paged)
                    q = torch.randn(BATCH, 2, HEADS, SIZE)
                    names = {"page_table": table} if causal else {"block_table": table}
                    out, lse = KERNEL.flash_attn_with_kvcache(q, k, v, cache_seqlens=lengths, causal=causal,
                                                              window_size=window_size, return_softmax_lse=True, **names)
                    expected, sums = formula(q, self.whole(k, table), self.whole(v, table), lengths, causal,
                                             window_size[0] + 1)
                    self.assert_close(out, expected)
                    self.assert_close(lse, sums)

    def test_appends_and_turns_like_flash_attn(self):
        before = torch.tensor([0, 17, ROOM - 3], dtype=torch.int32)
        cos, sin = torch.randn(ROOM, SIZE // 4), torch.randn(ROOM, SIZE // 4)
        for paged in (False, True):
            for interleaved in (False, True):
                with self.subTest(paged=paged, interleaved=interleaved):
                    (k, v), table = self.new_cache(paged)
                    q = torch.randn(BATCH, 3, HEADS, SIZE)
                    new_k, new_v = torch.randn(2, BATCH, 3, KEY_HEADS, SIZE)
                    positions = before[:, None].long() + torch.arange(3)
                    expected_k, expected_v = (self.whole(x, table).clone() for x in (k, v))
                    rows = torch.arange(BATCH)[:, None]
                    expected_k[rows, positions] = turned(new_k, cos, sin, positions, interleaved)
                    expected_v[rows, positions] = new_v
                    out = KERNEL.flash_attn_with_kvcache(q, k, v, new_k, new_v, cos, sin, before, block_table=table,
                                                         causal=True, rotary_interleaved=interleaved)
                    self.assert_close(self.whole(k, table), expected_k)
                    self.assertTrue(torch.equal(self.whole(v, table), expected_v))
                    expected, _ = formula(turned(q, cos, sin, positions, interleaved), expected_k, expected_v,
                                          before + 3)
                    self.assert_close(out, expected)

    def test_an_int_is_a_length_of_all(self):
        (k, v), _ = self.new_cache(False)
        q = torch.randn(BATCH, 1, HEADS, SIZE)
        self.assert_close(KERNEL.flash_attn_with_kvcache(q, k, v, cache_seqlens=20),
                          formula(q, k, v, torch.full((BATCH,), 20))[0])
        self.assert_close(KERNEL.flash_attn_with_kvcache(q, k, v), formula(q, k, v, torch.full((BATCH,), ROOM))[0])

    def test_what_it_cannot_do_is_refused_by_name(self):
        (k, v), table = self.new_cache(True)
        q = torch.randn(BATCH, 1, HEADS, SIZE)
        lengths = torch.full((BATCH,), 20, dtype=torch.int32)
        for name, arguments in (("cache_batch_idx", {"cache_batch_idx": lengths}),
                                ("cache_leftpad", {"cache_leftpad": lengths}),
                                ("rotary_cos", {"rotary_cos": torch.ones(4, 4)}),
                                ("page_table", {"page_table": table}),
                                ("window_size", {"window_size": (3, 3)}),
                                ("alibi_slopes", {"alibi_slopes": torch.ones(HEADS)})):
            with self.subTest(name), self.assertRaisesRegex(ValueError, rf"\[attention\] {name}: expected"):
                KERNEL.flash_attn_with_kvcache(q, k, v, cache_seqlens=lengths, block_table=table, **arguments)
        with self.assertRaisesRegex(ValueError, r"\[attention\] cache_seqlens: expected"):
            KERNEL.flash_attn_with_kvcache(q, k, v, q[:, :, :2], q[:, :, :2], block_table=table)

    def test_a_decode_step_compiles_without_a_break(self):
        cache = torch.zeros(2, BATCH, KEY_HEADS, ROOM, SIZE)
        lengths = torch.tensor([1, 5, 30], dtype=torch.int32)
        q, new = torch.randn(BATCH, 1, HEADS, SIZE), torch.randn(2, BATCH, 1, KEY_HEADS, SIZE)

        def step(q, k, v, key, value, lengths):
            return KERNEL.attention_append(q, k, v, key, value, lengths) * 2

        own, eager = cache.clone(), cache.clone()
        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        self.assertTrue(torch.equal(compiled(q, *new, *own, lengths), step(q, *new, *eager, lengths)))
        self.assertTrue(torch.equal(own, eager))
        self.assertFalse(torch.equal(own, cache))


if __name__ == "__main__":
    unittest.main()
