#!/usr/bin/env python3
"""Writes tests/data/io/dequantize.safetensors: random packed GGUF blocks of every type that graft reads, and
what gguf-py makes of them (float32). Run with a Python that has gguf and safetensors."""

import pathlib

import gguf
import numpy as np
from safetensors.numpy import save_file

ROOT = pathlib.Path(__file__).resolve().parent.parent
TYPES = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "F16", "BF16"]
BLOCKS = 9
# Where the half-precision scales of a block stand, so that random bits give finite numbers.
SCALES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q4_K": [0, 2], "Q5_K": [0, 2],
          "Q6_K": [208], "F16": [0], "BF16": []}


def main():
    random = np.random.default_rng(0)
    tensors = {}
    for name in TYPES:
        kind = gguf.GGMLQuantizationType[name]
        elements, size = gguf.GGML_QUANT_SIZES[kind]
        blocks = BLOCKS if elements > 1 else 64
        packed = random.integers(0, 256, (blocks, size), dtype=np.uint8)
        for offset in SCALES[name]:
            halves = random.normal(0, 0.1, blocks).astype(np.float16)
            halves[0] = np.float16(3e-7)  # a subnormal scale
            packed[:, offset:offset + 2] = halves.view(np.uint8).reshape(blocks, 2)
        if name == "BF16":
            values = random.normal(0, 1, blocks).astype(np.float32).view(np.uint32) >> 16
            packed = values.astype(np.uint16).view(np.uint8).reshape(blocks, 2)
        tensors[f"{name}.packed"] = packed.reshape(-1)
        source = packed.view(np.float16).reshape(-1) if name == "F16" else packed
        tensors[f"{name}.float32"] = (source.astype(np.float32) if name == "F16"
                                      else gguf.quants.dequantize(packed, kind).reshape(-1).astype(np.float32))
    out = ROOT / "tests/data/io/dequantize.safetensors"
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, out)
    print(out, out.stat().st_size)


if __name__ == "__main__":
    main()
