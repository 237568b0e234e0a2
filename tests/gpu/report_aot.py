#!/usr/bin/env python3
"""A compiled layer in a model on CUDA: logits and ids with it and without, and how fast.

    tests/gpu/report_aot.py GRAFT MODEL VOCABULARY KERNEL_CONFIG DTYPE…"""

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
    graft, model, vocabulary, config, *dtypes = sys.argv[1:]
    random.seed(0)
    ids = [random.randrange(3, int(vocabulary)) for _ in range(64)]
    more = {"off": (), "on": ("--kernel-config", config)}  # a config turns kernels on
    exact = teacher_forced.logits(graft, (model, "--device", "cuda", "--dtype", "float32"), "off", ids)
    failed, report = False, {"model": pathlib.Path(model).name}
    for dtype in dtypes:
        arguments = (model, "--device", "cuda", "--dtype", dtype)
        errors = {kernels: largest(teacher_forced.logits(graft, (*arguments, *more[kernels]), kernels, ids), exact)
                  for kernels in more}
        off = generate(graft, model, dtype, ids, "--kernels", "off")
        on = generate(graft, model, dtype, ids, "--kernels", "on", "--kernel-config", config)
        verdict, ties = teacher_forced.compare(graft, arguments, dtype, off, on)
        swapped = [(row["layer"], row["count"]) for row in on["swapped"]]
        report[dtype] = {"largest_error": errors, "ids": verdict, "ties": len(ties), "swapped": swapped,
                         "decode_off": round(off["decode_tokens_per_second"], 1),
                         "decode_on": round(on["decode_tokens_per_second"], 1)}
        failed |= verdict == "different" or [layer for layer, _ in swapped] != ["RMSNorm"]
        failed |= errors["on"] > (FLOAT32_TOLERANCE if dtype == "float32" else 2 * errors["off"])
    print(json.dumps(report))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
