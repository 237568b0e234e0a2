#!/usr/bin/env python3
"""The built kernel packages through the unmodified Python client: loaded, called, digested, kernelized.

    GRAFT_BUILD=<build folder> python tests/python/test_packages.py
"""

import base64
import hashlib
import json
import os
import pathlib
import re
import subprocess
import unittest

import torch
from kernels import LocalLayerRepository, Mode, get_local_kernel, kernelize, use_kernel_forward_from_hub
from kernels import use_kernel_mapping

PACKAGES = pathlib.Path(os.environ["GRAFT_BUILD"]) / "share/graft/hub/graft-kernels"
VARIANTS = sorted(PACKAGES.glob("*/build/*"))
HAS_CUDA_VARIANT = any("cu130" in path.name for path in VARIANTS)


def load(name, backend="cpu"):
    return get_local_kernel(PACKAGES / name, backend=backend)


def gpt_oss_experts():
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssConfig, GptOssExperts
    return GptOssExperts(GptOssConfig(num_local_experts=1, hidden_size=8, intermediate_size=8))


class Metadata(unittest.TestCase):
    def test_every_digest_covers_every_file(self):
        self.assertTrue(VARIANTS)
        for folder in VARIANTS:
            metadata = json.loads((folder / "metadata.json").read_text())
            names = {path.name for path in folder.iterdir() if path.is_file()} - {"metadata.json"}
            self.assertEqual(names, set(metadata["digest"]["files"]), folder)
            self.assertTrue((folder / f"{metadata['id']}.abi3.so").is_file())
            for name, digest in metadata["digest"]["files"].items():
                actual = hashlib.sha256((folder / name).read_bytes()).digest()
                self.assertEqual(base64.b64encode(actual).decode(), digest, folder / name)

    def test_binaries_run_on_older_systems_and_need_one_symbol_of_python(self):
        for library in PACKAGES.glob("*/build/*/*.abi3.so"):
            symbols = subprocess.run(["nm", "-D", library], capture_output=True, text=True, check=True).stdout
            exported = re.findall(r" [TVWDBR] (\S+)", symbols)
            self.assertEqual(exported, [f"PyInit_{library.name.removesuffix('.abi3.so')}"])
            self.assertEqual(re.findall(r" U (_?Py\w+)", symbols), ["PyModule_Create2"])
            for name, limit in {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11)}.items():
                for version in re.findall(rf"@{name}_([0-9.]+)", symbols):
                    self.assertLessEqual(tuple(map(int, version.split("."))), limit, f"{library.name} {name}")


