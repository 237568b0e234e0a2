#!/usr/bin/env python3
"""Writes a random Llama checkpoint in a real model's shape: config.json, generation_config.json and
model.safetensors, or model.gguf whose matrices are in packed blocks (needs the package gguf; rope is not scaled there).
No tokenizer: drive it with token ids (`graft generate DIR --prompt-ids 1,2,3`).

    tools/write_random_llama.py --shape llama-3.2-1b --out DIR [--dtype bfloat16 | --gguf Q4_0] [--seed 0]
"""

import argparse
import json
import pathlib

import torch
from safetensors.torch import save_file

SHAPES = {
    "llama-3.2-1b": dict(hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
                         num_key_value_heads=8, head_dim=64, vocab_size=128256, max_position_embeddings=131072,
                         rope_theta=500000.0,
                         rope_scaling=dict(rope_type="llama3", factor=32.0, low_freq_factor=1.0,
                                           high_freq_factor=4.0, original_max_position_embeddings=8192),
                         tie_word_embeddings=True),
    "tiny": dict(hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=8,
                 num_key_value_heads=2, head_dim=32, vocab_size=1000, max_position_embeddings=2048,
                 rope_theta=10000.0, rope_scaling=None, tie_word_embeddings=False),
}


def tensors(config, dtype, seed, shapes_only=False):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape, std=0.02, mean=0.0):
        return shape if shapes_only else mean + torch.randn(*shape, generator=generator).mul_(std).to(dtype)

    hidden, inner = config["hidden_size"], config["intermediate_size"]
    query = config["num_attention_heads"] * config["head_dim"]
    key = config["num_key_value_heads"] * config["head_dim"]
    yield "model.embed_tokens.weight", normal(config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for name, rows, columns in (("self_attn.q_proj", query, hidden), ("self_attn.k_proj", key, hidden),
                                    ("self_attn.v_proj", key, hidden), ("self_attn.o_proj", hidden, query),
                                    ("mlp.gate_proj", inner, hidden), ("mlp.up_proj", inner, hidden),
                                    ("mlp.down_proj", hidden, inner)):
            yield f"{prefix}{name}.weight", normal(rows, columns)
        for name in ("input_layernorm", "post_attention_layernorm"):
            yield f"{prefix}{name}.weight", normal(hidden, std=0.1, mean=1.0)
    yield "model.norm.weight", normal(hidden, std=0.1, mean=1.0)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", normal(config["vocab_size"], hidden)


GGUF_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
              "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
              "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
              "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}


def gguf_name(key):
    name = key.removesuffix(".weight")
    if name.startswith("model.layers."):
        _, _, layer, name = name.split(".", 3)
        return f"blk.{layer}.{GGUF_NAMES[name]}.weight"
    return f"{GGUF_NAMES[name]}.weight"


def write_gguf(config, path, kind, seed):
    import gguf
    import numpy
    kind = gguf.GGMLQuantizationType[kind]
    block_elements, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    scales = {gguf.GGMLQuantizationType.Q4_0: 0.02 / 4.6, gguf.GGMLQuantizationType.Q8_0: 0.02 / 74}  # deviation 0.02
    generator = numpy.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    for key, value in tensors(config, torch.float32, seed, shapes_only=True):
        if len(value) == 1:
            writer.add_tensor(gguf_name(key), numpy.ones(value, numpy.float32))
            continue
        # Blocks of random codes, one scale for all: no quantizer is needed for numbers that mean nothing.
        blocks = value[0] * value[1] // block_elements
        packed = generator.integers(0, 256, (blocks, block_bytes), numpy.uint8)
        packed[:, :2] = numpy.frombuffer(numpy.float16(scales[kind]).tobytes(), numpy.uint8)
        writer.add_tensor(gguf_name(key), packed.reshape(value[0], -1), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="llama-3.2-1b")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--gguf", choices=["Q4_0", "Q8_0"])
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    config = dict(SHAPES[arguments.shape], model_type="llama", architectures=["LlamaForCausalLM"],
                  hidden_act="silu", rms_norm_eps=1e-5, attention_bias=False, mlp_bias=False, bos_token_id=1,
                  eos_token_id=2, torch_dtype=arguments.dtype)
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.gguf:
        write_gguf(config, arguments.out / "model.gguf", arguments.gguf, arguments.seed)
        print(f"{arguments.out}: {(arguments.out / 'model.gguf').stat().st_size / 2**30:.2f} GiB")
        return
    (arguments.out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (arguments.out / "generation_config.json").write_text(
        json.dumps({"bos_token_id": 1, "eos_token_id": 2, "do_sample": False}, indent=2) + "\n")
    dtype = getattr(torch, arguments.dtype)
    save_file(dict(tensors(config, dtype, arguments.seed)), arguments.out / "model.safetensors",
              metadata={"format": "pt"})
    print(f"{arguments.out}: {(arguments.out / 'model.safetensors').stat().st_size / 2**30:.2f} GiB")


if __name__ == "__main__":
    main()
