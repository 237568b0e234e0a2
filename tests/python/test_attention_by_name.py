#!/usr/bin/env python3
"""attn_implementation="graft-kernels/attention" in unmodified transformers: logits, padding, windows, caches,
gradients and compilation beside PyTorch's own attention.

    GRAFT_BUILD=<build folder> python tests/python/test_attention_by_name.py
"""

import os
import pathlib
import unittest

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
NAME = "graft-kernels/attention"
PACKAGE = pathlib.Path(os.environ["GRAFT_BUILD"]).resolve() / "share/graft/hub" / NAME
os.environ["LOCAL_KERNELS"] = f"{NAME}={PACKAGE}"
os.environ["HF_HUB_OFFLINE"] = "1"

import torch
import torch._dynamo.testing
import transformers
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.hub_kernels import is_kernels_available

transformers.utils.logging.set_verbosity_error()
MODELS = REPOSITORY / "tests/data/models"
IDS = torch.tensor([[3, 17, 5, 60, 2, 9, 33], [8, 1, 44, 7, 21, 50, 12]])
MASK = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]])
HAS_KERNELS = is_kernels_available() and hasattr(transformers, "KernelConfig")


def load(name, attention, dtype=torch.float32):
    return AutoModelForCausalLM.from_pretrained(MODELS / name, dtype=dtype, attn_implementation=attention,
                                                **({"allow_all_kernels": True} if "/" in attention else {}))


def logits(model, **arguments):
    with torch.no_grad():
        return model(IDS, **arguments).logits


def gradients(model):
    model.zero_grad()
    # Nor is the first real token of a row a label: a padded place would predict it.
    unseen = (MASK == 0) | (torch.nn.functional.pad(MASK, (1, 0))[:, :-1] == 0)
    model(IDS, attention_mask=MASK, labels=IDS.masked_fill(unseen, -100)).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()
            if parameter.grad is not None}


@unittest.skipUnless(HAS_KERNELS, "transformers without kernels")
class AttentionByName(unittest.TestCase):
    def assert_close(self, own, expected, scale=1.0):
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-4 * scale)

    def test_logits_and_padding_of_every_family_are_those_of_eager(self):
        for name in ("llama", "mistral", "qwen2", "qwen3", "phi3", "olmo2", "smollm3", "gemma2", "gemma3"):
            with self.subTest(name):
                ours, eager = load(name, NAME), load(name, "eager")
                self.assertEqual(ours.config._attn_implementation, NAME)
                self.assert_close(logits(ours), logits(eager))
                real = MASK.bool()
                self.assert_close(logits(ours, attention_mask=MASK)[real], logits(eager, attention_mask=MASK)[real])

    def test_a_model_changes_after_loading(self):
        model = load("llama", "eager")
        expected = logits(model)
        model.set_attn_implementation(NAME, allow_all_kernels=True)
        self.assertEqual(model.config._attn_implementation, NAME)
        self.assert_close(logits(model), expected)
        model.set_attn_implementation("eager")
        self.assertTrue(torch.equal(logits(model), expected))

    def test_text_comes_out_the_same_with_both_caches(self):
        for cache in (None, "static"):
            with self.subTest(cache=cache):
                texts = [load("qwen2", attention).generate(IDS, attention_mask=MASK, max_new_tokens=12, do_sample=False,
                                                           cache_implementation=cache, disable_compile=True)
                         for attention in (NAME, "eager")]
                self.assertTrue(torch.equal(*texts))

    def test_gradients_are_those_of_eager(self):
        for name in ("llama", "gemma2", "mistral"):
            with self.subTest(name):
                own, expected = gradients(load(name, NAME)), gradients(load(name, "eager"))
                self.assertEqual(set(own), set(expected))
                for parameter, value in expected.items():
                    self.assert_close(own[parameter], value, max(1.0, value.abs().max().item()))

    def test_sinks_are_not_dropped(self):
        torch.manual_seed(5)
        config = AutoConfig.for_model(
            "gpt_oss", vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=128, pad_token_id=0, head_dim=16, num_local_experts=2,
            num_experts_per_tok=1, sliding_window=4)
        eager = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        with torch.no_grad():
            for parameter in eager.parameters():
                parameter.copy_(torch.randn_like(parameter) * (0.5 if parameter.dim() == 1 else 0.1))
        expected = logits(eager)
        function = transformers.modeling_utils.ALL_ATTENTION_FUNCTIONS
        load("llama", NAME)  # which registers the name
        # The model's own list of kernels turns other names away, so the function is put in its place.
        eager.config._attn_implementation = NAME
        self.assertIn(NAME, function.valid_keys())
        self.assert_close(logits(eager), expected)

    def test_compiles_without_a_break_in_the_graph(self):
        for backend in ("aot_eager", "inductor"):
            with self.subTest(backend):
                torch._dynamo.reset()
                # In float32 transformers breaks the graph itself, to warn of a cast.
                model = load("llama", NAME, torch.bfloat16)
                exact = logits(load("llama", "eager"))
                eager_error = (logits(model).float() - exact).abs().max().item()
                counter = torch._dynamo.testing.CompileCounterWithBackend(backend)
                compiled = torch.compile(model, backend=counter, fullgraph=True)
                with torch.no_grad():
                    # Inductor leaves roundings to bfloat16 out, so that the bits are not eager's.
                    error = (compiled(IDS).logits.float() - exact).abs().max().item()
                self.assertLessEqual(error, 2 * eager_error)
                self.assertEqual(counter.frame_count, 1)

    def test_compiles_for_training(self):
        torch._dynamo.reset()
        expected = gradients(load("llama", NAME))
        model = load("llama", NAME)
        model.forward = torch.compile(model.forward, backend="aot_eager")
        own = gradients(model)
        for parameter, value in expected.items():
            self.assert_close(own[parameter], value, max(1.0, value.abs().max().item()))

    def test_what_it_cannot_do_is_refused_by_name(self):
        kernel = transformers.integrations.hub_kernels.get_kernel(NAME, version=1, allow_all_kernels=True)
        x = torch.randn(1, 4, 2, 16)
        for what, arguments in {"dropout_p": {"dropout_p": 0.1}, "alibi_slopes": {"alibi_slopes": torch.ones(2)},
                                "window_size": {"window_size": (3, 3)},
                                "return_attn_probs": {"return_attn_probs": True}}.items():
            with self.subTest(what), self.assertRaisesRegex(ValueError, what):
                kernel.flash_attn_func(x, x, x, **arguments)


if __name__ == "__main__":
    unittest.main()
