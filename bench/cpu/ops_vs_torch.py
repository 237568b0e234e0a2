#!/usr/bin/env python3
"""RMSNorm and activations on the CPU: our packages, the eager ops and torch.compile in one run, taking turns.

    GRAFT_BUILD=build .venv/bin/python bench/cpu/ops_vs_torch.py [--rounds 7] [--threads 2] [--out FILE]

Everything is called from Python, outputs are allocated by each call, inputs stay in the cache where they fit. "Eager" is
what transformers runs (its LlamaRMSNorm, its activation classes); torch.compile gets the same functions and has compiled
before it is timed. One JSON line per row; medians of the rounds, each of them the mean of enough calls for 20 ms."""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # what graft's program sets

import torch  # noqa: E402
from kernels import get_local_kernel  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGES = pathlib.Path(os.environ["GRAFT_BUILD"]).resolve() / "share/graft/hub/graft-kernels"
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from smollm2_vs_transformers import cpu_name, parse_arguments  # noqa: E402

EPS = 1e-6
SHAPES = [(1, 2048), (512, 2048), (4096, 4096)]


def eager_norm(x, weight):
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)
    return weight * wide.to(x.dtype)


def eager_new_gelu(x):
    return 0.5 * x * (1.0 + torch.tanh(0.7978845608028654 * (x + 0.044715 * torch.pow(x, 3.0))))


def eager_fast_gelu(x):
    return 0.5 * x * (1.0 + torch.tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x)))


EAGER = {"silu": torch.nn.functional.silu, "gelu": torch.nn.functional.gelu,
         "gelu_tanh": lambda x: torch.nn.functional.gelu(x, approximate="tanh"), "gelu_new": eager_new_gelu,
         "gelu_fast": eager_fast_gelu, "gelu_quick": lambda x: x * torch.sigmoid(1.702 * x)}


def ours_of(function):
    def call(x):
        out = torch.empty_like(x)
        function(out, x)
        return out
    return call


def ours_gated(function):
    def call(gate, up):
        out = torch.empty_like(gate)
        function(out, gate, up)
        return out
    return call


def cases():
    """(op, function of the eager op, ours, number of inputs of the full shape)"""
    norm, act = (get_local_kernel(PACKAGES / name, backend="cpu") for name in ("rms-norm", "activation"))
    yield "rms_norm", eager_norm, lambda x, weight: norm.rms_norm(x, weight, EPS)
    for name, eager in EAGER.items():
        yield name, eager, ours_of(getattr(act, name))
    yield "silu_mul", lambda gate, up: torch.nn.functional.silu(gate) * up, ours_gated(act.silu_mul)


def seconds(function, inputs):
    function(*inputs)
    start = time.perf_counter()
    function(*inputs)
    calls = max(3, int(0.02 / max(time.perf_counter() - start, 1e-7)))
    start = time.perf_counter()
    for _ in range(calls):
        function(*inputs)
    return (time.perf_counter() - start) / calls


def measure(name, eager, ours, inputs, rounds):
    torch._dynamo.reset()
    ways = {"ours": ours, "eager": eager, "compiled": torch.compile(eager, dynamic=False)}
    want, got = eager(*inputs).float(), ours(*inputs).float()
    torch.testing.assert_close(got, want, rtol=0.05, atol=0.05)
    times = {who: [] for who in ways}
    for number in range(rounds):
        names = list(ways)
        for who in names[number % 3:] + names[:number % 3]:
            times[who].append(seconds(ways[who], inputs))
    return {who: statistics.median(values) for who, values in times.items()}


def main():
    name, best_isa = cpu_name()
    arguments = parse_arguments(name, "ops_vs_torch", __doc__)
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    commit = os.environ.get("GRAFT_BENCH_COMMIT") or subprocess.run(
        ["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    rows = []
    with torch.inference_mode():
        for dtype in (torch.float32, torch.bfloat16):
            for op, eager, ours in cases():
                for shape in SHAPES:
                    x = torch.randn(shape, dtype=dtype)
                    second = {"rms_norm": lambda: torch.rand(shape[-1], dtype=dtype),
                              "silu_mul": lambda: torch.randn(shape, dtype=dtype)}.get(op)
                    inputs = (x,) if second is None else (x, second())
                    times = measure(op, eager, ours, inputs, arguments.rounds)
                    rows.append({"op": op, "shape": "x".join(map(str, shape)), "dtype": str(dtype).split(".")[1],
                                 "device": "cpu", "median_us": round(times["ours"] * 1e6, 2),
                                 "eager_us": round(times["eager"] * 1e6, 2),
                                 "compiled_us": round(times["compiled"] * 1e6, 2),
                                 "ratio_to_eager": round(times["eager"] / times["ours"], 3),
                                 "ratio_to_compiled": round(times["compiled"] / times["ours"], 3),
                                 "threads": arguments.threads, "runs": arguments.rounds, "commit": commit,
                                 "torch": torch.__version__, "load_before": round(os.getloadavg()[0], 2),
                                 "machine": f"{name}, {os.cpu_count()} cores, {best_isa}"})
                    print("{op:<10} {shape:<10} {dtype:<9} {median_us:9.1f} us  eager {ratio_to_eager:5.2f} x  "
                          "compiled {ratio_to_compiled:5.2f} x".format(**rows[-1]), flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
