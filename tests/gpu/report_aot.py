#!/usr/bin/env python3
"""A compiled layer in a model on CUDA: logits and ids with it and without, and how fast.

    tests/gpu/report_aot.py GRAFT MODELS_FOLDER KERNEL_CONFIG"""

import json
import pathlib
import random
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tools"))
import teacher_forced  # noqa: E402

FLOAT32_TOLERANCE = 1e-4  # logits of a random model have a standard deviation of about 1


def generate(graft, model, dtype, ids, *options):
    done = subprocess.run([graft, "generate", model, "--device", "cuda", "--dtype", dtype, "--prompt-ids",
                           ",".join(map(str, ids)), "--max-new-tokens", "64", "--ignore-eos", "--json", *options],
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout[-1500:]}\n{done.stderr[-1500:]}"
    return json.loads(done.stdout)


def largest(got, expected):
    return (got.double() - expected.double()).abs().max().item()


def main():
    graft, folder, config = sys.argv[1:]
    random.seed(0)
    failed = False
    for name, vocabulary in (("tiny", 1000), ("llama-3.2-1b", 128256)):
        model = str(pathlib.Path(folder) / name)
        ids = [random.randrange(3, vocabulary) for _ in range(64)]
        arguments = {dtype: (model, "--device", "cuda", "--dtype", dtype) for dtype in ("float32", "bfloat16")}
        more = {"off": (), "on": ("--kernel-config", config)}  # a config turns kernels on
        exact = teacher_forced.logits(graft, arguments["float32"], "off", ids)
        errors = {f"{dtype} {kernels}": largest(
            teacher_forced.logits(graft, (*arguments[dtype], *more[kernels]), kernels, ids), exact)
            for dtype in arguments for kernels in ("off", "on")}
        runs = {}
        for dtype in arguments:
            off = generate(graft, model, dtype, ids, "--kernels", "off")
            on = generate(graft, model, dtype, ids, "--kernels", "on", "--kernel-config", config)
            verdict, ties = teacher_forced.compare(graft, arguments[dtype], dtype, off, on)
            swapped = [(row["layer"], row["count"]) for row in on["swapped"]]
            runs[dtype] = {"ids": verdict, "ties": len(ties), "swapped": swapped,
                           "decode_off": round(off["decode_tokens_per_second"], 1),
                           "decode_on": round(on["decode_tokens_per_second"], 1)}
            failed |= verdict == "different" or [layer for layer, _ in swapped] != ["RMSNorm"]
        failed |= errors["float32 on"] > FLOAT32_TOLERANCE or errors["bfloat16 on"] > 2 * errors["bfloat16 off"]
        print(json.dumps({"model": name, "largest_error": errors, **runs}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
