#!/usr/bin/env python3
"""Prints one line for a pair of runs with a static cache (CUDA graph off, on): verdict, ties, speed."""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tools"))
import teacher_forced  # noqa: E402


def main():
    graft, name, kernels, model, off_file, on_file = sys.argv[1:]
    off, on = (json.loads(pathlib.Path(file).read_text()) for file in (off_file, on_file))
    same = sum(a == b for a, b in zip(off["generated_ids"], on["generated_ids"]))
    verdict, ties = "not compared", []
    if "sampled" not in name and "beams" not in name:
        verdict, ties = teacher_forced.compare(graft, [model, "--device", "cuda", "--dtype", "bfloat16"], "bfloat16",
                                               off, on)
    print(json.dumps({"graph": name, "kernels": kernels, "ids": verdict, "ties": len(ties),
                      "equal_ids": f"{same}/{len(off['generated_ids'])}", "used": on["cuda_graph"],
                      "decode_off": round(off["decode_tokens_per_second"], 1),
                      "decode_on": round(on["decode_tokens_per_second"], 1)}))
    return 1 if verdict == "different" or not on["cuda_graph"]["used"] or off["cuda_graph"]["used"] else 0


if __name__ == "__main__":
    sys.exit(main())
