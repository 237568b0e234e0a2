#!/usr/bin/env python3
"""What graft_kernels does in training alone, in unmodified transformers: the loss from hidden states, sums joined to norms.

    GRAFT_BUILD=<build folder> python tests/python/test_training_layers.py
"""

import copy
import inspect
import unittest

import torch
import transformers

from test_graft_kernels import FAMILIES, IDS, TINY, Beside, build, gradients, graft_kernels, load


class Losses(Beside):
    """A causal model in training makes its loss without logits, and these when somebody reads them."""

    def loss_row(self, model):
        (row,) = [row for row in graft_kernels.report(model).rows if row.slot.layer == "ForCausalLMLoss"]
        return row

    def test_every_family_has_its_loss_and_gradients(self):
        labels = IDS.clone()
        labels[0, :3] = -100
        for name in FAMILIES:
            for items in (None, torch.tensor(5)):
                with self.subTest(name, items=items):
                    model = load(name).train()
                    arguments = dict(labels=labels, **({"num_items_in_batch": items} if items is not None else {}))
                    expected = model(IDS, **arguments)
                    expected.loss.backward()
                    reference = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
                    model.zero_grad()
                    graft_kernels.kernelize(model)
                    self.assertEqual(self.loss_row(model).refusal, "")
                    own = model(IDS, **arguments)
                    self.assertNotIn("logits", own)
                    torch.testing.assert_close(own.loss, expected.loss, rtol=1e-5, atol=1e-5)
                    own.loss.backward()
                    self.assert_gradients({key: p.grad for key, p in model.named_parameters() if p.grad is not None},
                                          reference)
        self.assertEqual(self.loss_row(graft_kernels.kernelize(load("gemma2").train())).slot.variant, "soft cap 8")

    def test_logits_are_there_wherever_no_loss_trains(self):
        model = load("llama").train()
        expected = model(IDS, labels=IDS)
        graft_kernels.kernelize(model)
        self.assertEqual(model(IDS).logits.shape, expected.logits.shape)
        with torch.no_grad():
            self.assert_logits(model(IDS, labels=IDS).logits, expected.logits)
        self.assert_logits(model.eval()(IDS, labels=IDS).logits, expected.logits)
        graft_kernels.kernelize(model.train(), keep_logits=True)
        self.assert_logits(model(IDS, labels=IDS).logits, expected.logits)
        self.assertNotIn("ForCausalLMLoss", {row.slot.layer for row in graft_kernels.report(model).rows})
        graft_kernels.unkernelize(model)
        self.assertTrue(torch.equal(model(IDS, labels=IDS).logits, expected.logits))

    def test_logits_of_training_are_made_when_they_are_read(self):
        for name in ("llama", "gemma2"):
            model = load(name).train()
            expected = model(IDS, labels=IDS)
            own = graft_kernels.kernelize(model)(IDS, labels=IDS)
            self.assertIsInstance(own, type(expected))
            self.assertEqual(list(own.keys()), [key for key in expected.keys() if key != "logits"])
            self.assert_logits(own.logits, expected.logits)
            self.assertIs(own["logits"], own.logits)
            self.assertIn("logits", own)
            (own.loss + own.logits.square().mean()).backward()   # both have gradients
            self.assertTrue(all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None))
            own = model(IDS, labels=IDS)
            own.logits = None
            self.assertIsNone(own.logits)

    def test_tuples_signatures_and_positions_are_the_class_s(self):
        model = load("llama").train()
        signature, expected = inspect.signature(model.forward), model(IDS, labels=IDS, use_cache=False)
        graft_kernels.kernelize(model)
        self.assertEqual(inspect.signature(model.forward), signature)   # Trainer keeps the columns that it names
        loss, logits = model(IDS, labels=IDS, use_cache=False, return_dict=False)
        self.assert_logits(logits, expected.logits)
        torch.testing.assert_close(loss, expected.loss, rtol=1e-5, atol=1e-5)
        place = list(signature.parameters).index("labels")
        torch.testing.assert_close(model(IDS, *[None] * (place - 1), IDS).loss, expected.loss, rtol=1e-5, atol=1e-5)
        shifted = torch.nn.functional.pad(IDS, (0, 1), value=-100)[:, 1:]
        torch.testing.assert_close(model(IDS, labels=IDS, shift_labels=shifted).loss, expected.loss, rtol=1e-5, atol=1e-5)

    def test_a_second_backward_through_one_graph(self):
        model = graft_kernels.kernelize(load("llama").train())
        loss = model(IDS, labels=IDS).loss
        first = torch.autograd.grad(loss, model.lm_head.weight, retain_graph=True)[0].clone()
        torch.testing.assert_close(torch.autograd.grad(3 * loss, model.lm_head.weight)[0], 3 * first)

    def test_positions_that_a_model_counts_are_looked_at_once(self):
        from transformers import masking_utils
        name, seen = "find_packed_sequence_indices", []
        before = getattr(masking_utils, name)
        self.addCleanup(setattr, masking_utils, name, before)

        def look(position_ids):
            seen.append(tuple(position_ids.shape))
            return inspect.unwrap(before)(position_ids)

        setattr(masking_utils, name, look)
        model, reference = load("llama").train(), load("llama").train()
        graft_kernels.kernelize(model)

        def loss(of, ids=IDS, **given):
            return of(ids, labels=ids, use_cache=False, **given).loss

        first = loss(model)
        self.assertEqual(len(seen), 1)
        self.assertTrue(torch.equal(loss(model), first))
        self.assertEqual(len(seen), 1)
        loss(model, IDS[:, :4])
        self.assertEqual(len(seen), 2, "another shape")
        packed = torch.tensor([[0, 1, 2, 0, 1, 2, 3]]).expand(2, -1)
        torch.testing.assert_close(loss(model, position_ids=packed), loss(reference, position_ids=packed), rtol=1e-5, atol=1e-5)
        self.assertEqual(len(seen), 4, "given positions are looked at, with kernels and without")
        loss(reference)
        loss(model.eval())
        self.assertEqual(len(seen), 6, "only training remembers")

    def test_what_is_refused_says_why(self):
        model = load("llama").train()
        model.loss_function = lambda logits, labels, vocab_size, **arguments: logits.sum()
        cases = [(model, "its loss is not transformers' ForCausalLMLoss")]
        self.assertEqual(self.loss_row(graft_kernels.kernelize(build("granite").train())).refusal, "")   # divides by one
        model = build("granite").train()
        model.config.logits_scaling = 4.0
        cases.append((model, "does more to its logits than a soft cap"))
        model = load("llama").train()
        model.lm_head.register_forward_hook(lambda *arguments: None)
        cases.append((model, "hooks on its head would not be called"))
        for model, reason in cases:
            self.assertEqual(self.loss_row(graft_kernels.kernelize(model)).refusal, reason)
            self.assertIsNotNone(model(IDS, labels=IDS).logits)
        model = graft_kernels.kernelize(load("llama").train(), "training|torch_compile")
        self.assertEqual(self.loss_row(model).refusal, "torch.compile makes its own of it")

    def test_autocast_keeps_the_class(self):
        model = load("llama").train()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            expected = model(IDS, labels=IDS).loss
            own = graft_kernels.kernelize(model)(IDS, labels=IDS)
        self.assertIsNotNone(own.logits)
        torch.testing.assert_close(own.loss, expected, rtol=1e-2, atol=1e-2)


