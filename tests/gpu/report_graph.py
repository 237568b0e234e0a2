#!/usr/bin/env python3
"""Prints one line for runs with a static cache: CUDA graph off, on, and on once more.

The same graph gives the same ids. Without it, lengths are known to the host and sums have another order, so in
bfloat16 the runs may part where two logits are nearly equal. Both are then held against float32 without kernels,
token by token: how far the chosen token lies below the best one. The graph may be no worse than twice the run without
it, or than what counts as a tie."""

import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tools"))
import teacher_forced  # noqa: E402


def main():
    graft, name, kernels, model, *files = sys.argv[1:]
    off, on, again = (json.loads(pathlib.Path(file).read_text()) for file in files)
    same = sum(a == b for a, b in zip(off["generated_ids"], on["generated_ids"]))
    ok = on["cuda_graph"]["used"] and not off["cuda_graph"]["used"] and on["generated_ids"] == again["generated_ids"]
    line = {"graph": name, "kernels": kernels, "equal_ids": f"{same}/{len(off['generated_ids'])}",
            "same_again": on["generated_ids"] == again["generated_ids"], "reason": on["cuda_graph"]["reason"],
            "decode_off": round(off["decode_tokens_per_second"], 1),
            "decode_on": round(on["decode_tokens_per_second"], 1)}
    if same < len(off["generated_ids"]) and "sampled" not in name and "beams" not in name:
        good, numbers = teacher_forced.is_as_good(graft, (model, "--device", "cuda"), "bfloat16", off, on)
        line.update({key: round(value, 4) for key, value in numbers.items()})
        ok = ok and good
    print(json.dumps(dict(line, verdict="ok" if ok else "FAILED")))
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
