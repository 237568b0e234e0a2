#!/usr/bin/env python3
"""Prompts through the package, beside FlashAttention 3 (the wheel fa3-fwd) and cuDNN, in one run on one GPU. A row of
JSON each, for bench/results/<machine>/attention_prompts.jsonl.

    GRAFT_BUILD=<build folder> python bench/cuda/attention_peers.py"""

import json
import os
import pathlib
import statistics

import torch
import triton
from fa3_fwd_interface import flash_attn_func
from kernels import get_local_kernel
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

PACKAGE = pathlib.Path(os.environ["GRAFT_BUILD"]) / "share/graft/hub/graft-kernels/attention"
# B, S, heads, key heads, D, causal
SHAPES = [(2, 4096, 32, 32, 128, True), (1, 16384, 32, 32, 128, True), (2, 4096, 32, 8, 128, True),
          (2, 4096, 32, 32, 64, True), (1, 16384, 32, 32, 64, True), (1, 2048, 32, 8, 64, True),
          (2, 4096, 32, 32, 128, False), (1, 16384, 32, 32, 128, False), (2, 4096, 32, 32, 64, False)]
ROUNDS = 3


def calls(kernel, query, key, value, causal):
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))

    def cudnn():
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            functional.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1])

    return {"graft": lambda: kernel.attention_train(query, k, v, causal=causal),
            "fa3_fwd": lambda: flash_attn_func(query, key, value, causal=causal), "cudnn": cudnn}


@torch.no_grad()
def main():
    kernel = get_local_kernel(PACKAGE, backend="cuda")
    for batch, length, heads, key_heads, size, causal in SHAPES:
        query, key, value = (torch.randn(batch, length, h, size, device="cuda", dtype=torch.bfloat16)
                             for h in (heads, key_heads, key_heads))
        every = calls(kernel, query, key, value, causal)
        times = {name: [] for name in every}
        for number in range(ROUNDS):  # forwards and back, so that none is always first on a cool card
            for name in list(every)[::-1 if number % 2 else 1]:
                times[name].append(triton.testing.do_bench(every[name], warmup=10, rep=40, return_mode="median"))
        flops = (2 if causal else 4) * batch * heads * length * length * size
        us = {name: 1e3 * statistics.median(values) for name, values in times.items()}
        print(json.dumps({"op": "attention", "variant": f"prompt, {'causal' if causal else 'full'}",
                          "dtype": "bfloat16", "shape": f"B{batch}_S{length}_H{heads}/{key_heads}_D{size}", "us": us,
                          "TFLOPps": {name: flops / value / 1e6 for name, value in us.items()},
                          "machine": torch.cuda.get_device_name(), "torch": torch.__version__}), flush=True)


if __name__ == "__main__":
    main()