class ResidualSums(Beside):
    """The sums of Llama's order of work join the norms, in training."""

    def rows(self, model):
        return [row for row in graft_kernels.report(model).rows if row.slot.layer == "residual sums"]

    def test_only_layers_of_that_order_are_taken(self):
        for name, taken in (("llama", True), ("mistral", True), ("qwen2", True), ("qwen3", True), ("smollm3", True),
                            ("gemma2", False), ("gemma3", False), ("olmo2", False), ("phi3", False)):
            model = graft_kernels.kernelize(load(name).train())
            self.assertEqual(len(self.rows(model)), model.config.num_hidden_layers if taken else 0, name)
            self.assertEqual([row.refusal for row in self.rows(model) if row.refusal], [])
        self.assertEqual(self.rows(graft_kernels.kernelize(load("llama"))), [])
        granite = build("granite").train()   # multiplies what it adds, by one unless its config says otherwise
        self.assertEqual(self.rows(graft_kernels.kernelize(granite)), [])

    def test_sums_are_rounded_as_before(self):
        """In bfloat16, with the norms' own package on both sides: the same bits forward, gradients no further from float64
        than twice those of separate sums."""
        results = []
        for joined in (False, True):
            model = graft_kernels.kernelize(load("llama", torch.bfloat16).train())
            for module in model.modules():
                if not joined and type(module).__name__ == "LlamaDecoderLayer":
                    module.__dict__.pop("forward")
            hidden = model.model(IDS).last_hidden_state
            results.append((hidden, gradients(model)))
        self.assertTrue(torch.equal(results[0][0], results[1][0]))
        exact = gradients(load("llama").double().train())
        for name, value in exact.items():
            apart, joined = ((grads[name].double() - value).norm() for _, grads in results)
            self.assertLessEqual(joined, 2 * apart + 1e-3 * value.norm(), name)

    def test_hooks_of_a_norm_keep_the_layer(self):
        model = load("llama").train()
        model.model.layers[0].input_layernorm.register_forward_hook(lambda *arguments: None)
        self.assertEqual(len(self.rows(graft_kernels.kernelize(model))), model.config.num_hidden_layers - 1)

    def test_a_forward_that_asks_for_the_type_of_its_layer(self):
        """As from transformers 5.23 on, where the forward of a class checkpoints."""
        expected = gradients(load("llama").train())
        model, asked = load("llama").train(), []
        own = type(model.model.layers[0]).forward

        class Checkpointing(type(model.model.layers[0])):
            def forward(self, *args, **kwargs):
                asked.append(type(self).forward is Checkpointing.forward)
                return own(self, *args, **kwargs)

        for layer in model.model.layers:
            layer.__class__ = Checkpointing
        graft_kernels.kernelize(model)
        self.assertEqual(len(self.rows(model)), model.config.num_hidden_layers)
        self.assert_gradients(gradients(model), expected)
        self.assertNotIn(True, asked[-model.config.num_hidden_layers:])
        model.gradient_checkpointing_enable()
        self.assert_gradients(gradients(model), expected)
        self.assertTrue(all(asked[-model.config.num_hidden_layers:]))

    def test_checkpointing_and_hidden_states(self):
        expected = gradients(load("llama").train())
        model = graft_kernels.kernelize(load("llama").train())
        states = load("llama").train()(IDS, output_hidden_states=True).hidden_states
        for own, other in zip(model(IDS, output_hidden_states=True).hidden_states, states):
            self.assert_logits(own, other)
        model.gradient_checkpointing_enable()
        self.assert_gradients(gradients(model), expected)


