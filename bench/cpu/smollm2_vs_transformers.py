#!/usr/bin/env python3
"""SmolLM2-135M on the CPU: graft and transformers in one run, taking turns, on the same weights and threads.

    GRAFT_BUILD=build .venv/bin/python bench/cpu/smollm2_vs_transformers.py [--rounds 5] [--threads 2] [--out FILE]

transformers stays in this process and has run once before it is timed; every number of graft is from a process of
its own, first call included. Decode: tokens per second after the first, from a prompt of five tokens. Prefill: a
prompt of 512 tokens. The ids of both are compared before anything is timed. One JSON line per row; medians.
"""

import argparse
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import time

# What graft's program sets for itself, before libtorch is loaded here: threads that wait spin briefly. On a machine
# that does anything else, transformers would lose by it, not by its own doing.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/integration"))
import reference_model  # noqa: E402
from support import PROMPT, demo_model, run_json  # noqa: E402

DECODE_TOKENS = 64
PREFILL_TOKENS = 512
GRAFT = {"graft float32": ("--dtype", "float32"), "graft bfloat16": ("--dtype", "bfloat16"),
         "graft float32, kernels off": ("--dtype", "float32", "--kernels", "off")}
PEER = "transformers float32"


class Transformers:
    def __init__(self, threads):
        import torch

        torch.set_num_threads(threads)
        self.torch = torch
        self.model, self.tokenizer = reference_model.load(demo_model())
        self.model.generation_config.eos_token_id = None

    def seconds(self, ids, new_tokens):
        inputs = self.torch.tensor([ids])
        start = time.perf_counter()
        with self.torch.inference_mode():
            out = self.model.generate(inputs, attention_mask=self.torch.ones_like(inputs), max_new_tokens=new_tokens,
                                      do_sample=False, pad_token_id=0)
        return time.perf_counter() - start, out[0, len(ids):].tolist()

    def decode(self, ids):
        return DECODE_TOKENS / (self.seconds(ids, DECODE_TOKENS + 1)[0] - self.seconds(ids, 1)[0])

    def prefill(self, ids):
        inputs = self.torch.tensor([ids])
        start = time.perf_counter()
        with self.torch.inference_mode():
            self.model(inputs, use_cache=True, logits_to_keep=1)
        return len(ids) / (time.perf_counter() - start)


def graft(ids, new_tokens, arguments, threads):
    return run_json("generate", "--prompt-ids", ",".join(map(str, ids)), "--max-new-tokens", new_tokens,
                    "--ignore-eos", *arguments, env={"OMP_NUM_THREADS": str(threads)})


def cpu_name():
    info = pathlib.Path("/proc/cpuinfo").read_text()
    name = re.search(r"model name\s*: (.*)", info)[1].strip()
    flags = set(re.search(r"flags\s*: (.*)", info)[1].split())
    best = next((flag for flag in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if flag in flags), "plain")
    return name, best


def parse_arguments(name, stem="smollm2_vs_transformers", description=__doc__, add_more=lambda parser: None):
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_more(parser)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    folder = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    parser.add_argument("--out", type=pathlib.Path,
                        default=ROOT / "bench/results" / folder / f"{stem}.jsonl")
    return parser.parse_args()


def measure(peer, prompt, long_prompt, arguments):
    """{(what, who): [tokens per second, one of each round]}; who comes after whom changes every round."""
    rates = {}
    for number in range(arguments.rounds):
        turns = [PEER, *GRAFT]
        for who in turns[number % len(turns):] + turns[:number % len(turns)]:
            if who == PEER:
                decode, prefill = peer.decode(prompt), peer.prefill(long_prompt)
            else:
                decode = graft(prompt, DECODE_TOKENS + 1, GRAFT[who], arguments.threads)["decode_tokens_per_second"]
                prefill = graft(long_prompt, 1, GRAFT[who], arguments.threads)["prefill_tokens_per_second"]
            rates.setdefault(("decode", who), []).append(decode)
            rates.setdefault((f"prefill {PREFILL_TOKENS}", who), []).append(prefill)
            print(f"round {number + 1}: {who:<28} decode {decode:7.1f}  prefill {prefill:7.1f} tokens/s", flush=True)
    return rates


def main():
    name, best_isa = cpu_name()
    arguments = parse_arguments(name)
    load_before = os.getloadavg()[0]
    if load_before > 0.5:
        print(f"warning: the load of this machine is {load_before:.2f}: others are measured too")
    peer = Transformers(arguments.threads)
    prompt = peer.tokenizer(PROMPT).input_ids
    long_prompt = (peer.tokenizer((ROOT / "HACKING.md").read_text()).input_ids * 2)[:PREFILL_TOKENS]
    expected = peer.seconds(prompt, 24)[1]  # the warm-up too
    peer.prefill(long_prompt)
    for who, options in GRAFT.items():
        ids = graft(prompt, 24, options, arguments.threads)["generated_ids"]
        if "float32" in who and ids != expected:
            raise SystemExit(f"{who}: ids differ from transformers': {ids} {expected}")
    rates = measure(peer, prompt, long_prompt, arguments)
    commit = os.environ.get("GRAFT_BENCH_COMMIT") or subprocess.run(
        ["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with arguments.out.open("w") as out:
        for (what, who), values in rates.items():
            median = statistics.median(values)
            theirs = statistics.median(rates[(what, PEER)])
            row = {"op": what, "variant": who, "device": "cpu", "model": "SmolLM2-135M-Instruct",
                   "threads": arguments.threads, "median_tokens_per_second": round(median, 2),
                   "min_tokens_per_second": round(min(values), 2), "max_tokens_per_second": round(max(values), 2),
                   "runs": len(values), "ratio_to_transformers": round(median / theirs, 3), "commit": commit,
                   "torch": peer.torch.__version__, "machine": f"{name}, {os.cpu_count()} cores, {best_isa}",
                   "load_before": round(load_before, 2)}
            out.write(json.dumps(row) + "\n")
            print(f"{what:<12} {who:<28} {median:7.1f} tokens/s  {median / theirs:5.2f} x transformers")


if __name__ == "__main__":
    main()
