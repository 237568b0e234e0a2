"""The demo model beside the real transformers: same ids, close logits."""

import os
import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from support import demo_model, run, run_json  # noqa: E402

os.environ["HF_HUB_OFFLINE"] = "1"
PROMPTS = ["The capital of France is", "def fibonacci(n):\n", "1, 2, 3, 4,"]


class Smollm2(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.set_num_threads(2)
        model = demo_model()
        cls.torch = torch
        cls.tokenizer = AutoTokenizer.from_pretrained(model.parent, gguf_file=model.name)
        cls.model = AutoModelForCausalLM.from_pretrained(model.parent, gguf_file=model.name, dtype=torch.float32)

    def test_greedy_ids(self):
        for prompt in PROMPTS:
            ours = run_json("generate", "--prompt", prompt, "--max-new-tokens", "40", "--dtype", "float32",
                            "--ignore-eos")
            inputs = self.torch.tensor([ours["prompt_ids"]])
            with self.torch.no_grad():
                theirs = self.model.generate(inputs, max_new_tokens=40, min_new_tokens=40, do_sample=False,
                                             repetition_penalty=1.0, pad_token_id=0)
            self.assertEqual(ours["generated_ids"], theirs[0, inputs.shape[1]:].tolist(), prompt)

    def test_prompt_ids(self):
        for prompt in PROMPTS:
            ours = run_json("tokenize", demo_model(), prompt)["ids"]
            self.assertEqual(ours, self.tokenizer(prompt).input_ids, prompt)

    def test_logits(self):
        from safetensors.torch import load_file

        ids = self.tokenizer(PROMPTS[1]).input_ids
        with self.torch.no_grad():
            reference = self.model(self.torch.tensor([ids])).logits[0]
            double = self.model.double()(self.torch.tensor([ids])).logits[0]
            self.model.float()
        with tempfile.TemporaryDirectory() as folder:
            out = pathlib.Path(folder) / "logits.safetensors"
            for kernels in ("off", "on"):
                done = run("logits", "--ids", ",".join(map(str, ids)), "--out", out, "--dtype", "float32",
                           "--kernels", kernels)
                self.assertEqual(done.returncode, 0, done.stderr)
                ours = load_file(out)["logits"].reshape(reference.shape)
                error = (ours.double() - double).abs().max().item()
                allowed = 2 * (reference.double() - double).abs().max().item()
                self.assertLessEqual(error, allowed, f"kernels {kernels}")


if __name__ == "__main__":
    unittest.main(verbosity=2)
