#!/usr/bin/env python3
"""Writes tests/data/models: tiny random checkpoints and what transformers computes with them.

    tools/make_reference_models.py [FOLDER…]      all folders when none is named

tests/data/models/README.md says what lies in each folder and under which keys. Running it again
with the same versions of torch and transformers gives the same bytes.
"""

import argparse
import copy
import importlib
import itertools
import json
import logging
import pathlib
import shutil

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

ROOT = pathlib.Path(__file__).resolve().parent.parent / "tests/data/models"
BATCH, LENGTH, DECODE_STEPS, NEW_TOKENS, VOCAB = 2, 20, 6, 16, 128
WINDOW = 6
PAD = 0

COMMON = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
              num_key_value_heads=2, max_position_embeddings=64, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2,
              pad_token_id=PAD, tie_word_embeddings=False)


def rope(kind="default", theta=10000.0, **rest):
    return dict(rope_type=kind, rope_theta=theta, **rest)


# folder: model type, what differs from COMMON, and how the folder itself differs
MODELS = {
    "llama": ("llama", dict(rope_parameters=rope()), {}),
    "llama_llama3_rope": ("llama", dict(rope_parameters=rope(
        "llama3", 500.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=16)), dict(older_config=True)),
    "llama_linear_rope": ("llama", dict(rope_parameters=rope("linear", factor=2.5)), {}),
    "llama_dynamic_rope": ("llama", dict(rope_parameters=rope("dynamic", factor=2.0), max_position_embeddings=12), {}),
    "llama_yarn": ("llama", dict(rope_parameters=rope(
        "yarn", 500.0, factor=4.0, original_max_position_embeddings=16, beta_fast=4.0, beta_slow=1.0)), {}),
    "llama_bias": ("llama", dict(rope_parameters=rope(), attention_bias=True, mlp_bias=True, head_dim=16), {}),
    "llama_tied": ("llama", dict(rope_parameters=rope(), tie_word_embeddings=True), {}),
    "llama_bf16": ("llama", dict(rope_parameters=rope()), dict(dtype=torch.bfloat16)),
    "llama_sharded": ("llama", dict(rope_parameters=rope()), dict(max_shard_size="40KB")),
    "mistral": ("mistral", dict(rope_parameters=rope(), sliding_window=WINDOW, head_dim=16), {}),
    "qwen2": ("qwen2", dict(rope_parameters=rope(theta=1e6), tie_word_embeddings=True), {}),
    "qwen2_sliding": ("qwen2", dict(rope_parameters=rope(), use_sliding_window=True, sliding_window=WINDOW,
                                    max_window_layers=1, num_hidden_layers=3), {}),
    "qwen3": ("qwen3", dict(rope_parameters=rope(theta=1e6), head_dim=16), {}),
    "gemma2": ("gemma2", dict(rope_parameters=rope(), head_dim=16, query_pre_attn_scalar=24, sliding_window=WINDOW,
                              attn_logit_softcapping=4.0, final_logit_softcapping=8.0, num_hidden_layers=3,
                              tie_word_embeddings=True), {}),
    "gemma3": ("gemma3_text", dict(head_dim=16, query_pre_attn_scalar=24, sliding_window=WINDOW, num_hidden_layers=4,
                                   rope_parameters=dict(
                                       full_attention=rope("linear", 1e6, factor=4.0),
                                       sliding_attention=rope(theta=10000.0)),
                                   layer_types=["sliding_attention", "sliding_attention", "full_attention",
                                                "sliding_attention"],
                                   tie_word_embeddings=True), {}),
    "phi3": ("phi3", dict(rope_parameters=rope(partial_rotary_factor=0.75), hidden_size=64, sliding_window=None), {}),
    "phi3_longrope": ("phi3", dict(
        rope_parameters=rope("longrope", partial_rotary_factor=0.75, original_max_position_embeddings=12,
                             short_factor=[1.0, 1.05, 1.1, 1.2, 1.4, 1.6], long_factor=[1.0, 1.5, 2.5, 4.0, 5.0, 6.0]),
        original_max_position_embeddings=12, max_position_embeddings=48, hidden_size=64, sliding_window=None), {}),
    "olmo2": ("olmo2", dict(rope_parameters=rope(theta=5e5)), {}),
    "smollm3": ("smollm3", dict(rope_parameters=rope(theta=5e4), num_hidden_layers=4, no_rope_layers=[1, 0, 1, 0],
                                tie_word_embeddings=True), {}),
}


