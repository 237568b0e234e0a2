#!/usr/bin/env python3
"""Writes the tables of docs/benchmarks.md, and README.md's, from the JSON lines under bench/results/. With --check
it only says whether they are up to date.

    tools/benchmark_tables.py [--check]"""

import json
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench/results"
# The rows of the H200 that tell most: shapes of real models, and where the kernels are weakest.
RMS_NORM = ["1x4096", "32x4096", "32768x256", "8192x4096", "8192x5120", "8192x8192", "8192x16384", "8192x32768",
            "4096x65536", "2048x131072", "1024x262144", "27030x24x128"]
# The rows of the H100: where Hopper's own paths are, and the norms beside RMSNorm.
NORMS = ["8192x4096", "8192x5120", "8192x16384", "8192x32768", "4096x65536", "2048x131072", "1024x262144",
         "27030x24x128", "262144x128", "8192x1024"]
ACTIVATION = ["8192x14336", "1x14336"]
ACTIVATION_H100 = [*ACTIVATION, "8192x2880", "32x2880", "1x2880"]
NORM_ROTARY = ["B4 S4096 32+8 heads of 128", "B4 S4096 32+8 heads of 64", "B1 S27030 24+24 heads of 128",
               "B4 S4096 8+4 heads of 256", "B1 S1 32+8 heads of 128", "B32 S1 32+8 heads of 128", "B1 S1 8+4 heads of 256"]


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def table(head, body):
    return "\n".join(["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |",
                      *("| " + " | ".join(map(str, line)) + " |" for line in body)])


def kernel_rows(path, shapes):
    for row in rows(path):
        if row["shape"] in shapes and row["dtype"] == "BFloat16":
            peers = ", ".join(f"{peer['name']} {peer['median_us']:.1f} µs ({peer['ratio']:.2f}×)"
                              for peer in row.get("peers", []))
            name = f"`{row['op']}`" + (f", {row['variant'].replace('_', ' ')}" if row["variant"] else "")
            yield [name, row["shape"], f"{row['median_us']:.1f}", f"{row['GBps']:.0f}",
                   f"{100 * row['share_of_ceiling']:.0f} %", peers]


def kernel_table(name, shapes, machine="h200"):
    path = RESULTS / f"{machine}/kernels_{name}_bench.jsonl"
    first = rows(path)[0]
    head = ["op, variant", "shape", "median µs", "GB/s", "share of the copy kernel", "peers, and how many times longer"]
    return (f"{first['machine']}; commit {first['commit']}; bfloat16; cold L2: {first['cold_L2']}; "
            f"{first['runs']} runs.\n\n" + table(head, kernel_rows(path, shapes)))


def commits(lines):
    every = list(dict.fromkeys(line["commit"] for line in lines))
    return ("commit " if len(every) == 1 else "commits ") + ", ".join(every)


def work_table(name, machine="h200", alone=False, op=None):
    """Every bfloat16 row (of one op) that has a peer (or stands alone), with the rate of whichever bounds it."""
    lines = [row for row in rows(RESULTS / f"{machine}/kernels_{name}_bench.jsonl")
             if row["dtype"] == "BFloat16" and (alone or row.get("peers")) and op in (None, row["op"])]
    body = []
    for row in lines:
        rate = (f"{row['TFLOPps']:.0f} TFLOP/s" if row.get("TFLOPps", 0) >= 50 else f"{row['GBps']:.0f} GB/s")
        peers = ", ".join(f"{peer['name']} {peer['median_us']:.1f} µs ({peer['ratio']:.2f}×)" for peer in row.get("peers", []))
        variant = re.sub("_(?=[a-z])", " ", row["variant"])  # Q4_0 is a name
        title = f"`{row['op']}`" + (f", {variant}" if variant else "")
        body.append([title, row["shape"].replace("_", " "), f"{row['median_us']:.1f}", rate, peers])
    return (f"{lines[0]['machine']}; {commits(lines)}; bfloat16; cold L2: {lines[0]['cold_L2']}.\n\n"
            + table(["op, variant", "shape", "median µs", "rate", "peers, and how many times longer"], body))


