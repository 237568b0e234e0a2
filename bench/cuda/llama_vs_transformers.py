#!/usr/bin/env python3
"""A Llama-3.2-1B-shaped model on one GPU in bfloat16: graft and transformers in one run, on the same weights.

    tools/write_random_llama.py --out MODEL
    bench/cuda/llama_vs_transformers.py BUILD MODEL [--contexts 32,512,2048] [--new-tokens 128] [--out FILE]

graft: bin/graft_bench_generate of BUILD, a process without Python. Prefill: milliseconds from the prompt's ids on the
host to the first token there. Decode: tokens per second after the first, one prompt. transformers: the same prompt
lengths; eager with a growing cache, and its static cache with the compiled step that generate() makes. Medians; the
first run of everything is not counted. One JSON line per row."""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import time

import torch

ROOT = pathlib.Path(__file__).resolve().parents[2]


def graft_rows(arguments):
    build = arguments.build.resolve()
    torch_dir = pathlib.Path(torch.__file__).parent
    libraries = [build / "lib", torch_dir / "lib", *torch_dir.parent.glob("nvidia/*/lib")]
    command = [build / "bin/graft_bench_generate", arguments.model, "cuda", arguments.contexts,
               str(arguments.new_tokens), str(arguments.runs)]
    environment = dict(os.environ, LD_LIBRARY_PATH=":".join(map(str, libraries)))
    out = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    for line in out.splitlines():
        row = json.loads(line)
        yield dict(row, variant=f"graft, {row['variant']}")


class Peer:
    def __init__(self, model):
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).cuda().eval()
        self.model.generation_config.eos_token_id = None

    def prompt(self, length):
        return torch.randint(3, self.model.config.vocab_size, (1, length), device="cuda")

    def seconds(self, ids, new_tokens, **options):
        torch.cuda.synchronize()
        start = time.perf_counter()
        self.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens,
                            min_new_tokens=new_tokens, do_sample=False, pad_token_id=0, **options)
        torch.cuda.synchronize()
        return time.perf_counter() - start

    def prefill_ms(self, ids, runs):
        times = []
        for _ in range(runs + 1):
            torch.cuda.synchronize()
            start = time.perf_counter()
            with torch.inference_mode():
                self.model(ids, use_cache=True, logits_to_keep=1)
            torch.cuda.synchronize()
            times.append((time.perf_counter() - start) * 1e3)
        return statistics.median(times[1:])

    def rows(self, context, new_tokens, runs, name, **options):
        ids = self.prompt(context)
        self.seconds(ids, new_tokens + 1, **options)
        # The prefill goes into both, so it falls out.
        rates = [new_tokens / (self.seconds(ids, new_tokens + 1, **options) - self.seconds(ids, 1, **options))
                 for _ in range(runs)]
        return {"variant": name, "context": context, "prefill_ms": self.prefill_ms(ids, runs),
                "decode_tokens_per_second": statistics.median(rates), "decode_min": min(rates),
                "decode_max": max(rates), "new_tokens": new_tokens, "runs": runs}


def peer_rows(arguments, contexts):
    peer = Peer(arguments.model)
    for context in contexts:
        yield peer.rows(context, min(arguments.new_tokens, 32), 2, "transformers, eager")
    for context in contexts:
        yield peer.rows(context, arguments.new_tokens, 2, "transformers, static cache, compiled",
                        cache_implementation="static")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("build", type=pathlib.Path)
    parser.add_argument("model")
    parser.add_argument("--contexts", default="32,512,2048")
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--peers", choices=["on", "off"], default="on")
    arguments = parser.parse_args()
    contexts = [int(text) for text in arguments.contexts.split(",")]
    common = {"model": "Llama-3.2-1B shape, random weights", "dtype": "bfloat16", "torch": torch.__version__,
              "machine": torch.cuda.get_device_name(0), "commit": os.environ.get("GRAFT_BENCH_COMMIT", "unknown")}
    out = arguments.out.open("w") if arguments.out else None
    sources = [graft_rows(arguments)] + ([peer_rows(arguments, contexts)] if arguments.peers == "on" else [])
    for source in sources:
        for row in source:
            same = f"  ids {row['equal_ids']}/{row['ids']} {row['graph_refusal']}" if "ids" in row else ""
            print(f"{row['variant']:<46} {row['context']:5} prefill {row['prefill_ms']:8.2f} ms  decode "
                  f"{row['decode_tokens_per_second']:8.1f} tokens/s{same}", flush=True)
            if out:
                out.write(json.dumps({"op": "generate", **row, **common}) + "\n")
                out.flush()


if __name__ == "__main__":
    main()
