#!/usr/bin/env python3
"""Attention on the CPU: our package and torch's scaled_dot_product_attention in one run, taking turns.

    GRAFT_BUILD=build .venv/bin/python bench/cpu/attention_vs_torch.py [--only prefill|decode|backward] [--rounds 5]
                                                                       [--threads 2] [--out FILE]

Both are called from Python on the same tensors and threads; results are compared before anything is timed. A round is
one call of each, or enough of them for 20 ms; medians of the rounds. Decode reads a new cache at every call, out of 1.5
GiB of them, and is held against a plain read of the same bytes (AVX-512, the same number of threads) in the same turns:
that read is the ceiling. --only measures one part and leaves the other rows of the file as they are."""

import ctypes
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # what graft's program sets

import torch  # noqa: E402
from kernels import get_local_kernel  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGES = pathlib.Path(os.environ["GRAFT_BUILD"]).resolve() / "share/graft/hub/graft-kernels"
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from smollm2_vs_transformers import cpu_name, parse_arguments  # noqa: E402

BYTES_OF_CACHES = 3 << 29
PARTS = ("prefill", "decode", "backward")

READ_SOURCE = r"""
#include <immintrin.h>
#include <pthread.h>
#include <stdint.h>

typedef struct { const char* from; int64_t bytes; int sum; } part;  // of one thread

static void* read_part(void* argument) {
  part* p = argument;
  __m512i a = _mm512_setzero_si512(), b = a, c = a, d = a;
  for (int64_t i = 0; i + 256 <= p->bytes; i += 256) {
    a = _mm512_xor_si512(a, _mm512_loadu_si512(p->from + i));
    b = _mm512_xor_si512(b, _mm512_loadu_si512(p->from + i + 64));
    c = _mm512_xor_si512(c, _mm512_loadu_si512(p->from + i + 128));
    d = _mm512_xor_si512(d, _mm512_loadu_si512(p->from + i + 192));
  }
  p->sum = _mm512_reduce_or_epi32(_mm512_or_si512(_mm512_or_si512(a, b), _mm512_or_si512(c, d)));
  return 0;
}

int read_all(const char* from, int64_t bytes, int threads) {
  pthread_t ids[64];
  part parts[64];
  int sum = 0;
  for (int i = 0; i < threads; ++i) {
    parts[i] = (part){from + bytes / threads * i, bytes / threads, 0};
    if (i > 0) pthread_create(&ids[i], 0, read_part, &parts[i]);
  }
  read_part(&parts[0]);
  for (int i = 0; i < threads; ++i) {
    if (i > 0) pthread_join(ids[i], 0);
    sum |= parts[i].sum;
  }
  return sum;
}
"""


def build_reader(folder):
    source, library = pathlib.Path(folder) / "read.c", pathlib.Path(folder) / "read.so"
    source.write_text(READ_SOURCE)
    subprocess.run(["cc", "-O3", "-mavx512f", "-mavx512bw", "-shared", "-fPIC", "-pthread", source, "-o", library],
                   check=True)
    reader = ctypes.CDLL(str(library)).read_all
    reader.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int]
    return reader


def seconds(function):
    start = time.perf_counter()
    function()
    once = time.perf_counter() - start
    calls = max(1, int(0.02 / max(once, 1e-7)))
    start = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - start) / calls


def take_turns(ways, rounds):
    """{who: function} -> {who: median seconds}; who comes after whom changes every round."""
    times = {who: [] for who in ways}
    names = list(ways)
    for who in names:
        ways[who]()
    for number in range(rounds):
        for who in names[number % len(names):] + names[:number % len(names)]:
            times[who].append(seconds(ways[who]))
    return {who: statistics.median(values) for who, values in times.items()}


def sdpa(query, key, value, causal=False):
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=causal,
                                                            enable_gqa=query.shape[1] != key.shape[1])


def tolerance(dtype):
    return {"rtol": 0.02, "atol": 0.02} if dtype == torch.bfloat16 else {"rtol": 1e-4, "atol": 1e-4}


def inputs(batch, length, heads, key_heads, size, dtype):
    return (torch.randn(batch, heads, length, size, dtype=dtype),
            *(torch.randn(batch, key_heads, length, size, dtype=dtype) for _ in range(2)))


def prefill_rows(package, arguments):
    for dtype in (torch.bfloat16, torch.float32):
        for size in (64, 128):
            for length in (512, 2048, 4097):
                for heads, key_heads in ((4, 4), (8, 2)) if length < 4096 else ((4, 4),):
                    for causal in (True, False):
                        query, key, value = inputs(1, length, heads, key_heads, size, dtype)
                        turned = query.transpose(1, 2)
                        ways = {"ours": lambda: package.attention(turned, key, value, causal=causal),
                                "torch": lambda: sdpa(query, key, value, causal)}
                        torch.testing.assert_close(ways["ours"]().transpose(1, 2), ways["torch"](), **tolerance(dtype))
                        times = take_turns(ways, arguments.rounds)
                        work = 4 * heads * size * length ** 2 * (0.5 if causal else 1)
                        yield {"op": "prefill", "shape": f"B1 S{length} H{heads}/{key_heads} D{size}",
                               "variant": "causal" if causal else "full", "dtype": dtype, "times": times,
                               "TFLOPps": round(work / times["ours"] / 1e12, 3)}