def attention_cache_table():
    parts = []
    for path in sorted(RESULTS.glob("*/kernels_attention_bench.jsonl")):
        lines = [row for row in rows(path) if row["op"] in ("attention_decode", "attention_append")]
        body = [[f"`{row['op']}`, {row['variant']}", row["shape"].replace("_", " "), f"{row['median_us']:.1f}",
                 f"{row['GBps']:.0f}", f"{100 * row['share_of_ceiling']:.0f} %",
                 ", ".join(f"{peer['median_us']:.1f} µs ({peer['ratio']:.2f}×)" for peer in row.get("peers", []))]
                for row in lines]
        parts.append(f"{lines[0]['machine']}; {commits(lines)}; bfloat16; cold L2: {lines[0]['cold_L2']}; "
                     f"{lines[0]['runs']} runs.\n\n"
                     + table(["op, cache", "shape", "median µs", "GB/s", "share of the copy kernel",
                              "libtorch's (cuDNN), in one piece"], body))
    return "\n\n".join(parts)


def attention_peers_table():
    """Prompts and gradients beside other libraries, in TFLOP/s, and how many times theirs ours is."""
    parts = []
    for path in sorted(RESULTS.glob("*/attention_prompts.jsonl")):
        lines = rows(path)
        names = list(lines[0]["TFLOPps"])
        body = []
        for line in lines:
            rates = line["TFLOPps"]
            body.append([line["variant"], line["shape"].replace("_", " "), f"{rates['graft']:.0f}"]
                        + [f"{rates[name]:.0f} ({rates['graft'] / rates[name]:.2f}×)" for name in names if name != "graft"])
        parts.append(f"{lines[0]['machine']}; torch {lines[0]['torch']}; {commits(lines)}; bfloat16; cold L2: "
                     f"{lines[0]['cold_L2']}; medians of {lines[0]['rounds']} rounds.\n\n"
                     + table(["what", "shape", "graft", *(name for name in names if name != "graft")], body))
    return "\n\n".join(parts)


def cpu_files():
    return sorted(RESULTS.glob("*/smollm2_vs_transformers.jsonl"))


def cpu_table():
    parts = []
    for path in cpu_files():
        lines = rows(path)
        first = lines[0]
        body = [[line["op"], line["variant"], f"{line['median_tokens_per_second']:.1f}",
                 f"{line['min_tokens_per_second']:.1f} to {line['max_tokens_per_second']:.1f}",
                 f"{line['ratio_to_transformers']:.2f}×"] for line in lines]
        parts.append(f"{first['machine']}; {first['threads']} threads; torch {first['torch']}; commit "
                     f"{first['commit']}; {first['runs']} rounds.\n\n"
                     + table(["what", "who", "median tokens/s", "range", "against transformers"], body))
    return "\n\n".join(parts) or "No results are committed."


def cuda_model_table():
    parts = []
    for path in sorted(RESULTS.glob("*/llama_vs_transformers.jsonl")):
        lines = rows(path)
        first = lines[0]
        contexts = sorted({line["context"] for line in lines})
        body = []
        for variant in dict.fromkeys(line["variant"] for line in lines):
            own = {line["context"]: line for line in lines if line["variant"] == variant}
            body.append([variant] + [f"{own[c]['prefill_ms']:.1f}" if c in own else "" for c in contexts]
                        + [f"{own[c]['decode_tokens_per_second']:.0f}" if c in own else "" for c in contexts])
        parts.append(f"{first['machine']}; {first['model']}, {first['dtype']}; torch {first['torch']}; commit "
                     f"{first['commit']}.\n\n"
                     + table(["who", *(f"prefill {c}, ms" for c in contexts),
                              *(f"decode after {c}, tokens/s" for c in contexts)], body))
    return "\n\n".join(parts) or "No results are committed."


def training_table():
    parts = []
    for path in sorted(RESULTS.glob("*/training.jsonl")):
        lines = rows(path)
        first, liger = lines[0], next(line for line in lines if line["who"] == "liger")
        body = [[line["who"], f"{line['step_ms']:.1f}", line["tokens_per_second"], f"{line['forward_backward_ms']:.1f}",
                 line["forward_backward_tokens_per_second"], f"{line['peak_GB']:.2f}",
                 f"{liger['step_ms'] / line['step_ms']:.2f}×", f"{line['losses'][-1]:.4f}"] for line in lines]
        parts.append(f"{first['machine']}; {first['model']}, {first['shape']}, {first['dtype']}; torch {first['torch']}, "
                     f"transformers {first['transformers']}; commit {first['commit']}; "
                     f"{first['rounds']} round{'s' if first['rounds'] > 1 else ''} of {first['steps']} steps.\n\n"
                     + table(["who", "step, ms", "tokens/s", "forward and backward, ms", "tokens/s", "peak, GB",
                              "times Liger's rate", f"loss of step {len(first['losses'])}"], body))
    return "\n\n".join(parts) or "No results are committed."


