#!/usr/bin/env python3
"""Writes a .gguf file again with its packed matrices in another block format: everything else stays as it is.

    tools/requantize_gguf.py IN.gguf OUT.gguf --type Q8_0

Run with a Python that has gguf. The values are those of IN, dequantized and rounded to the new blocks; gguf can
write Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0."""

import argparse
import pathlib

import gguf

TYPES = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]
BLOCK = 32


def copy_metadata(reader, writer):
    for field in reader.fields.values():
        # The writer makes these itself.
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", "general.file_type"):
            continue
        kind = field.types[0]
        item = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=item)


def requantize(source, target, name):
    """Writes `target`; returns how many tensors changed their format."""
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, architecture)
    copy_metadata(reader, writer)
    wanted = gguf.GGMLQuantizationType[name]
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{name}"])
    changed = 0
    for tensor in reader.tensors:
        packed = gguf.GGML_QUANT_SIZES[tensor.tensor_type][0] > 1
        if packed and tensor.tensor_type != wanted and tensor.shape[0] % BLOCK == 0:
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            writer.add_tensor(tensor.name, gguf.quants.quantize(values, wanted), raw_dtype=wanted)
            changed += 1
        else:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return changed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=pathlib.Path)
    parser.add_argument("target", type=pathlib.Path)
    parser.add_argument("--type", choices=TYPES, default="Q8_0")
    arguments = parser.parse_args()
    changed = requantize(arguments.source, arguments.target, arguments.type)
    print(f"{arguments.target}: {changed} matrices in {arguments.type}, {arguments.target.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
