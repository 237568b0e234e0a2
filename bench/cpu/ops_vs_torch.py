#!/usr/bin/env python3
"""Norms, activations and rotary embedding on the CPU: our packages, the eager ops and torch.compile in one run, taking
turns.

    GRAFT_BUILD=build .venv/bin/python bench/cpu/ops_vs_torch.py [--rounds 7] [--threads 2] [--out FILE] [--ops A,B]

Everything is called from Python, outputs are allocated by each call, inputs stay in the cache where they fit. "Eager" is
what transformers runs (its LlamaRMSNorm, its activation classes); torch.compile gets the same functions and has compiled
before it is timed. `clone` is x.clone(), what it costs to read x and fill a new tensor of its size. One JSON line per
row; medians of the rounds, each of them the mean of enough calls for 20 ms. With --ops only those are measured, and the
other rows of the file stay."""

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
TOKENS = [1, 512, 4096]  # of rotary embedding
QUERY_HEADS, KEY_HEADS, HEAD_DIM = 32, 8, 128


def eager_norm(x, weight):
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + EPS)
    return weight * wide.to(x.dtype)


def eager_add_norm(x, residual, weight):
    total = residual + x
    return eager_norm(total, weight), total


def eager_gated_norm(x, gate, weight):
    return (eager_norm(x, weight) * torch.nn.functional.silu(gate.float())).to(x.dtype)


def eager_layer_norm(x, weight, bias):
    return torch.nn.functional.layer_norm(x, weight.shape, weight, bias, EPS)


def eager_new_gelu(x):
    return 0.5 * x * (1.0 + torch.tanh(0.7978845608028654 * (x + 0.044715 * torch.pow(x, 3.0))))


def eager_fast_gelu(x):
    return 0.5 * x * (1.0 + torch.tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x)))


def eager_silu_and_mul(x):
    half = x.shape[-1] // 2
    return torch.nn.functional.silu(x[..., :half]) * x[..., half:]


def rotate_half(x):
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


def eager_rotary(query, key, cos, sin):
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return query * cos + rotate_half(query) * sin, key * cos + rotate_half(key) * sin


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