class JoinedProjections(Beside):
    """The projections of attention that have one input give it one gradient, in training."""

    def rows(self, model):
        return [row for row in graft_kernels.report(model).rows if row.slot.layer == "joined projections"]

    def test_gradients_are_those_of_separate_projections(self):
        for name in FAMILIES:
            with self.subTest(name):
                expected = gradients(load(name).train())
                model = graft_kernels.kernelize(load(name).train())
                self.assertEqual(len(self.rows(model)), model.config.num_hidden_layers if name != "phi3" else 0)
                self.assertEqual([row.refusal for row in self.rows(model) if row.refusal], [])
                self.assert_gradients(gradients(model), expected)
                self.assertFalse(any(part.is_apart or part.made for part in self.states(model)), name)
        self.assertEqual(self.rows(graft_kernels.kernelize(load("llama"))), [])

    def states(self, model):
        return [module._graft_joined for module in model.modules() if hasattr(module, "_graft_joined")]

    def test_one_node_makes_them_and_no_part_runs_alone(self):
        model = graft_kernels.kernelize(load("llama").train())
        attention = model.model.layers[0].self_attn
        x = torch.randn(2, 3, attention.q_proj.in_features, requires_grad=True)
        results = [getattr(attention, name)(x) for name in ("q_proj", "k_proj", "v_proj")]
        self.assertEqual(len({result.grad_fn for result in results}), 1)
        self.assertIn("JoinedLinears", type(results[0].grad_fn).__name__)
        (own,) = torch.autograd.grad(results[0].sum() + results[2].square().sum(), x)   # one that nobody uses
        graft_kernels.unkernelize(model)
        self.assertFalse(self.states(model))
        (apart,) = torch.autograd.grad(attention.q_proj(x).sum() + attention.v_proj(x).square().sum(), x)
        torch.testing.assert_close(own, apart)

    def test_frozen_weights_and_copies(self):
        model = graft_kernels.kernelize(load("qwen2").train())   # its projections have biases
        for layer in model.model.layers:
            layer.self_attn.k_proj.weight.requires_grad_(False)
        other = copy.deepcopy(model)
        with torch.no_grad():
            other.model.layers[0].self_attn.v_proj.weight.zero_()
        grads = gradients(model)
        self.assertFalse([name for name in grads if name.endswith("k_proj.weight")])
        self.assertTrue(any(name.endswith("k_proj.bias") for name in grads))
        self.assertTrue(grads["model.layers.0.self_attn.o_proj.weight"].abs().sum() > 0)
        copied = gradients(other)["model.layers.0.self_attn.o_proj.weight"]
        bias = other.model.layers[0].self_attn.v_proj.bias   # the copy multiplies with its own weights
        self.assertNotEqual(copied.abs().sum(), grads["model.layers.0.self_attn.o_proj.weight"].abs().sum(), bias)

    def test_parts_that_are_called_in_another_manner_run_alone(self):
        model = graft_kernels.kernelize(load("llama").train())
        attention = model.model.layers[0].self_attn
        x, y = (torch.randn(1, 3, attention.q_proj.in_features, requires_grad=True) for _ in range(2))
        for _ in range(3):
            q, k = attention.q_proj(x), attention.k_proj(y)
        self.assertTrue(attention.q_proj._graft_joined.is_apart)
        self.assertIsNone(attention.q_proj._graft_joined.made)
        torch.testing.assert_close(q, torch.nn.functional.linear(x, attention.q_proj.weight))
        torch.testing.assert_close(k, torch.nn.functional.linear(y, attention.k_proj.weight))

    def test_checkpointing_autocast_and_no_gradients(self):
        expected = gradients(load("llama").train())
        model = graft_kernels.kernelize(load("llama").train())
        model.gradient_checkpointing_enable()
        self.assert_gradients(gradients(model), expected)
        attention = model.model.layers[0].self_attn
        x = torch.randn(1, 3, attention.q_proj.in_features)
        with torch.no_grad():
            self.assertIsNone(attention.q_proj(x).grad_fn)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            self.assertEqual(attention.q_proj(x.requires_grad_()).dtype, torch.bfloat16)