def memory_of_caches(dtype):
    """Random numbers, the same 64 MiB again and again."""
    block = torch.randn((1 << 26) // dtype.itemsize).to(dtype)
    return block.repeat(BYTES_OF_CACHES // (1 << 26))


def decode_rows(package, arguments, reader):
    for dtype in (torch.bfloat16, torch.float32):
        memory = memory_of_caches(dtype)
        for batch in (1, 8):
            for size in (64, 128):
                for heads, key_heads in ((32, 8), (8, 8)):
                    length = 4096
                    sizes = (2, batch, key_heads, length, size)
                    one = torch.Size(sizes).numel() * dtype.itemsize
                    count = BYTES_OF_CACHES // one
                    caches = memory[:count * one // dtype.itemsize].view(count, *sizes)
                    query = torch.randn(batch, 1, heads, size, dtype=dtype)
                    turn = {"ours": 0, "torch": 0}

                    def next_cache(who):
                        turn[who] = (turn[who] + 1) % caches.shape[0]
                        return caches[turn[who]]

                    def ours():
                        cache = next_cache("ours")
                        return package.attention(query, cache[0], cache[1])

                    def theirs():
                        cache = next_cache("torch")
                        return sdpa(query.transpose(1, 2), cache[0], cache[1])

                    torch.testing.assert_close(ours(), theirs().transpose(1, 2), **tolerance(dtype))
                    # All caches in one call: its threads are new ones and their start would be counted.
                    times = take_turns({"ours": ours, "torch": theirs, "read": lambda: reader(
                        caches.data_ptr(), caches.shape[0] * one, arguments.threads)}, arguments.rounds)
                    times["read"] /= caches.shape[0]
                    yield {"op": "decode", "shape": f"B{batch} T{length} H{heads}/{key_heads} D{size}", "variant": "",
                           "dtype": dtype, "times": times, "GBps": round(one / times["ours"] / 1e9, 2),
                           "ceiling_GBps": round(one / times["read"] / 1e9, 2),
                           "share_of_ceiling": round(times["read"] / times["ours"], 3)}


def backward_rows(package, arguments):
    for dtype in (torch.bfloat16, torch.float32):
        for size in (64, 128):
            for heads, key_heads in ((4, 4), (8, 2)):
                for causal in (True, False):
                    length = 1024
                    query, key, value = (x.requires_grad_() for x in inputs(1, length, heads, key_heads, size, dtype))
                    with torch.enable_grad():
                        theirs = sdpa(query, key, value, causal)
                        ours, _ = package.attention_train(query.transpose(1, 2), key, value, causal=causal)
                    incoming = torch.randn_like(theirs)
                    ways = {"ours": lambda: torch.autograd.grad(ours, (query, key, value), incoming.transpose(1, 2),
                                                                retain_graph=True),
                            "torch": lambda: torch.autograd.grad(theirs, (query, key, value), incoming,
                                                                 retain_graph=True)}
                    for mine, other in zip(ways["ours"](), ways["torch"]()):
                        torch.testing.assert_close(mine, other, rtol=0.05, atol=0.05)
                    times = take_turns(ways, arguments.rounds)
                    work = 10 * heads * size * length ** 2 * (0.5 if causal else 1)
                    yield {"op": "backward", "shape": f"B1 S{length} H{heads}/{key_heads} D{size}",
                           "variant": "causal" if causal else "full", "dtype": dtype, "times": times,
                           "TFLOPps": round(work / times["ours"] / 1e12, 3)}


def measure(package, arguments, facts):
    """The rows of the parts asked for, printed as they come."""
    with tempfile.TemporaryDirectory() as folder:
        reader = build_reader(folder)
        parts = {"prefill": lambda: prefill_rows(package, arguments),
                 "decode": lambda: decode_rows(package, arguments, reader),
                 "backward": lambda: backward_rows(package, arguments)}
        for part in [arguments.only] if arguments.only else PARTS:
            for row in parts[part]():
                times = row.pop("times")
                row["dtype"] = str(row["dtype"]).split(".")[1]
                row.update({"device": "cpu", "median_us": round(times["ours"] * 1e6, 1),
                            "torch_us": round(times["torch"] * 1e6, 1),
                            "ratio_to_torch": round(times["torch"] / times["ours"], 3), **facts})
                share = f"  {100 * row['share_of_ceiling']:.0f} % of a read" if "share_of_ceiling" in row else ""
                print(f"{row['op']:<9} {row['shape']:<24} {row['variant']:<7} {row['dtype']:<9} "
                      f"{row['median_us']:10.1f} us  torch {row['ratio_to_torch']:5.2f} x{share}", flush=True)
                yield row


def main():
    name, best_isa = cpu_name()
    arguments = parse_arguments(name, "attention_vs_torch", __doc__,
                                lambda parser: parser.add_argument("--only", choices=PARTS))
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    commit = os.environ.get("GRAFT_BENCH_COMMIT") or subprocess.run(
        ["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    isa = os.environ.get("GRAFT_CPU_ISA")
    facts = {"threads": arguments.threads, "runs": arguments.rounds, "commit": commit, "torch": torch.__version__,
             "load_before": round(os.getloadavg()[0], 2),
             "machine": f"{name}, {os.cpu_count()} cores, {best_isa}" + (f", graft with {isa} alone" if isa else "")}
    package = get_local_kernel(PACKAGES / "attention", backend="cpu")
    with torch.no_grad():
        rows = list(measure(package, arguments, facts))
    if arguments.only and arguments.out.exists():
        kept = [json.loads(line) for line in arguments.out.read_text().splitlines()]
        rows += [row for row in kept if row["op"] != arguments.only]
        rows.sort(key=lambda row: PARTS.index(row["op"]))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
