"""Training in C++: examples/finetune with kernels off and on, and the checkpoint that transformers loads."""

import json
import os
import pathlib
import subprocess
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from support import BUILD, Workspace, demo_model, environment, run  # noqa: E402

os.environ["HF_HUB_OFFLINE"] = "1"
TEXT = ("The lighthouse keeper wrote one line a day. On Monday the fog came in before noon and stayed. On Tuesday a "
        "ship passed so close that its bell could be heard in the kitchen. On Wednesday nothing happened, and he wrote "
        "that down too, because a day without news is still a day and somebody may want to know about it later on. ")
LENGTH = 64


def finetune(text, out, *options):
    """The losses of the steps."""
    done = subprocess.run([str(BUILD / "bin/example_finetune"), str(demo_model()), str(text), str(out), "--steps", "3",
                           "--batch", "1", "--length", str(LENGTH), "--learning-rate", "1e-4", *options],
                          capture_output=True, text=True, timeout=300, env=environment(), check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line)["loss"] for line in done.stdout.splitlines()]


class Finetune(unittest.TestCase):
    def setUp(self):
        self.folder = self.enterContext(Workspace())
        self.text = self.folder / "text.txt"
        self.text.write_text(TEXT)  # more than one row of tokens, less than two: every step sees the same

    def test_learns_the_same_with_and_without_kernels_and_transformers_loads_the_result(self):
        off = finetune(self.text, self.folder / "off", "--kernels", "off")
        on = finetune(self.text, self.folder / "on", "--kernels", "on")
        self.assertLess(off[-1], 0.8 * off[0])
        for without, with_kernels in zip(off, on):
            self.assertAlmostEqual(without, with_kernels, delta=2e-4 * without)

        import torch
        from safetensors.torch import load_file
        from transformers import AutoModelForCausalLM

        out = self.folder / "on"
        model, info = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, output_loading_info=True)
        self.assertFalse(info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"], info)
        ids = [[1, 504, 30684, 28, 260, 1379]]
        with torch.inference_mode():
            theirs = model(torch.tensor(ids)).logits[0]
        self.assertEqual(run("logits", out, "--ids", ",".join(map(str, ids[0])), "--out", self.folder / "x.safetensors",
                             "--dtype", "float32").returncode, 0)
        ours = load_file(self.folder / "x.safetensors")["logits"].reshape(theirs.shape)
        self.assertLess((ours - theirs).abs().max().item(), 1e-3)

    def test_bfloat16_learns_the_same_too(self):
        # A step of 1e-4 is less than half a unit of many bfloat16 weights: it is the optimizer's float32 copies that
        # gather them, so both learn, and more slowly than float32.
        off = finetune(self.text, self.folder / "off", "--dtype", "bfloat16", "--kernels", "off")
        mixed = finetune(self.text, self.folder / "mixed", "--dtype", "bfloat16")
        self.assertLess(mixed[-1], 0.9 * mixed[0])
        for without, with_kernels in zip(off, mixed):
            self.assertAlmostEqual(without, with_kernels, delta=0.02 * without)
        config = json.loads((self.folder / "mixed/config.json").read_text())
        self.assertEqual((config["dtype"], config["model_type"]), ("bfloat16", "llama"))


if __name__ == "__main__":
    unittest.main()
