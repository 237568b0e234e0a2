#!/usr/bin/env python3
"""graft_kernels in unmodified transformers: outputs, gradients, compilation and numeric variants beside PyTorch.

    GRAFT_BUILD=<build folder> python tests/python/test_graft_kernels.py
"""

import copy
import os
import pathlib
import shutil
import sys
import tempfile
import unittest
import warnings

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
os.environ.setdefault("GRAFT_HUB_DIR", str(pathlib.Path(os.environ["GRAFT_BUILD"]).resolve() / "share/graft/hub"))
os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(REPOSITORY / "python"))

import torch
import torch._dynamo.testing
import transformers
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.hub_kernels import is_kernels_available

import graft_kernels

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
MODELS = REPOSITORY / "tests/data/models"
FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "phi3", "olmo2", "smollm3", "gemma2", "gemma3"]
IDS = torch.tensor([[3, 17, 5, 60, 2, 9, 33], [8, 1, 44, 7, 21, 50, 12]])
HAS_KERNELS = is_kernels_available() and hasattr(transformers, "KernelConfig")
# Other families whose layers carry the same names: gpt_oss turns by half tables, nanochat the other way.
TINY = dict(vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=128, pad_token_id=0)
BY_CONFIG = {
    "nanochat": TINY,
    "gpt_oss": {**TINY, "head_dim": 16, "num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 4},
    "granite": TINY,
    "mixtral": {**TINY, "num_local_experts": 2},
    "qwen3_moe": {**TINY, "head_dim": 16, "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 32},
    "starcoder2": TINY,
    "gemma": {**TINY, "head_dim": 16},
    "glm4": {**TINY, "head_dim": 16},
    "gpt2": {"vocab_size": 64, "n_embd": 64, "n_layer": 2, "n_head": 4},
}


def load(name, dtype=torch.float32, **arguments):
    return AutoModelForCausalLM.from_pretrained(MODELS / name, dtype=dtype, attn_implementation="eager", **arguments)


def build(name):
    """A model with random weights, norms' weights away from one."""
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **BY_CONFIG[name]),
                                             attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.3 if parameter.dim() == 1 else 0.1))
    return model.eval()


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def gradients(model):
    """The gradient of every parameter for one step's loss."""
    model.zero_grad()
    model(IDS, labels=IDS).loss.backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()
            if parameter.grad is not None}


class Beside(unittest.TestCase):
    def assert_logits(self, own, expected):
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-4)

    def assert_gradients(self, own, expected):
        self.assertEqual(set(own), set(expected))
        for name, value in expected.items():
            scale = value.abs().max().item()
            torch.testing.assert_close(own[name], value, rtol=1e-3, atol=2e-5 * max(scale, 1.0), msg=lambda m: f"{name}: {m}")

    def assert_all_swapped(self, model, *layers):
        table = graft_kernels.report(model)
        self.assertGreater(table.swapped, 0)
        self.assertEqual([row.refusal for row in table.rows if row.refusal], [], str(table))
        self.assertLessEqual(set(layers), {row.slot.layer for row in table.rows})