def randomize(model, seed):
    """Fills every parameter, norm weights and biases included, so that no default hides a mistake."""
    generator = torch.Generator().manual_seed(seed)
    zero_centred = model.config.model_type.startswith("gemma")  # their norms multiply by 1 + weight
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                # A tied head sees the embedding in the residual stream: with a small embedding and a
                # large last norm the model does not just repeat its input.
                tied_scale = 6.0 if zero_centred else 2.5
                scale = tied_scale if name == "model.norm.weight" and model.config.tie_word_embeddings else 1.0
                value = (noise * 0.3 + 1.0) * scale - (1.0 if zero_centred else 0.0)
            elif name.endswith("bias"):
                value = noise * 0.3
            elif "embed_tokens" in name:
                small = 0.06 if zero_centred else 0.2  # Gemma multiplies by sqrt(hidden)
                value = noise * (small if model.config.tie_word_embeddings else 1.0)
            elif "lm_head" in name:
                value = noise * 2.5 / parameter.shape[1] ** 0.5
            else:
                value = noise * 1.3 / parameter.shape[1] ** 0.5
            parameter.copy_(value)


def write_older_config(path):
    """The config as most checkpoints on the Hub have it: rope_theta, rope_scaling, torch_dtype."""
    config = json.loads((path / "config.json").read_text())
    parameters = config.pop("rope_parameters")
    config["rope_theta"] = parameters.pop("rope_theta")
    config["rope_scaling"] = parameters
    config["torch_dtype"] = config.pop("dtype")
    (path / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def build(folder, seed):
    kind, changes, extra = MODELS[folder]
    config = AutoConfig.for_model(kind, **{**COMMON, **changes})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    randomize(model, seed)
    if "dtype" in extra:
        model = model.to(extra["dtype"])
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=PAD)
    path = ROOT / folder
    if path.exists():
        shutil.rmtree(path)
    model.save_pretrained(path, **({"max_shard_size": extra["max_shard_size"]} if "max_shard_size" in extra else {}))
    if extra.get("older_config"):
        write_older_config(path)
    for file in path.iterdir():
        file.chmod(0o644)
    return path


def load(path, dtype, attention="eager"):
    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype, attn_implementation=attention).eval()


class Capture:
    """Named points of one forward pass."""

    def __init__(self, model):
        self.points, self.handles, self.layer = {}, [], None
        decoder = model.model
        self.module = importlib.import_module(type(decoder).__module__)
        self.rotate = self.module.apply_rotary_pos_emb
        self.module.apply_rotary_pos_emb = self.record_rotated
        for i, layer in enumerate(decoder.layers):
            if i == 0:
                self.handles.append(layer.register_forward_pre_hook(self.record_embedding, with_kwargs=True))
                if hasattr(layer, "input_layernorm"):
                    self.record(layer.input_layernorm, "layers.0.input_layernorm")
            self.handles.append(layer.self_attn.register_forward_pre_hook(self.enter(i)))
            self.record(layer.self_attn, f"layers.{i}.self_attn")
            self.record(layer.mlp, f"layers.{i}.mlp")
            self.record(layer, f"layers.{i}")
        self.record(decoder.norm, "norm")

    def enter(self, i):
        def hook(module, arguments):
            self.layer = i
        return hook

    def keep(self, name, value):
        self.points[name] = value.detach().clone().contiguous()

    def record(self, module, name):
        def hook(module, arguments, output):
            self.keep(name, output[0] if isinstance(output, tuple) else output)
        self.handles.append(module.register_forward_hook(hook))

    def record_embedding(self, module, arguments, named):
        self.keep("embed_tokens", arguments[0] if arguments else named["hidden_states"])

    def record_rotated(self, *arguments, **named):
        query, key = self.rotate(*arguments, **named)
        self.keep(f"layers.{self.layer}.self_attn.q_rope", query)
        self.keep(f"layers.{self.layer}.self_attn.k_rope", key)
        return query, key

    def close(self):
        for handle in self.handles:
            handle.remove()
        self.module.apply_rotary_pos_emb = self.rotate


