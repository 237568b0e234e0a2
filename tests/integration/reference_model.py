"""The real transformers on a .gguf file, read by transformers' own code.

`from_pretrained(gguf_file=…)` wants the package accelerate and uses nothing of it here, so its two steps are
called one by one."""

import functools
import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TQDM_DISABLE", "1")


def load(path):
    """Returns (model, tokenizer) of a .gguf file; the model's weights are float32."""
    import gguf
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    # Tokenizer, config and weights each read the whole file: five seconds that one reading saves twice.
    gguf.GGUFReader = functools.lru_cache(gguf.GGUFReader)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    with torch.device("meta"):
        names = AutoModelForCausalLM.from_config(config)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    tensors = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=names)["tensors"]
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    assert set(missing) <= tied and not unexpected, (missing, unexpected)
    model.tie_weights()
    return model.eval(), tokenizer


def copy_as(model, dtype):
    """A copy of a model with its weights in another dtype."""
    import copy

    return copy.deepcopy(model).to(dtype)