class WithoutKernels(Beside):
    """kernelize(): every transformers."""

    def test_every_reference_model_keeps_its_logits_in_float32(self):
        for name in FAMILIES:
            with self.subTest(name):
                model = load(name)
                expected = logits(model)
                graft_kernels.kernelize(model)
                self.assert_all_swapped(model, "RMSNorm", "rotary_pos_emb")
                self.assert_logits(logits(model), expected)
                graft_kernels.unkernelize(model)
                self.assertTrue(torch.equal(logits(model), expected))
                self.assertEqual(graft_kernels.report(model).rows, [])

    def test_families_made_from_their_config_keep_their_logits(self):
        for name in BY_CONFIG:
            with self.subTest(name):
                model = build(name)
                expected = logits(model)
                graft_kernels.kernelize(model)
                self.assertGreater(graft_kernels.report(model).swapped, 0)
                self.assert_logits(logits(model), expected)

    def test_bfloat16_is_no_further_from_float64_than_twice_the_reference(self):
        for name in ("llama", "olmo2", "gemma3"):
            with self.subTest(name):
                model = load(name, torch.bfloat16)
                exact = logits(copy.deepcopy(model).double())
                expected = logits(model).double()
                graft_kernels.kernelize(model)
                own = logits(model).double()
                self.assertLessEqual((own - exact).norm(), 2 * (expected - exact).norm())
                # A row whose ids part is a tie: its two best logits lie within the reference's own error.
                parted = own.argmax(-1) != expected.argmax(-1)
                best = exact.topk(2).values
                self.assertTrue(((best[..., 0] - best[..., 1])[parted] <= 2 * (expected - exact).abs().max()).all())

    def test_a_training_step_has_the_gradients_of_the_reference(self):
        for name in FAMILIES:
            with self.subTest(name):
                model = load(name).train()
                expected = gradients(model)
                graft_kernels.kernelize(model)
                self.assertEqual(graft_kernels.report(model).to_dict()["mode"], "training")
                self.assert_gradients(gradients(model), expected)

    def test_generation_with_a_cache_gives_the_same_ids(self):
        for name in ("llama", "gemma2", "olmo2"):
            model = load(name)
            arguments = dict(max_new_tokens=8, do_sample=False, pad_token_id=0)
            expected = model.generate(IDS, **arguments)
            own = graft_kernels.kernelize(model).generate(IDS, **arguments)
            self.assertTrue(torch.equal(own, expected), name)

    def test_another_model_of_the_family_keeps_its_own_layers(self):
        first, second = load("llama"), load("llama")
        expected = logits(second)
        graft_kernels.kernelize(first)
        self.assertTrue(torch.equal(logits(second), expected))
        self.assertEqual(graft_kernels.report(second).rows, [])

    def test_autocast_and_float64_keep_the_formula_of_the_class(self):
        model = graft_kernels.kernelize(load("llama").double())
        expected = logits(load("llama").double())
        self.assertTrue(torch.equal(logits(model), expected))
        plain, own = load("llama"), graft_kernels.kernelize(load("llama"))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            expected, actual = logits(plain), logits(own)
        self.assertEqual(actual.dtype, expected.dtype)
        torch.testing.assert_close(actual.float(), expected.float(), rtol=0.05, atol=0.3)

    def test_modes_are_checked_and_named(self):
        model = load("llama")
        graft_kernels.kernelize(model, "inference|torch_compile")
        self.assertEqual(graft_kernels.report(model).to_dict()["mode"], "inference|torch_compile")
        for wrong in ("fast", "inference|training", "torch_compile"):
            with self.assertRaisesRegex(graft_kernels.GraftError, r"\[python.kernelize\] mode: expected"):
                graft_kernels.kernelize(model, wrong)


