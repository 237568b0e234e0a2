"""The demo model beside the real transformers: same ids, same chat prompts, logits no further from float64."""

import pathlib
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import reference_model  # noqa: E402
from support import SWAPPED_LAYERS, Workspace, demo_model, run, run_json  # noqa: E402

PROMPTS = ["The capital of France is", "def fibonacci(n):\n", "1, 2, 3, 4,"]


class Smollm2(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        import torch

        torch.set_num_threads(2)
        cls.torch = torch
        cls.model, cls.tokenizer = reference_model.load(demo_model())
        # As --ignore-eos: an end token is a token like any other.
        cls.model.generation_config.eos_token_id = None

    def test_greedy_ids(self):
        for prompt in PROMPTS:
            ours = run_json("generate", "--prompt", prompt, "--max-new-tokens", "24", "--dtype", "float32",
                            "--ignore-eos")
            self.assertEqual({row["layer"] for row in ours["swapped"]}, SWAPPED_LAYERS)
            inputs = self.torch.tensor([ours["prompt_ids"]])
            with self.torch.no_grad():
                theirs = self.model.generate(inputs, max_new_tokens=24, do_sample=False, repetition_penalty=1.0,
                                             pad_token_id=0)
            self.assertEqual(ours["generated_ids"], theirs[0, inputs.shape[1]:].tolist(), prompt)

    def test_prompt_ids(self):
        for prompt in PROMPTS:
            ours = run_json("tokenize", demo_model(), prompt)["ids"]
            self.assertEqual(ours, self.tokenizer(prompt).input_ids, prompt)

    def test_chat_prompt_ids(self):
        for system in (None, "Answer in rhymes."):
            messages = [{"role": "system", "content": system}] if system else []
            messages.append({"role": "user", "content": "Name three rivers."})
            theirs = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
            ours = run_json("generate", "--chat", "Name three rivers.", "--max-new-tokens", "1",
                            *(["--system", system] if system else []))
            self.assertEqual(ours["prompt_ids"], theirs)

    def test_logits_are_no_further_from_float64_than_twice_transformers_own(self):
        from safetensors.torch import load_file

        ids = self.tokenizer(PROMPTS[1]).input_ids
        reference = {}
        with self.torch.no_grad():
            for dtype in (self.torch.float64, self.torch.bfloat16, self.torch.float32):
                model = reference_model.copy_as(self.model, dtype)
                reference[dtype] = model(self.torch.tensor([ids])).logits[0].double()
        exact = reference[self.torch.float64]
        with Workspace() as folder:
            out = folder / "logits.safetensors"
            for dtype in ("float32", "bfloat16"):
                for kernels in ("off", "on"):
                    done = run("logits", "--ids", ",".join(map(str, ids)), "--out", out, "--dtype", dtype,
                               "--kernels", kernels)
                    self.assertEqual(done.returncode, 0, done.stderr)
                    ours = load_file(out)["logits"].reshape(exact.shape).double()
                    error = (ours - exact).abs().max().item()
                    own = (reference[getattr(self.torch, dtype)] - exact).abs().max().item()
                    print(f"{dtype}, kernels {kernels}: error {error:.3g}, transformers {own:.3g}")
                    self.assertLessEqual(error, 2 * own, f"{dtype}, kernels {kernels}")


if __name__ == "__main__":
    unittest.main(verbosity=2)