class RmsNorm(unittest.TestCase):
    def reference(self, x, weight, eps):
        hidden = x.float()
        hidden = hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + eps)
        return weight * hidden.to(x.dtype)

    def test_loads_and_computes(self):
        kernel = load("rms-norm")
        x, weight = torch.randn(5, 576, dtype=torch.bfloat16), torch.randn(576, dtype=torch.bfloat16)
        self.assertTrue(torch.equal(kernel.rms_norm(x, weight, 1e-5), self.reference(x, weight, 1e-5)))

    def test_serves_the_cpu_from_the_variant_that_cuda_torch_picks(self):
        if not HAS_CUDA_VARIANT or torch.version.cuda is None:
            self.skipTest("no CUDA variant, or a torch without CUDA")
        kernel = load("rms-norm", backend=None)
        x, weight = torch.randn(5, 64), torch.randn(64)
        torch.testing.assert_close(kernel.rms_norm(x, weight, 1e-5), self.reference(x, weight, 1e-5))

    def test_replaces_a_decorated_layer(self):
        @use_kernel_forward_from_hub("RMSNorm")
        class Norm(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.weight = torch.nn.Parameter(torch.randn(64), requires_grad=False)
                self.variance_epsilon = 1e-5
                self.calls = 0

            def forward(self, hidden_states):
                self.calls += 1
                return hidden_states

        model = Norm()
        mapping = {"RMSNorm": {"cpu": LocalLayerRepository(PACKAGES / "rms-norm", layer_name="RMSNorm")}}
        with use_kernel_mapping(mapping, inherit_mapping=False):
            model = kernelize(model, mode=Mode.INFERENCE, device="cpu")
        x = torch.randn(3, 64)
        torch.testing.assert_close(model(x), self.reference(x, model.weight, 1e-5))
        self.assertEqual(model.calls, 0)

    def test_traces_through_fake_tensors(self):
        from torch._subclasses.fake_tensor import FakeTensorMode
        kernel = load("rms-norm")
        with FakeTensorMode():
            out = kernel.rms_norm(torch.empty(3, 64), torch.empty(64))
        self.assertEqual(tuple(out.shape), (3, 64))


class Gradients(unittest.TestCase):
    """Layers in training mode: gradients of the packages' own backward ops beside PyTorch's."""

    def compare(self, ours, theirs, *inputs):
        leaves = [[x.clone().requires_grad_() for x in inputs] for _ in range(2)]
        outs = [fn(*own) for fn, own in zip((ours, theirs), leaves)]
        outs = [out if isinstance(out, tuple) else (out,) for out in outs]
        upstream = [torch.randn_like(out) for out in outs[1]]
        for own, expected in zip(*outs):
            torch.testing.assert_close(own, expected)
        for out in outs:
            torch.autograd.backward(out, upstream)
        for own, expected in zip(*leaves):
            torch.testing.assert_close(own.grad, expected.grad)

    def test_rms_norm_in_a_kernelized_module_that_trains(self):
        @use_kernel_forward_from_hub("RMSNorm")
        class Norm(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.weight = torch.nn.Parameter(torch.randn(64))
                self.variance_epsilon = 1e-5

            def forward(self, hidden_states):
                raise AssertionError("the kernel was not swapped in")

        model = Norm().train()
        mapping = {"RMSNorm": {"cpu": LocalLayerRepository(PACKAGES / "rms-norm", layer_name="RMSNorm")}}
        with use_kernel_mapping(mapping, inherit_mapping=False):
            model = kernelize(model, mode=Mode.TRAINING, device="cpu")
        x, weight = torch.randn(3, 5, 64), model.weight.detach().clone().requires_grad_()
        own, expected = x.clone().requires_grad_(), x.clone().requires_grad_()
        upstream = torch.randn(3, 5, 64)
        model(own).backward(upstream)
        hidden = expected * torch.rsqrt(expected.pow(2).mean(-1, keepdim=True) + 1e-5)
        (weight * hidden).backward(upstream)
        torch.testing.assert_close(own.grad, expected.grad)
        torch.testing.assert_close(model.weight.grad, weight.grad)

    def test_activations(self):
        functional = torch.nn.functional
        layers = load("activation").layers
        x = torch.randn(4, 3, 34)
        self.compare(layers.SiLU(), functional.silu, x)
        self.compare(layers.GeLU(), functional.gelu, x)
        self.compare(layers.GeluTanh(), lambda v: functional.gelu(v, approximate="tanh"), x)
        self.compare(layers.NewGELU(), lambda v: functional.gelu(v, approximate="tanh"), x)
        self.compare(layers.QuickGELU(), lambda v: v * torch.sigmoid(1.702 * v), x)
        self.compare(layers.SiluAndMul(), lambda v: functional.silu(v[..., :17]) * v[..., 17:], x)
        self.compare(layers.MulAndSilu(), lambda v: v[..., :17] * functional.silu(v[..., 17:]), x)
        self.compare(layers.GeluAndMul(), lambda v: functional.gelu(v[..., :17]) * v[..., 17:], x)
        self.compare(layers.SwigluOAIAndMul(), gpt_oss_experts()._apply_gate, 5 * x)

    def test_rotary_beside_transformers_own_function(self):
        from transformers.models.llama.modeling_llama import apply_rotary_pos_emb
        layer = load("rotary").layers.apply_rotary_transformers()
        angles = torch.rand(2, 5, 8).repeat(1, 1, 2)
        query, key = torch.randn(2, 4, 5, 16), torch.randn(2, 2, 5, 16)
        tables = (angles.cos(), angles.sin())
        self.compare(lambda q, k: layer(q, k, *tables), lambda q, k: apply_rotary_pos_emb(q, k, *tables),
                     query, key)

    def test_no_graph_break_under_compilation(self):
        layers = load("activation").layers

        def function(x):
            return layers.SiluAndMul()(x).sum()

        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        x = torch.randn(3, 8, requires_grad=True)
        compiled(x).backward()
        expected = x.detach().clone().requires_grad_()
        function(expected).backward()
        torch.testing.assert_close(x.grad, expected.grad)


class Activation(unittest.TestCase):
    def test_every_layer_computes_what_torch_computes(self):
        functional = torch.nn.functional
        kernel = load("activation")
        x = torch.randn(7, 64, dtype=torch.bfloat16)
        expected = {
            "SiLU": functional.silu(x),
            "GeluTanh": functional.gelu(x, approximate="tanh"),
            "QuickGELU": x * torch.sigmoid(1.702 * x),
            "SiluAndMul": functional.silu(x[:, :32]) * x[:, 32:],
            "MulAndSilu": x[:, :32] * functional.silu(x[:, 32:]),
        }
        for name, value in expected.items():
            self.assertTrue(torch.equal(getattr(kernel.layers, name)()(x), value), name)
        torch.testing.assert_close(kernel.layers.GeLU()(x), functional.gelu(x))

    def test_the_activation_of_gpt_oss_is_its_models(self):
        kernel, experts = load("activation"), gpt_oss_experts()
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            x = 5 * torch.randn(7, 64, dtype=dtype)
            out = torch.empty(7, 32, dtype=dtype)
            kernel.swigluoai_and_mul(out, x)
            torch.testing.assert_close(out, experts._apply_gate(x))
        experts.alpha, experts.limit = 1.0, 2.0  # of the module that adopts the layer
        self.assertTrue(torch.equal(kernel.layers.SwigluOAIAndMul.forward(experts, x), experts._apply_gate(x)))
        compiled = torch.compile(kernel.layers.SwigluOAIAndMul(), fullgraph=True, backend="aot_eager")
        own, expected = (x.float().requires_grad_() for _ in range(2))
        compiled(own).square().sum().backward()
        gpt_oss_experts()._apply_gate(expected).square().sum().backward()
        torch.testing.assert_close(own.grad, expected.grad)

    def test_an_error_names_the_argument(self):
        kernel = load("activation")
        with self.assertRaisesRegex(RuntimeError, r"\[silu\] out: expected shape \[2, 4\]"):
            kernel.silu(torch.empty(2, 3), torch.empty(2, 4))


class Linear(unittest.TestCase):
    def test_computes_what_torch_computes(self):
        kernel = load("linear")
        for rows in (1, 3, 17):
            for bias in (None, torch.randn(40)):
                x, weight = torch.randn(rows, 96), torch.randn(40, 96)
                expected = torch.nn.functional.linear(x.double(), weight.double(),
                                                      None if bias is None else bias.double())
                torch.testing.assert_close(kernel.linear(x, weight, bias), expected.float(), rtol=1e-5, atol=1e-5)
        out = torch.empty(17, 40)
        self.assertIs(kernel.linear(x, weight, bias, out=out), out)
        torch.testing.assert_close(out, expected.float(), rtol=1e-5, atol=1e-5)

    def test_an_activation_and_a_residual_in_one_call(self):
        kernel = load("linear")
        functional = torch.nn.functional
        functions = {"none": lambda v: v, "silu": functional.silu, "gelu": functional.gelu, "relu": functional.relu,
                     "gelu_tanh": lambda v: functional.gelu(v, approximate="tanh"),
                     "gelu_quick": lambda v: v * torch.sigmoid(1.702 * v)}
        weight, bias = torch.randn(40, 96) / 10, torch.randn(40)
        for rows in (3, 17, 600):
            x, stream = torch.randn(2, rows, 96), torch.randn(2, rows, 40)
            for act, function in functions.items():
                expected = function(functional.linear(x.double(), weight.double(), bias.double())) + stream.double()
                torch.testing.assert_close(kernel.linear_act(x, weight, bias, act, stream), expected.float(),
                                           rtol=1e-5, atol=1e-5)
        added = stream.clone()
        self.assertIs(kernel.linear_act(x, weight, act="silu", residual=added, out=added), added)
        torch.testing.assert_close(added, kernel.linear_act(x, weight, act="silu", residual=stream))
        with self.assertRaisesRegex(ValueError, r"\[linear_act\] act: expected one of none, silu, .*, got tanh"):
            kernel.linear_act(x, weight, act="tanh")
        compiled = torch.compile(lambda v, r: kernel.linear_act(v, weight, bias, "gelu", r) * 2, fullgraph=True,
                                 backend="eager", dynamic=True)
        torch.testing.assert_close(compiled(x, stream), kernel.linear_act(x, weight, bias, "gelu", stream) * 2)

    def test_replaces_the_linear_layers_of_a_model(self):
        @use_kernel_forward_from_hub("Linear")
        class OwnLinear(torch.nn.Linear):
            pass

        model = torch.nn.Sequential(OwnLinear(64, 32), torch.nn.ReLU(), OwnLinear(32, 8, bias=False)).eval()
        x = torch.randn(5, 64)
        before = model(x)
        mapping = {"Linear": {"cpu": LocalLayerRepository(PACKAGES / "linear", layer_name="Linear")}}
        with use_kernel_mapping(mapping, inherit_mapping=False), torch.no_grad():
            model = kernelize(model, mode=Mode.INFERENCE, device="cpu")
            after = model(x)
        self.assertIn("Linear.forward", model[0].forward.__qualname__)
        self.assertNotIn("torch.nn", model[0].forward.__func__.__module__)
        torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)


if __name__ == "__main__":
    unittest.main()