class Variants(Beside):
    """What one name means in different families."""

    def variant(self, name, layer="RMSNorm"):
        model = graft_kernels.kernelize(load(name) if (MODELS / name).is_dir() else build(name))
        return {row.slot.variant for row in graft_kernels.report(model).rows if row.slot.layer == layer}

    def test_norms_are_served_in_the_variant_that_their_class_computes(self):
        self.assertEqual(self.variant("llama"), {"cast_before_weight"})
        self.assertEqual(self.variant("olmo2"), {"cast_after_weight"})
        self.assertEqual(self.variant("gpt_oss"), {"cast_after_weight"})
        self.assertEqual(self.variant("gemma2"), {"zero_centered"})
        self.assertEqual(self.variant("gemma"), {"zero_centered"})

    def test_a_norm_in_bfloat16_is_bit_for_bit_its_class(self):
        for name in ("llama", "olmo2", "gemma2"):
            model = load(name, torch.bfloat16)
            norm = next(module for module in model.modules() if "RMSNorm" in type(module).__name__)
            with torch.no_grad():
                norm.weight.copy_(torch.randn_like(norm.weight))
                x = torch.randn(50, norm.weight.shape[0], dtype=torch.bfloat16)
                expected = norm(x)
                graft_kernels.kernelize(model)
                self.assertTrue(torch.equal(norm(x), expected), name)

    def test_rotary_knows_the_sign_and_the_tables_of_the_family(self):
        self.assertEqual(self.variant("nanochat", "rotary_pos_emb"), {"half_split, opposite sign"})
        self.assertEqual(self.variant("gpt_oss", "rotary_pos_emb"), {"half_split, half tables"})
        self.assertEqual(self.variant("llama", "rotary_pos_emb"), {"half_split"})

    def test_settings_of_a_norm_decide_module_by_module(self):
        from transformers.models.llama.modeling_llama import LlamaRMSNorm

        class ScaledRMSNorm(LlamaRMSNorm):
            def __init__(self, scale):
                super().__init__(16, eps=1e-5)
                self.scale = scale

            def forward(self, x):
                return self.scale * super().forward(x)

        model = torch.nn.Sequential(ScaledRMSNorm(1.0), ScaledRMSNorm(2.0), ScaledRMSNorm(1.0))
        x = torch.randn(4, 16)
        expected = model(x)
        graft_kernels.kernelize(model)
        served = [not row.refusal for row in graft_kernels.report(model).rows if row.slot.layer == "RMSNorm"]
        self.assertEqual(served, [True, False, True])
        torch.testing.assert_close(model(x), expected)

    def test_what_the_package_does_not_compute_is_refused_with_the_reason(self):
        model = graft_kernels.kernelize(build("glm4"))   # interleaved pairs
        reasons = {row.refusal for row in graft_kernels.report(model).rows if row.slot.layer == "rotary_pos_emb"}
        self.assertEqual(reasons, {"rotates as the package does not"})
        self.assertIn("reference: rotates as the package does not", str(graft_kernels.report(model)))

        class HalfRMSNorm(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.weight, self.eps = torch.nn.Parameter(torch.ones(8)), 1e-6

            def forward(self, x):
                return 0.5 * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight

        model = graft_kernels.kernelize(HalfRMSNorm())
        self.assertEqual([row.refusal for row in graft_kernels.report(model).rows],
                         ["rounds as none of the package's variants does"])

    def test_a_package_that_was_changed_is_not_loaded(self):
        from graft_kernels import hub
        with tempfile.TemporaryDirectory() as folder:
            copied = pathlib.Path(folder) / "variant"
            shutil.copytree(hub.variant_dir("rms-norm", "cpu"), copied)
            with (copied / "layers.py").open("a") as file:
                file.write("# more\n")
            with self.assertRaisesRegex(graft_kernels.GraftError, "layers.py: expected SHA-256"):
                hub.load(copied)


class Gradients(unittest.TestCase):
    def test_rotary_backward_is_the_derivative_in_both_signs(self):
        from graft_kernels import hub
        layer = hub.layer_class("rotary", "apply_rotary_transformers", "cpu")
        for inverse in (False, True):
            warnings.simplefilter("ignore")   # gradcheck's advice of float64
            place = layer()
            place.graft_inverse = inverse
            angles = torch.rand(1, 3, 4).repeat(1, 1, 2)
            q, k = (torch.randn(1, heads, 3, 8, requires_grad=True) for heads in (2, 1))
            # A rotation is linear, so a wide step is exact and float32 suffices.
            self.assertTrue(torch.autograd.gradcheck(
                lambda q, k: place(q, k, angles.cos(), angles.sin()), (q, k), eps=0.5, atol=1e-4, rtol=1e-4,
                nondet_tol=0.0))


class Compiled(Beside):
    """No graph break, forward and backward."""

    def compile(self, model):
        torch._dynamo.reset()
        return torch.compile(model, fullgraph=True, backend="aot_eager")

    def test_inference(self):
        for name in ("llama", "gemma2", "phi3"):
            with self.subTest(name):
                model = load(name)
                expected = logits(model)
                graft_kernels.kernelize(model, "inference|torch_compile")
                compiled = self.compile(model)
                with torch.no_grad():
                    self.assert_logits(compiled(IDS, use_cache=False).logits, expected)

    def test_lengths_of_input_need_no_more_graphs_than_without_kernels(self):
        inputs = [IDS[:, :length].clone() for length in (3, 4, 5, 6, 7)]
        results, graphs = [], []
        for kernels in (False, True):
            model = load("llama")
            if kernels:
                graft_kernels.kernelize(model, "inference|torch_compile")
            torch._dynamo.reset()
            counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
            compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=counter)
            with torch.no_grad():
                results.append([compiled(ids, use_cache=False).logits for ids in inputs])
            graphs.append(counter.frame_count)
        for own, expected in zip(results[1], results[0]):
            self.assert_logits(own, expected)
        self.assertEqual(graphs[1], graphs[0])
        self.assertLess(graphs[1], len(inputs))

    def test_training(self):
        model = load("olmo2").train()
        expected = gradients(model)
        graft_kernels.kernelize(model, "training|torch_compile")
        compiled = self.compile(model)
        model.zero_grad()
        compiled(IDS, labels=IDS, use_cache=False).loss.backward()
        self.assert_gradients({name: p.grad for name, p in model.named_parameters() if p.grad is not None}, expected)