def packed_files():
    return sorted(RESULTS.glob("*/packed_vs_llama_cpp*.jsonl"))


def packed_table():
    parts = []
    for path in packed_files():
        lines = rows(path)
        first = lines[0]
        body = [[line["file"], line["op"], line["variant"], f"{line['median_tokens_per_second']:.1f}",
                 f"{line['min_tokens_per_second']:.1f} to {line['max_tokens_per_second']:.1f}",
                 f"{line['ratio_to_llama_cpp']:.2f}×", line.get("peak_rss_mb", "")] for line in lines]
        parts.append(f"{first['machine']}; {first['threads']} threads; torch {first['torch']}, llama-cpp-python "
                     f"{first['llama_cpp_python']}; commit {first['commit']}; {first['runs']} rounds.\n\n"
                     + table(["file", "what", "who", "median tokens/s", "range", "against llama.cpp", "peak MB"], body))
    return "\n\n".join(parts) or "No results are committed."


def cpu_ops_table():
    parts = []
    for path in sorted(RESULTS.glob("*/ops_vs_torch.jsonl")):
        lines = rows(path)
        first = lines[0]
        body = [[f"`{line['op']}`", line["shape"], line["dtype"], f"{line['median_us']:.1f}",
                 f"{line['eager_us']:.1f} µs ({line['ratio_to_eager']:.2f}×)",
                 f"{line['compiled_us']:.1f} µs ({line['ratio_to_compiled']:.2f}×)",
                 f"{line['clone_us']:.1f} µs"] for line in lines]
        parts.append(f"{first['machine']}; {first['threads']} threads; torch {first['torch']}; {commits(lines)}; "
                     f"{first['runs']} rounds.\n\n"
                     + table(["op", "shape", "dtype", "µs", "eager", "torch.compile", "`x.clone()`"], body))
    return "\n\n".join(parts) or "No results are committed."


def cpu_attention_table():
    parts = []
    for path in sorted(RESULTS.glob("*/attention_vs_torch.jsonl")):
        lines = rows(path)
        first = lines[0]
        body = []
        for line in lines:
            rate = f"{line['TFLOPps']:.2f} TFLOP/s" if "TFLOPps" in line else (
                f"{line['GBps']:.1f} GB/s, {100 * line['share_of_ceiling']:.0f} % of a read")
            body.append([line["op"], line["shape"], line["variant"], line["dtype"], f"{line['median_us'] / 1e3:.2f}", rate,
                         f"{line['torch_us'] / 1e3:.2f} ms ({line['ratio_to_torch']:.2f}×)"])
        parts.append(f"{first['machine']}; {first['threads']} threads; torch {first['torch']}; commit {first['commit']}; "
                     f"{first['runs']} rounds.\n\n"
                     + table(["what", "shape", "mask", "dtype", "ms", "rate", "torch, and how many times longer"], body))
    return "\n\n".join(parts) or "No results are committed."


def tokenizer_table():
    lines = rows(RESULTS / "amd-epyc/tokenizer.jsonl")
    body = [[line["variant"], f"{line['process_seconds']:.2f}", f"{line['library_encode_seconds']:.2f}",
             f"{line['ratio_to_library']:.2f}×"] for line in lines]
    return f"{lines[0]['machine']}; one thread each; fastest of two rounds.\n\n" + table(
        ["pipeline", "graft's process, s", "library's encode(), s", "how many times longer"], body)


