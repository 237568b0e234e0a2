#!/usr/bin/env python3
"""Prompts and their gradients through the package, beside FlashAttention 3 and cuDNN, by turns in one run on one GPU. A
row of JSON each, for bench/results/<machine>/attention_prompts.jsonl.

    GRAFT_BUILD=<build folder> python bench/cuda/attention_peers.py [forward] [backward]

FlashAttention 3 is its hopper/ folder built for bfloat16 (module flash_attn_interface), or for forward alone the wheel
fa3-fwd. Contenders take turns, shape by shape, in an order that changes from round to round, so that neither it nor what
the card was doing before decides; the clock and the power that were seen at the end of each turn are in the row."""

import ctypes
import json
import os
import pathlib
import random
import statistics
import sys

import torch
from kernels import get_local_kernel
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

try:
    from flash_attn_interface import flash_attn_func
    FLASH = "fa3"
except ImportError:
    from fa3_fwd_interface import flash_attn_func
    FLASH = "fa3_fwd"

PACKAGE = pathlib.Path(os.environ["GRAFT_BUILD"]) / "share/graft/hub/graft-kernels/attention"
# B, S, heads, key heads, D, causal
FORWARD = [(2, 4096, 32, 32, 128, True), (1, 16384, 32, 32, 128, True), (2, 4096, 32, 8, 128, True),
           (2, 4096, 32, 32, 64, True), (1, 16384, 32, 32, 64, True), (1, 2048, 32, 8, 64, True),
           (2, 4096, 32, 32, 128, False), (1, 16384, 32, 32, 128, False), (2, 4096, 32, 32, 64, False)]
BACKWARD = [shape for shape in FORWARD if shape[1] != 2048 and (shape[1] == 4096 or shape[4] == 128)]
ROUNDS = 8
TURN_MS = 30  # of work in a turn
FLUSH_BYTES = 512 << 20


class Gauge:
    """The SM clock in MHz and the card's draw in watts, by NVIDIA's management library."""

    def __init__(self):
        self.library = ctypes.CDLL("libnvidia-ml.so.1")
        self.library.nvmlInit_v2()
        self.card = ctypes.c_void_p()
        self.library.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(self.card))

    def read(self):
        clock, milliwatts = ctypes.c_uint(), ctypes.c_uint()
        self.library.nvmlDeviceGetClockInfo(self.card, 1, ctypes.byref(clock))
        self.library.nvmlDeviceGetPowerUsage(self.card, ctypes.byref(milliwatts))
        return clock.value, milliwatts.value // 1000


def forward_calls(kernel, query, key, value, causal):
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))

    def cudnn():
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return functional.scaled_dot_product_attention(q, k, v, is_causal=causal,
                                                           enable_gqa=q.shape[1] != k.shape[1]).transpose(1, 2)

    def flash():
        out = flash_attn_func(query, key, value, causal=causal)
        return out[0] if isinstance(out, tuple) else out

    return {"graft": lambda: kernel.attention_train(query, k, v, causal=causal)[0], FLASH: flash, "cudnn": cudnn}


def backward_calls(kernel, query, key, value, causal):
    inputs = [x.requires_grad_() for x in (query, key, value)]
    grad = torch.randn_like(query)

    def backward(forward):
        out = forward()
        return lambda: torch.autograd.grad(out, inputs, grad, retain_graph=True)

    return {name: backward(call) for name, call in forward_calls(kernel, query, key, value, causal).items()}


def time_turn(call, flush, gauge, runs):
    """Median microseconds of the device, caches flushed before each run; and what the gauge said while it worked."""
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(runs)]
    for start, end in events:
        flush.zero_()
        start.record()
        call()
        end.record()
    seen = gauge.read()
    torch.cuda.synchronize()
    return 1e3 * statistics.median(start.elapsed_time(end) for start, end in events), seen


def largest_difference(results, others):
    results, others = ((x,) if torch.is_tensor(x) else x for x in (results, others))
    return max((float((x.float() - y.float()).norm() / y.float().norm()) for x, y in zip(results, others)))


def measure(variant, shape, calls, gauge, rounds=ROUNDS):
    batch, length, heads, key_heads, size, causal = shape
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")
    differences = {name: largest_difference(call(), calls[FLASH]()) for name, call in calls.items() if name != FLASH}
    if max(differences.values()) > 2e-2:
        raise ValueError(f"{variant} {shape}: expected results alike to 2e-2, got {differences}")
    runs = {name: max(5, int(TURN_MS * 1e3 / time_turn(call, flush, gauge, 5)[0])) for name, call in calls.items()}
    us, seen = {name: [] for name in calls}, {name: [] for name in calls}
    for number in range(rounds):
        for name in random.Random(number).sample(list(calls), len(calls)):
            time, at = time_turn(calls[name], flush, gauge, min(runs[name], 200))
            us[name].append(time)
            seen[name].append(at)
    flops = (2 if causal else 4) * (2.5 if variant == "backward" else 1) * batch * heads * length * length * size
    median = {name: statistics.median(values) for name, values in us.items()}
    return {"op": "attention", "variant": f"{variant}, {'causal' if causal else 'full'}", "dtype": "bfloat16",
            "shape": f"B{batch}_S{length}_H{heads}/{key_heads}_D{size}",
            "us": {name: round(value, 1) for name, value in median.items()},
            "TFLOPps": {name: round(flops / value / 1e6, 1) for name, value in median.items()},
            "TFLOPps of each turn": {name: [round(flops / x / 1e6) for x in values] for name, values in us.items()},
            "MHz": {name: round(statistics.median(at[0] for at in values)) for name, values in seen.items()},
            "W": {name: round(statistics.median(at[1] for at in values)) for name, values in seen.items()},
            "rounds": rounds, "cold_L2": True, "machine": torch.cuda.get_device_name(), "torch": torch.__version__,
            "commit": os.environ.get("GRAFT_BENCH_COMMIT", "unknown")}


def tensors(shape):
    batch, length, heads, key_heads, size, _ = shape
    return (torch.randn(batch, length, h, size, device="cuda", dtype=torch.bfloat16)
            for h in (heads, key_heads, key_heads))


def main(which):
    kernel, gauge = get_local_kernel(PACKAGE, backend="cuda"), Gauge()
    torch.manual_seed(0)
    if "forward" in which:
        with torch.no_grad():
            for shape in FORWARD:
                calls = forward_calls(kernel, *tensors(shape), shape[-1])
                print(json.dumps(measure("prompt", shape, calls, gauge)), flush=True)
    if "backward" in which:
        for shape in BACKWARD:
            calls = backward_calls(kernel, *tensors(shape), shape[-1])
            print(json.dumps(measure("backward", shape, calls, gauge)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or ["forward", "backward"])
