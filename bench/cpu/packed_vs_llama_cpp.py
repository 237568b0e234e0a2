#!/usr/bin/env python3
"""SmolLM2-135M on the CPU with its weights in packed blocks: graft, llama.cpp and transformers in one run, taking turns,
on the same file and threads.

    .venv/bin/pip install --target /tmp/llama --no-deps llama-cpp-python==0.3.36 diskcache     # builds llama.cpp for this machine
        # where its AMX kernels crash: --no-cache-dir and CMAKE_ARGS="-DGGML_NATIVE=OFF -DGGML_AVX512=ON …"
    GRAFT_BUILD=build .venv/bin/python bench/cpu/packed_vs_llama_cpp.py --llama /tmp/llama [--rounds 5] [--threads 2]

Two files: the demo model (Q4_1, embedding in Q8_0) and the same in Q8_0, which tools/requantize_gguf.py writes.
llama.cpp stays in a process of its own, has run once before it is timed, and its numbers are those of its own counters,
which leave sampling out. transformers (float32, the demo model alone) is warm too. Every number of graft is from a fresh
process, sampling included. Decode: 64 tokens after a prompt of five. Prefill: 512 tokens. The first ids of graft and of
llama.cpp are printed; graft's are also compared with those of its own unpacked model. One JSON line per row; medians."""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
sys.path.insert(0, str(ROOT / "tests/integration"))
from smollm2_vs_transformers import (DECODE_TOKENS, PREFILL_TOKENS, Transformers, cpu_name, graft,  # noqa: E402
                                     parse_arguments)
from support import PROMPT, demo_model  # noqa: E402

WAYS = {"graft packed": (), "graft packed, bfloat16": ("--weights", "packed", "--dtype", "bfloat16"),
        "graft unpacked, bfloat16": ("--dtype", "bfloat16")}
LLAMA, TRANSFORMERS = "llama.cpp", "transformers float32"

# Reads a line {"ids", "new_tokens"}, answers {"prefill_seconds", "decode_seconds", "ids"}.
LLAMA_PROCESS = """
import ctypes, json, sys
sys.path.insert(0, sys.argv[1])
import llama_cpp
import numpy as np
model = llama_cpp.Llama(sys.argv[2], n_ctx=1024, n_batch=512, n_ubatch=512, n_threads=int(sys.argv[3]),
                        n_threads_batch=int(sys.argv[3]), no_perf=False, verbose=False)
context, size = model.ctx, model.n_vocab()
for line in sys.stdin:
    request = json.loads(line)
    model.reset()
    llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
    llama_cpp.llama_perf_context_reset(context)
    tokens, made = request["ids"], []
    for _ in range(request["new_tokens"]):
        array = (llama_cpp.llama_token * len(tokens))(*tokens)  # which the batch points to
        assert llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(array, len(tokens))) == 0
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, -1), (size,))
        tokens = [int(logits.argmax())]
        made += tokens
    counters = llama_cpp.llama_perf_context(context)
    print(json.dumps({"prefill_seconds": counters.t_p_eval_ms / 1e3, "decode_seconds": counters.t_eval_ms / 1e3,
                      "ids": made}), flush=True)
"""