def headline():
    """README.md's few numbers, each with its machine."""
    body = []
    for path in cpu_files():
        for line in rows(path):
            if line["variant"] in ("graft float32", "graft bfloat16"):
                body.append([f"SmolLM2-135M, {line['op']}, {line['variant'].split()[1]}, {line['threads']} threads",
                             line["machine"].split(",")[0],
                             f"{line['median_tokens_per_second']:.1f} tokens/s",
                             f"transformers float32: {line['ratio_to_transformers']:.2f}×"])
    for path in sorted(RESULTS.glob("*/llama_vs_transformers.jsonl")):
        lines = {(line["variant"], line["context"]): line for line in rows(path)}
        peer = "transformers, static cache, compiled"
        for context in sorted({context for variant, context in lines if variant == peer}):
            ours = lines[("graft, kernels on, static cache, graph", context)]
            ratio = ours["decode_tokens_per_second"] / lines[(peer, context)]["decode_tokens_per_second"]
            body.append([f"Llama-3.2-1B shape, decode after {context} tokens, bfloat16, one CUDA graph", ours["machine"],
                         f"{ours['decode_tokens_per_second']:.0f} tokens/s", f"transformers compiled: {ratio:.2f}×"])
    for path in sorted(RESULTS.glob("*/training.jsonl")):
        lines = {line["who"]: line for line in rows(path)}
        ours, liger = lines["graft"], lines["liger"]
        body.append([f"Llama-3.2-1B shape, training step of {ours['tokens']} tokens in transformers, bfloat16", ours["machine"],
                     f"{ours['tokens_per_second']} tokens/s, {ours['peak_GB']:.1f} GB",
                     f"Liger: {liger['step_ms'] / ours['step_ms']:.2f}×, {liger['peak_GB']:.1f} GB"])
    for path in packed_files():
        for line in rows(path):
            # Prefill depends on instructions that the peer's build lacks (docs/benchmarks.md).
            if line["variant"] == "graft packed" and line["op"] == "decode":
                body.append([f"SmolLM2-135M {line['file']}, {line['op']}, packed, {line['threads']} threads",
                             line["machine"].split(", ")[0], f"{line['median_tokens_per_second']:.1f} tokens/s",
                             f"llama.cpp: {line['ratio_to_llama_cpp']:.2f}×"])
    for name, op, shape in (("rms_norm", "rms_norm", "8192x4096"), ("rms_norm", "rms_norm", "1x4096"),
                            ("activation", "gelu_new", "8192x14336"), ("activation", "silu_and_mul", "8192x14336")):
        line = next(row for row in rows(RESULTS / f"h200/kernels_{name}_bench.jsonl")
                    if (row["op"], row["shape"], row["dtype"]) == (op, shape, "BFloat16"))
        peer = line["peers"][0]
        body.append([f"`{op}` {shape}, bfloat16", line["machine"].split(",")[0],
                     f"{line['median_us']:.1f} µs, {100 * line['share_of_ceiling']:.0f} % of a copy kernel",
                     f"{peer['name']}: {peer['ratio']:.2f}×"])
    return table(["work", "machine", "graft", "against"], body)


def replace(text, name, body):
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"markers of `{name}` are missing")
    return pattern.sub(lambda match: match.group(1) + body + "\n" + match.group(2), text)


def main():
    parts = {"docs/benchmarks.md": {"rms-norm": kernel_table("rms_norm", RMS_NORM),
                                    "norms": kernel_table("rms_norm", NORMS, "h100"),
                                    "activation": kernel_table("activation", ACTIVATION),
                                    "activation-h100": kernel_table("activation", ACTIVATION_H100, "h100"),
                                    "rotary": kernel_table("rotary", NORM_ROTARY),
                                    "norm-rotary": kernel_table("rotary", NORM_ROTARY, "h100"), "loss": work_table("loss"),
                                    "linear": work_table("linear"), "mlp": work_table("mlp"),
                                    "attention": work_table("attention", op="attention"),
                                    "attention-training": work_table("attention", "h100", alone=True, op="attention"),
                                    "attention-caches": attention_cache_table(),
                                    "attention-peers": attention_peers_table(),
                                    "cpu": cpu_table(), "cuda-model": cuda_model_table(), "training": training_table(),
                                    "packed": packed_table(), "cpu-ops": cpu_ops_table(),
                                    "cpu-attention": cpu_attention_table(),
                                    "tokenizer": tokenizer_table()},
             "README.md": {"measured": headline()}}
    stale = 0
    for name, bodies in parts.items():
        page = ROOT / name
        old = new = page.read_text()
        for marker, body in bodies.items():
            new = replace(new, marker, body)
        if "--check" not in sys.argv:
            page.write_text(new)
        elif new != old:
            print(f"{name} is out of date: run tools/benchmark_tables.py")
            stale += 1
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