class TiedEmbeddings(Beside):
    """An embedding that is the head too adds its gradient to the head's."""

    device = "cpu"

    def pair(self, dtype=torch.float32, **config):
        torch.manual_seed(3)
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(
            "llama", **{**TINY, "tie_word_embeddings": True, "pad_token_id": None, **config})).to(self.device, dtype).train()
        self.assertIs(model.lm_head.weight, model.get_input_embeddings().weight)
        return copy.deepcopy(model), graft_kernels.kernelize(model)

    def steps(self, model, ids, **arguments):
        model.zero_grad()
        loss = model(ids, labels=ids, **arguments).loss
        (2 * loss).backward()
        return loss, model.lm_head.weight.grad

    def test_the_gradient_is_that_of_both(self):
        torch.manual_seed(4)
        often = torch.randint(0, 64, (3, 40)).clamp(max=9)   # each id many times
        often[0, :33] = 5
        for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
            for config in ({}, {"pad_token_id": 5}):
                for ids in (IDS, often):
                    plain, own = self.pair(dtype, **config)
                    expected, value = self.steps(plain, ids.to(self.device))
                    loss, grad = self.steps(own, ids.to(self.device))
                    torch.testing.assert_close(loss, expected, rtol=tolerance, atol=tolerance)
                    self.assertLessEqual((grad - value).norm().item(), 2 * tolerance * value.norm().item())
                    again = self.steps(own, ids.to(self.device))[1]
                    self.assertTrue(torch.equal(grad, again))

    def test_what_else_uses_the_weight_has_its_share(self):
        plain, own = self.pair()
        ids, grads = IDS.to(self.device), []
        for model in (plain, own):
            output = model(ids, labels=ids)
            (output.loss + output.logits.square().mean() + model.lm_head.weight.square().sum()).backward()
            grads.append(model.lm_head.weight.grad)
        torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-5)

    def test_embeddings_from_elsewhere_and_accumulation(self):
        plain, own = self.pair()
        ids = IDS.to(self.device)
        for model in (plain, own):
            for _ in range(2):   # adds up
                model(inputs_embeds=model.get_input_embeddings()(ids), labels=ids).loss.backward()
                model(ids, labels=ids).loss.backward()
        torch.testing.assert_close(own.lm_head.weight.grad, plain.lm_head.weight.grad, rtol=1e-4, atol=1e-5)
        own.get_input_embeddings().weight.requires_grad_(False)
        own(ids, labels=ids).loss.backward()
        graft_kernels.unkernelize(own)
        self.assertNotIn("forward", own.get_input_embeddings().__dict__)

    def test_an_untied_head_keeps_both(self):
        plain, own = (load("llama").train() for _ in range(2))
        own.lm_head.weight = torch.nn.Parameter(own.lm_head.weight.detach().clone())
        plain.lm_head.weight = torch.nn.Parameter(plain.lm_head.weight.detach().clone())
        self.assert_gradients(gradients(graft_kernels.kernelize(own)), gradients(plain))


@unittest.skipUnless(torch.cuda.is_available(), "no CUDA device")
class TiedEmbeddingsOnCuda(TiedEmbeddings):
    device = "cuda"


if __name__ == "__main__":
    unittest.main()