@unittest.skipIf(HAS_KERNELS, "this transformers accepts the installed kernels")
class KernelsRefused(unittest.TestCase):
    def test_kernel_config_says_what_works_instead(self):
        with self.assertRaisesRegex(graft_kernels.GraftError, r"hint: graft_kernels.kernelize\(model\)"):
            graft_kernels.kernel_config()


@unittest.skipUnless(HAS_KERNELS, "this transformers does not accept the installed kernels")
class ThroughKernels(Beside):
    """use_kernels=True, kernel_config=...: transformers' own road."""

    def tearDown(self):
        for model in self.models:
            graft_kernels.unkernelize(model)  # function modules belong to the process

    def setUp(self):
        self.models = []

    def served(self, name, config=None, **arguments):
        config = config or graft_kernels.kernel_config()
        model = load(name, use_kernels=True, kernel_config=config, **arguments)
        self.models.append(model)
        return model

    def test_every_reference_model_keeps_its_logits(self):
        config = graft_kernels.kernel_config()   # one object, many models
        for name in FAMILIES:
            with self.subTest(name):
                expected = logits(load(name))
                model = self.served(name, config)
                self.assert_all_swapped(model)
                self.assert_logits(logits(model), expected)
                graft_kernels.unkernelize(model)
                self.assertTrue(torch.equal(logits(model), expected))

    def test_layers_come_from_the_package_by_the_protocol(self):
        model = self.served("olmo2")
        self.assert_all_swapped(model, "RMSNorm", "SiLU", "rotary_pos_emb")
        norm = model.model.norm
        self.assertIn("graft-kernels/rms-norm/build/", norm.forward.__func__.__code__.co_filename)
        self.assertEqual(norm.graft_variant, 1)

    def test_training_and_back(self):
        for name in ("llama", "olmo2", "qwen3"):
            with self.subTest(name):
                expected = gradients(load(name).train())
                model = self.served(name)
                for mode in (True, False, True):
                    model.train(mode)
                    self.assertIn("graft-kernels", model.model.norm.forward.__func__.__code__.co_filename)
                self.assert_gradients(gradients(model), expected)
                graft_kernels.unkernelize(model)

    def test_places_that_are_not_decorated_are_served_beside_it(self):
        for name, layers in (("gemma2", {"RMSNorm", "MLP", "ForCausalLMLoss"}), ("phi3", {"rotary_pos_emb"}),
                             ("llama", {"MLP", "ForCausalLMLoss"})):
            with self.subTest(name):
                model = load(name).train()
                expected, output = gradients(model), model(IDS, labels=IDS)
                model = self.served(name)
                self.assert_all_swapped(model, *layers)
                self.assert_logits(logits(model), logits(load(name)))
                self.assertIsNotNone(model(IDS, labels=IDS).logits)
                own = model.train()(IDS, labels=IDS)
                self.assertNotIn("logits", own)
                torch.testing.assert_close(own.loss, output.loss, rtol=1e-5, atol=1e-5)
                self.assert_gradients(gradients(model), expected)
                self.assert_logits(logits(model.eval()), logits(load(name)))
                graft_kernels.unkernelize(model)
                self.assertTrue(torch.equal(model.train()(IDS, labels=IDS).loss, output.loss))

    def test_logits_are_kept_where_asked(self):
        model = self.served("llama", graft_kernels.kernel_config(keep_logits=True)).train()
        self.assertIsNotNone(model(IDS, labels=IDS).logits)
        self.assertNotIn("ForCausalLMLoss", {row.slot.layer for row in graft_kernels.report(model).rows})

    def test_nanochat_turns_its_own_way(self):
        model = build("nanochat")
        expected = logits(model)
        self.models.append(model)
        model.set_use_kernels(True, graft_kernels.kernel_config())
        self.assertIn("rotary_pos_emb", {row.slot.layer for row in graft_kernels.report(model).rows if row.swapped})
        self.assert_logits(logits(model), expected)

    def test_compiled_in_one_graph(self):
        expected = logits(load("llama"))
        model = self.served("llama")
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        with torch.no_grad():
            self.assert_logits(compiled(IDS, use_cache=False).logits, expected)

    def test_training_compiles_in_one_graph(self):
        expected = gradients(load("llama").train())
        model = self.served("llama").train()
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        compiled(IDS, labels=IDS, use_cache=False).loss.backward()
        self.assert_gradients({name: p.grad for name, p in model.named_parameters() if p.grad is not None}, expected)


if __name__ == "__main__":
    unittest.main()