def fresh(model):
    """A model without a past: a dynamic rope remembers the longest sequence that it has seen."""
    return copy.deepcopy(model)


def decode(model, ids):
    """Logits of the last DECODE_STEPS tokens, given one by one behind a prefill of the rest."""
    model, split = fresh(model), ids.shape[1] - DECODE_STEPS
    output = model(input_ids=ids[:, :split], use_cache=True)
    logits = []
    for step in range(split, ids.shape[1]):
        output = model(input_ids=ids[:, step : step + 1], past_key_values=output.past_key_values, use_cache=True)
        logits.append(output.logits[:, -1])
    return torch.stack(logits, dim=1)


def padded_logits(model, ids, mask, positions):
    """Logits of a left-padded batch; zero at pads."""
    logits = fresh(model)(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    return logits * mask[..., None].to(logits.dtype)


def left_padded(ids):
    mask = torch.ones_like(ids)
    mask[1, :7] = 0
    return torch.where(mask == 1, ids, PAD), mask, (mask.cumsum(-1) - 1).clamp_min(0)


def generate(model, ids, mask, eos=None, **options):
    config = GenerationConfig(max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=PAD, bos_token_id=1,
                              eos_token_id=eos, **options)
    model = fresh(model)
    model.generation_config = config
    return model.generate(input_ids=ids, attention_mask=mask, generation_config=config)


def generations(model, prompt, mask):
    """All generated ids; the end token is one that the beams meet, so that ending matters."""
    out = {"greedy.ids": generate(model, prompt, mask)}
    free = generate(model, prompt, mask, num_beams=3)
    eos = int(free[0, prompt.shape[1] + 5])
    out["eos_token_id"] = torch.tensor([eos])
    out["greedy_eos.ids"] = generate(model, prompt, mask, eos)
    out["beam_no_eos.ids"] = free
    for name, early in (("beam", False), ("beam_early", True), ("beam_never", "never")):
        out[f"{name}.ids"] = generate(model, prompt, mask, eos, num_beams=3, length_penalty=1.0, early_stopping=early)
    out["beam_penalty.ids"] = generate(model, prompt, mask, eos, num_beams=3, length_penalty=-1.0)
    return out


def margin_of(model, prompt, mask, ids):
    """Smallest distance between the two best logits along the greedy path."""
    full = torch.cat([mask, torch.ones_like(ids[:, mask.shape[1] :])], dim=1)
    positions = (full.cumsum(-1) - 1).clamp_min(0)
    best = fresh(model)(input_ids=ids, attention_mask=full, position_ids=positions).logits[:, prompt.shape[1] - 1 : -1]
    top = best.topk(2, dim=-1).values
    return float((top[..., 0] - top[..., 1]).min())


def reference(path, seed):
    original = load(path, torch.float32)
    model = fresh(original)
    generator = torch.Generator().manual_seed(seed + 5000)
    ids = torch.randint(3, VOCAB, (BATCH, LENGTH), generator=generator)
    out = {"input_ids": ids}
    capture = Capture(model)
    logits = model(input_ids=ids, use_cache=False).logits
    capture.close()
    for name, value in capture.points.items():
        out[f"prefill.{name}"] = value
    out["prefill.logits"] = logits
    out["short.logits"] = fresh(original)(input_ids=ids[:, :10], use_cache=False).logits
    out["decode.logits"] = decode(original, ids)
    padded, mask, positions = left_padded(ids)
    out["padded.input_ids"], out["padded.attention_mask"], out["padded.position_ids"] = padded, mask, positions
    out["padded.logits"] = padded_logits(original, padded, mask, positions)
    prompt, prompt_mask = padded[:, :10].clone(), mask[:, :10].clone()
    out["prompt.input_ids"], out["prompt.attention_mask"] = prompt, prompt_mask
    out.update(generations(original, prompt, prompt_mask))

    low = load(path, torch.bfloat16)
    points = fresh(low)
    capture = Capture(points)
    out["bf16.prefill.logits"] = points(input_ids=ids, use_cache=False).logits
    capture.close()
    for name, value in capture.points.items():
        if name in ("embed_tokens", "norm") or name.removeprefix("layers.").isdigit():
            out[f"bf16.prefill.{name}"] = value
    out["bf16.decode.logits"] = decode(low, ids)
    out["bf16.padded.logits"] = padded_logits(low, padded, mask, positions)
    if "gemma2" not in path.name:  # transformers' sdpa leaves out the soft cap of the scores
        for prefix, dtype in (("sdpa", torch.float32), ("bf16.sdpa", torch.bfloat16)):
            model = load(path, dtype, "sdpa")
            out[f"{prefix}.prefill.logits"] = fresh(model)(input_ids=ids, use_cache=False).logits
            out[f"{prefix}.decode.logits"] = decode(model, ids)
            out[f"{prefix}.padded.logits"] = padded_logits(model, padded, mask, positions)
    return out, original


def disturbed(path):
    """The model with every weight off by about 1e-5: ids that change stood on a near tie."""
    model = load(path, torch.float32)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in sorted(model.named_parameters()):
        parameter.mul_(1 + 1e-5 * torch.randn(parameter.shape, generator=generator))
    return model


def check_logits(path, out):
    """The reference must not hang on the attention implementation or on float32's last bits."""
    for attention, dtype in (("sdpa", torch.float32), ("eager", torch.float64)):
        if "gemma2" in path.name and attention == "sdpa":
            continue  # transformers' sdpa leaves out the soft cap of the scores
        other, ids = load(path, dtype, attention), out["input_ids"]
        for name, logits in (("prefill.logits", fresh(other)(input_ids=ids, use_cache=False).logits),
                             ("decode.logits", decode(other, ids))):
            error = float((logits.float() - out[name]).abs().max() / out[name].abs().max())
            assert error < 5e-5, f"{path.name} {attention} {dtype} {name}: {error}"


def disagreement(path, out):
    """Names generated ids that another implementation or a breath of noise changes; '' if none."""
    others = {"noise": disturbed(path)}
    if "gemma2" not in path.name:
        others["sdpa"] = load(path, torch.float32, "sdpa")
    for kind, other in others.items():
        for name, value in generations(other, out["prompt.input_ids"], out["prompt.attention_mask"]).items():
            if not torch.equal(value, out[name]):
                return f"{name} with {kind}"
    return ""


def make(folder):
    """Tries seeds until no generation stands on a near tie, so that ids are worth comparing."""
    for attempt in itertools.count():
        seed = 1000 + 100 * attempt + sorted(MODELS).index(folder)
        path = build(folder, seed)
        out, model = reference(path, seed)
        margin = margin_of(model, out["prompt.input_ids"], out["prompt.attention_mask"], out["greedy.ids"])
        variety = min(len(set(row.tolist())) for row in out["greedy.ids"][:, -NEW_TOKENS:])
        reason = disagreement(path, out) if margin > 0.005 else f"margin {margin:.4f}"
        reason = reason or (f"only {variety} different new ids" if variety < 6 else "")
        if not reason:
            check_logits(path, out)
            return path, out, seed, margin
        print(f"{folder}: seed {seed} left out: {reason}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", choices=[[], *MODELS], default=[])
    folders = parser.parse_args().folders or list(MODELS)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    for folder in folders:
        path, out, seed, margin = make(folder)
        about = dict(seed=seed, decode_steps=DECODE_STEPS, max_new_tokens=NEW_TOKENS,
                     torch=torch.__version__.split("+")[0], transformers=transformers.__version__)
        save_file({name: value.contiguous() for name, value in out.items()}, path / "reference.safetensors",
                  metadata={"about": json.dumps(about)})  # one entry: their order in the file is random
        (path / "reference.safetensors").chmod(0o644)
        size = sum(file.stat().st_size for file in path.iterdir())
        print(f"{folder:20} {size / 1024:6.0f} KiB  logits std {float(out['prefill.logits'].std()):.2f}  "
              f"smallest greedy margin {margin:.4f}  new ids {len(set(out['greedy.ids'][0, 10:].tolist()))}")


if __name__ == "__main__":
    main()
