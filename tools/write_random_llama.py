#!/usr/bin/env python3
"""Writes a random Llama checkpoint in a real model's shape: config.json, generation_config.json and
model.safetensors. No tokenizer: drive it with token ids (`graft generate DIR --prompt-ids 1,2,3`).

    tools/write_random_llama.py --shape llama-3.2-1b --out DIR [--dtype bfloat16] [--seed 0]
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


def tensors(config, dtype, seed):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape, std=0.02):
        return torch.randn(*shape, generator=generator).mul_(std).to(dtype)

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
            yield f"{prefix}{name}.weight", 1.0 + normal(hidden, std=0.1)
    yield "model.norm.weight", 1.0 + normal(hidden, std=0.1)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", normal(config["vocab_size"], hidden)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="llama-3.2-1b")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    config = dict(SHAPES[arguments.shape], model_type="llama", architectures=["LlamaForCausalLM"],
                  hidden_act="silu", rms_norm_eps=1e-5, attention_bias=False, mlp_bias=False, bos_token_id=1,
                  eos_token_id=2, torch_dtype=arguments.dtype)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (arguments.out / "generation_config.json").write_text(
        json.dumps({"bos_token_id": 1, "eos_token_id": 2, "do_sample": False}, indent=2) + "\n")
    dtype = getattr(torch, arguments.dtype)
    save_file(dict(tensors(config, dtype, arguments.seed)), arguments.out / "model.safetensors",
              metadata={"format": "pt"})
    print(f"{arguments.out}: {(arguments.out / 'model.safetensors').stat().st_size / 2**30:.2f} GiB")


if __name__ == "__main__":
    main()