def ours_halves(function):
    def call(x):
        out = x.new_empty((*x.shape[:-1], x.shape[-1] // 2))
        function(out, x)
        return out
    return call


def random_inputs(kinds):
    """x: the full shape; xx: twice as wide; w: one row, around one; b: one row."""
    makers = {"x": lambda rows, columns: torch.randn(rows, columns),
              "xx": lambda rows, columns: torch.randn(rows, 2 * columns),
              "w": lambda rows, columns: torch.rand(columns) + 0.5, "b": lambda rows, columns: torch.randn(columns)}
    return lambda shape, dtype: tuple(makers[kind](*shape).to(dtype) for kind in kinds)


def rotary_inputs(shape, dtype):
    """Views, as a model has them: heads come after positions in memory."""
    query, key = (torch.randn(1, shape[0], heads, HEAD_DIM).to(dtype).transpose(1, 2)
                  for heads in (QUERY_HEADS, KEY_HEADS))
    angles = torch.rand(1, shape[0], HEAD_DIM // 2).repeat(1, 1, 2) * 6
    return query, key, angles.cos().to(dtype), angles.sin().to(dtype)


def cases():
    """(op, function of the eager op, ours, shapes, what makes the inputs)"""
    norm, act, rotary = (get_local_kernel(PACKAGES / name, backend="cpu") for name in ("rms-norm", "activation", "rotary"))
    one, pair, halves = random_inputs(["x"]), random_inputs(["x", "x"]), random_inputs(["xx"])
    yield "rms_norm", eager_norm, lambda x, weight: norm.rms_norm(x, weight, EPS), SHAPES, random_inputs(["x", "w"])
    yield ("add_rms_norm", eager_add_norm, lambda x, residual, weight: norm.add_rms_norm(x, residual, weight, EPS),
           SHAPES, random_inputs(["x", "x", "w"]))
    yield ("gated_rms_norm", eager_gated_norm, lambda x, gate, weight: norm.gated_rms_norm(x, gate, weight, EPS),
           SHAPES, random_inputs(["x", "x", "w"]))
    yield ("layer_norm", eager_layer_norm, lambda x, weight, bias: norm.layer_norm(x, weight, bias, EPS),
           SHAPES, random_inputs(["x", "w", "b"]))
    for name, eager in EAGER.items():
        yield name, eager, ours_of(getattr(act, name)), SHAPES, one
    yield ("silu_mul", lambda gate, up: torch.nn.functional.silu(gate) * up, ours_gated(act.silu_mul), SHAPES, pair)
    yield "silu_and_mul", eager_silu_and_mul, ours_halves(act.silu_and_mul), SHAPES, halves
    yield ("rotary", eager_rotary, rotary.apply_rotary_transformers(),
           [(tokens, QUERY_HEADS + KEY_HEADS, HEAD_DIM) for tokens in TOKENS], rotary_inputs)


def seconds(function, inputs):
    function(*inputs)
    start = time.perf_counter()
    function(*inputs)
    calls = max(3, int(0.02 / max(time.perf_counter() - start, 1e-7)))
    start = time.perf_counter()
    for _ in range(calls):
        function(*inputs)
    return (time.perf_counter() - start) / calls


def as_tuple(result):
    return result if isinstance(result, tuple) else (result,)


def measure(eager, ours, inputs, rounds):
    torch._dynamo.reset()
    ways = {"ours": ours, "eager": eager, "compiled": torch.compile(eager, dynamic=False),
            "clone": lambda x, *others: x.clone()}
    for want, got in zip(as_tuple(eager(*inputs)), as_tuple(ours(*inputs))):
        torch.testing.assert_close(got.float(), want.float(), rtol=0.05, atol=0.05)
    times = {who: [] for who in ways}
    for number in range(rounds):
        names = list(ways)
        for who in names[number % 4:] + names[:number % 4]:
            times[who].append(seconds(ways[who], inputs))
    return {who: statistics.median(values) for who, values in times.items()}


def row_of(op, shape, dtype, times):
    return {"op": op, "shape": "x".join(map(str, shape)), "dtype": str(dtype).split(".")[1], "device": "cpu",
            "median_us": round(times["ours"] * 1e6, 2), "eager_us": round(times["eager"] * 1e6, 2),
            "compiled_us": round(times["compiled"] * 1e6, 2), "clone_us": round(times["clone"] * 1e6, 2),
            "ratio_to_eager": round(times["eager"] / times["ours"], 3),
            "ratio_to_compiled": round(times["compiled"] / times["ours"], 3)}


def write(path, row):
    """Puts the row in the place of the one of the same op, shape and dtype."""
    key = lambda row: (row["op"], row["shape"], row["dtype"])  # noqa: E731
    old = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    rows = {key(line): line for line in old} | {key(row): row}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in rows.values()))


def main():
    name, best_isa = cpu_name()
    arguments = parse_arguments(name, "ops_vs_torch", __doc__,
                                lambda parser: parser.add_argument("--ops", type=lambda text: text.split(",")))
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    commit = os.environ.get("GRAFT_BENCH_COMMIT") or subprocess.run(
        ["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    with torch.inference_mode():
        for op, eager, ours, shapes, make_inputs in cases():
            if arguments.ops and op not in arguments.ops:
                continue
            for dtype in (torch.float32, torch.bfloat16):
                for shape in shapes:
                    times = measure(eager, ours, make_inputs(shape, dtype), arguments.rounds)
                    row = row_of(op, shape, dtype, times) | {
                        "threads": arguments.threads, "runs": arguments.rounds, "commit": commit,
                        "torch": torch.__version__, "load_before": round(os.getloadavg()[0], 2),
                        "machine": f"{name}, {os.cpu_count()} cores, {best_isa}"}
                    write(arguments.out, row)
                    print("{op:<14} {shape:<11} {dtype:<9} {median_us:9.1f} us  eager {ratio_to_eager:5.2f} x  "
                          "compiled {ratio_to_compiled:5.2f} x".format(**row), flush=True)


if __name__ == "__main__":
    main()
