#!/usr/bin/env python3
"""A training step of the Llama-3.2-1B shape in unmodified transformers: as it is (sdpa), with Liger's kernels (the wheel
liger-kernel), with ours (graft_kernels). Each in a process of its own, by turns on one GPU; random weights, the same for
all. A row of JSON each, for bench/results/<machine>/training.jsonl.

    GRAFT_BUILD=<build folder> python bench/cuda/training_vs_liger.py [--profile FOLDER] [--tiny] [--rounds N] [WHO ...]"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
HUB = pathlib.Path(os.environ.get("GRAFT_BUILD", REPOSITORY / "build")).resolve() / "share/graft/hub"
ATTENTION = "graft-kernels/attention"
# name: the kernels of the layers, attention
WHO = {"transformers": (None, "sdpa"), "liger": ("liger", "sdpa"), "graft, sdpa": ("graft", "sdpa"),
       "graft": ("graft", ATTENTION)}
LLAMA_1B = dict(vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16,
                num_attention_heads=32, num_key_value_heads=8, head_dim=64, rope_theta=500000.0, rms_norm_eps=1e-5,
                max_position_embeddings=131072, tie_word_embeddings=True)
TINY = dict(LLAMA_1B, vocab_size=999, hidden_size=128, intermediate_size=344, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, head_dim=32)


def build(who, options):
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig
    kernels, attention = WHO[who]
    if kernels == "liger":
        from liger_kernel.transformers import apply_liger_kernel_to_llama
        apply_liger_kernel_to_llama()
    torch.manual_seed(1)
    config = LlamaConfig(**(TINY if options.tiny else LLAMA_1B), use_cache=False)
    more = {"allow_all_kernels": True} if "/" in attention else {}
    with torch.device(options.device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    if attention != "sdpa":
        model.set_attn_implementation(attention, **more)
    model.train()
    if kernels == "graft":
        sys.path.insert(0, str(REPOSITORY / "python"))
        import graft_kernels
        graft_kernels.kernelize(model)
        print(graft_kernels.report(model), file=sys.stderr)
    return model


class Timer:
    """Times of a GPU's work by events, of a CPU's by its clock."""

    def __init__(self, device):
        import torch
        self.torch, self.cuda = torch, device == "cuda"

    def now(self):
        if not self.cuda:
            return time.perf_counter()
        event = self.torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def ms(self, begin, end):
        return begin.elapsed_time(end) if self.cuda else 1e3 * (end - begin)

    def wait(self):
        if self.cuda:
            self.torch.cuda.synchronize()


def top_kernels(step, path):
    """Writes what the GPU did in two steps, the longest first."""
    from torch.profiler import ProfilerActivity, profile
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as record:
        for _ in range(2):
            step()
    events = [e for e in record.key_averages() if getattr(e, "device_type", None) and "CUDA" in str(e.device_type)]
    events.sort(key=lambda e: -e.self_device_time_total)
    lines = [f"{e.self_device_time_total / 2e3:9.3f} ms {e.count / 2:7.1f} x {e.key[:170]}" for e in events]
    pathlib.Path(path).write_text(busy_time(record) + "\n" + "\n".join(lines) + "\n")


def busy_time(record):
    """How much of the time between the first and the last kernel the GPU worked, and its longest rests."""
    spans = sorted((e.start_ns(), e.start_ns() + e.duration_ns(), e.name()[:60]) for e in
                   record.profiler.kineto_results.events() if "CUDA" in str(e.device_type()) and "#" not in e.name())
    if not spans:
        return "no kernels"
    end, busy, rests = spans[0][0], 0, []
    for begin, until, name in spans:
        rests.append((max(begin - end, 0) / 1e3, name))
        busy += max(until - max(begin, end), 0)
        end = max(end, until)
    rests.sort(reverse=True)
    longest = "; ".join(f"{us:.0f} us before {name}" for us, name in rests[:6])
    return (f"busy {busy / 1e6:.3f} of {(end - spans[0][0]) / 1e6:.3f} ms in two steps, {len(spans)} kernels; rests: {longest}; "
            f"median rest {rests[len(rests) // 2][0]:.2f} us")


def measure(who, options):
    """The row of one of WHO."""
    import torch
    import transformers
    transformers.utils.logging.set_verbosity_error()
    model, timer = build(who, options), Timer(options.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    torch.manual_seed(2)
    batch, length = (2, 64) if options.tiny else (4, 2048)
    ids = torch.randint(0, model.config.vocab_size, (batch, length)).to(options.device)
    losses, marks = [], []

    def step():
        begin = timer.now()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        middle = timer.now()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        marks.append((begin, middle, timer.now()))
        losses.append(loss.detach())

    for number in range(options.warmup + options.steps):
        if number == options.warmup and timer.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        step()
    timer.wait()
    timed = marks[options.warmup:]
    both = [timer.ms(begin, middle) for begin, middle, _ in timed]
    whole = [timer.ms(begin, end) for begin, _, end in timed]
    row = {"who": who, "step_ms": statistics.median(whole), "forward_backward_ms": statistics.median(both),
           "min_ms": min(whole), "max_ms": max(whole), "steps": len(whole), "tokens": batch * length,
           "losses": [round(loss.item(), 4) for loss in losses[:8]]}
    if timer.cuda:
        row["peak_GB"] = torch.cuda.max_memory_allocated() / 1e9
        row["machine"] = torch.cuda.get_device_name()
    if options.profile:
        top_kernels(step, pathlib.Path(options.profile) / f"{who.replace(', ', '_')}.txt")
    return {**row, "torch": torch.__version__, "transformers": transformers.__version__}


def in_process(who, options):
    environment = {**os.environ, "GRAFT_HUB_DIR": str(HUB), "HF_HUB_OFFLINE": "1",
                   "LOCAL_KERNELS": f"{ATTENTION}={HUB / ATTENTION}"}
    arguments = [sys.executable, __file__, "--one", who, "--device", options.device, "--steps", str(options.steps),
                 "--warmup", str(options.warmup)]
    arguments += ["--tiny"] if options.tiny else []
    arguments += ["--profile", options.profile] if options.profile else []
    answer = subprocess.run(arguments, env=environment, stdout=subprocess.PIPE, text=True)
    if answer.returncode:
        print(f"{who}: failed", file=sys.stderr)
        return None
    return json.loads(answer.stdout.splitlines()[-1])


def joined(rows):
    """One row of several rounds: medians, the losses of the first."""
    row = dict(rows[0], rounds=len(rows), commit=os.environ.get("GRAFT_BENCH_COMMIT", "unknown"))
    for name in ("step_ms", "forward_backward_ms"):
        row[name] = round(statistics.median(each[name] for each in rows), 2)
    row["min_ms"], row["max_ms"] = (round(pick(each[key] for each in rows), 2)
                                    for pick, key in ((min, "min_ms"), (max, "max_ms")))
    row["tokens_per_second"] = round(1e3 * row["tokens"] / row["step_ms"])
    row["forward_backward_tokens_per_second"] = round(1e3 * row["tokens"] / row["forward_backward_ms"])
    if "peak_GB" in row:
        row["peak_GB"] = round(row["peak_GB"], 2)
    return row


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("who", nargs="*", default=[])
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--profile", help="folder for what the GPU did in a step of each")
    parser.add_argument("--tiny", action="store_true", help="a small model: does it work at all?")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--warmup", type=int, default=4)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options)))
        return
    who = options.who or list(WHO)
    rows = {name: [] for name in who}
    for number in range(options.rounds):  # forwards and back, so that none is always first on a cool card
        for name in who[::-1 if number % 2 else 1]:
            rows[name].append(in_process(name, options))
    for name, several in rows.items():
        if all(several):
            print(json.dumps({"model": "tiny" if options.tiny else "Llama-3.2-1B shape", "dtype": "bfloat16",
                              "shape": "B2_S64" if options.tiny else "B4_S2048", **joined(several)}), flush=True)


if __name__ == "__main__":
    main()