class LlamaCpp:
    def __init__(self, site, file, threads):
        # The same file for every user of this process's stderr: llama.cpp logs there.
        self.process = subprocess.Popen([sys.executable, "-c", LLAMA_PROCESS, site, file, str(threads)],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                        text=True)

    def ask(self, ids, new_tokens):
        self.process.stdin.write(json.dumps({"ids": ids, "new_tokens": new_tokens}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def rates(self, prompt, long_prompt):
        return (DECODE_TOKENS / self.ask(prompt, DECODE_TOKENS + 1)["decode_seconds"],
                len(long_prompt) / self.ask(long_prompt, 1)["prefill_seconds"])


def graft_rates(file, options, prompt, long_prompt, threads):
    decode = graft(prompt, DECODE_TOKENS + 1, (str(file), *options), threads)
    prefill = graft(long_prompt, 1, (str(file), *options), threads)
    return decode["decode_tokens_per_second"], prefill["prefill_tokens_per_second"], decode["peak_rss_bytes"]


def check_ids(file, prompt, long_prompt, llama, threads):
    packed, unpacked = (graft(prompt, 24, (str(file), *options), threads)["generated_ids"]
                        for options in ((), ("--dtype", "float32", "--kernels", "off")))
    theirs = llama.ask(prompt, 24)["ids"]
    print(f"{file.name}: first ids packed {packed[:12]}, unpacked {unpacked[:12]}, llama.cpp {theirs[:12]}")
    if packed != unpacked:
        print("warning: packed and unpacked ids differ: see tests/integration/test_packed.py for what that may be")
    llama.ask(long_prompt, 1)  # the warm-up


def measure(turns, rounds):
    """turns: {who: function -> (decode, prefill, …)} -> {who: [results, one of each round]}, the order changing."""
    results = {who: [] for who in turns}
    for number in range(rounds):
        names = list(turns)
        for who in names[number % len(names):] + names[:number % len(names)]:
            results[who].append(turns[who]())
            decode, prefill = results[who][-1][:2]
            print(f"round {number + 1}: {who:<28} decode {decode:7.1f}  prefill {prefill:7.1f} tokens/s", flush=True)
    return results


def rows_of(results, file_type, facts):
    for index, what in enumerate(("decode", f"prefill {PREFILL_TOKENS}")):
        theirs = statistics.median(result[index] for result in results[LLAMA])
        for who, values in results.items():
            rates = [value[index] for value in values]
            row = {"op": what, "variant": who, "file": file_type, "device": "cpu", "model": "SmolLM2-135M-Instruct",
                   "median_tokens_per_second": round(statistics.median(rates), 2),
                   "min_tokens_per_second": round(min(rates), 2), "max_tokens_per_second": round(max(rates), 2),
                   "runs": len(rates), "ratio_to_llama_cpp": round(statistics.median(rates) / theirs, 3), **facts}
            if len(values[0]) > 2:
                row["peak_rss_mb"] = round(statistics.median(value[2] for value in values) / 1e6)
            yield row


def measure_file(file, file_type, peer, arguments, prompts, facts):
    prompt, long_prompt = prompts
    llama = LlamaCpp(arguments.llama, file, arguments.threads)
    check_ids(file, prompt, long_prompt, llama, arguments.threads)
    turns = {LLAMA: lambda: llama.rates(prompt, long_prompt)}
    for who, options in WAYS.items():
        turns[who] = lambda options=options: graft_rates(file, options, prompt, long_prompt, arguments.threads)
    if file_type == "Q4_1":
        turns[TRANSFORMERS] = lambda: (peer.decode(prompt), peer.prefill(long_prompt))
    rows = list(rows_of(measure(turns, arguments.rounds), file_type, facts))
    llama.process.stdin.close()
    llama.process.wait()
    return rows


def add_arguments(parser):
    parser.add_argument("--llama", required=True, help="the folder that llama-cpp-python was installed into")
    parser.add_argument("--only", choices=["Q4_1", "Q8_0"], help="one of the two files alone")
    parser.add_argument("--q8", type=pathlib.Path, help="a Q8_0 file of the demo model that is there already")


def files_of(arguments, folder):
    """(file, block format of its layers)"""
    if arguments.only != "Q8_0":
        yield demo_model(), "Q4_1"
    if arguments.only != "Q4_1":
        file = arguments.q8
        if file is None:
            file = pathlib.Path(folder) / "SmolLM2-135M-Instruct.Q8_0.gguf"
            subprocess.run([sys.executable, ROOT / "tools/requantize_gguf.py", demo_model(), file, "--type", "Q8_0"],
                           check=True)
        yield file, "Q8_0"


def main():
    name, best_isa = cpu_name()
    arguments = parse_arguments(name, "packed_vs_llama_cpp", __doc__, add_arguments)
    peer = Transformers(arguments.threads)
    prompt = peer.tokenizer(PROMPT).input_ids
    long_prompt = (peer.tokenizer((ROOT / "HACKING.md").read_text()).input_ids * 2)[:PREFILL_TOKENS]
    peer.decode(prompt)
    peer.prefill(long_prompt)
    commit = os.environ.get("GRAFT_BENCH_COMMIT") or subprocess.run(
        ["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    isa = os.environ.get("GRAFT_CPU_ISA")
    facts = {"threads": arguments.threads, "commit": commit, "torch": peer.torch.__version__,
             "llama_cpp_python": next(pathlib.Path(arguments.llama).glob("llama_cpp_python-*")).name.split("-")[1]
             .removesuffix(".dist"), "load_before": round(os.getloadavg()[0], 2),
             "machine": f"{name}, {os.cpu_count()} cores, {best_isa}" + (f", graft with {isa} alone" if isa else "")}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for file, file_type in files_of(arguments, folder):
            rows += measure_file(file, file_type, peer, arguments, (prompt, long_prompt), facts)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for row in rows:
        print(f"{row['file']} {row['op']:<12} {row['variant']:<26} {row['median_tokens_per_second']:8.1f} tokens/s  "
              f"{row['ratio_to_llama_cpp']:5.2f} x llama.cpp")


if __name__ == "__main__":
    main()
