"""The demo model with its weights in the blocks of its .gguf file: ids, memory, instruction sets, other formats."""

import pathlib
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tools"))
import requantize_gguf  # noqa: E402
import teacher_forced  # noqa: E402
from support import GRAFT, PROMPT, Workspace, demo_model, run, run_json  # noqa: E402

WRITE = ("generate", "--prompt", PROMPT, "--max-new-tokens", "32", "--ignore-eos")
CHAT = ("generate", "--chat", "Explain in two sentences why the sky is blue.", "--max-new-tokens", "32")


def layers(result):
    return {row["layer"]: row["count"] for row in result["swapped"]}


class Packed(unittest.TestCase):
    def test_is_what_a_gguf_file_gets_with_kernels_and_without_a_dtype(self):
        packed = run_json(*WRITE)
        self.assertEqual(layers(packed).get("PackedLinear"), 211)  # seven of each layer, and the head
        self.assertNotIn("Linear", layers(packed))
        self.assertAlmostEqual(packed["packed_bytes"], demo_model().stat().st_size, delta=3e6)
        for other in (("--dtype", "float32"), ("--weights", "unpacked"), ("--kernels", "off")):
            result = run_json(*WRITE, *other)
            self.assertEqual(result["packed_bytes"], 0, other)
            self.assertNotIn("PackedLinear", layers(result))
        self.assertIn("of them packed", run(*WRITE).stderr)

    def test_ids_are_those_of_the_unpacked_model(self):
        # A prompt of few tokens is nearly exact; a chat is multiplied in bfloat16 where the processor can.
        for write, allowed in ((WRITE, ["equal"]), (CHAT, ["equal", "tie"])):
            off, on = run_json(*write, "--weights", "unpacked", "--kernels", "off"), run_json(*write)
            verdict, ties = teacher_forced.compare(GRAFT, ["--weights", "unpacked"], "bfloat16", off, on)
            self.assertIn(verdict, allowed, ties)

    def test_the_reference_of_packed_weights_is_the_unpacked_model(self):
        off, on = (run_json(*WRITE, "--weights", weights, "--kernels", "off") for weights in ("unpacked", "packed"))
        self.assertEqual(off["generated_ids"], on["generated_ids"])
        self.assertEqual(on["swapped"], [])

    def test_lesser_instruction_sets_write_the_same(self):
        best = run_json(*WRITE)["generated_ids"]
        for isa in ("avx512_bf16", "avx512", "avx2", "plain"):
            self.assertEqual(run_json(*WRITE, env={"GRAFT_CPU_ISA": isa})["generated_ids"], best, isa)

    def test_memory_is_that_of_the_file_and_not_of_its_values(self):
        packed, unpacked = run_json(*WRITE), run_json(*WRITE, "--dtype", "float32")
        # 135 million values of four bytes against less than one.
        self.assertGreater(unpacked["peak_rss_bytes"] - packed["peak_rss_bytes"], 250e6)

    def test_other_formats(self):
        with Workspace() as folder:
            for name in ("Q8_0", "Q5_1"):
                file = pathlib.Path(folder) / f"{name}.gguf"
                requantize_gguf.requantize(demo_model(), file, name)
                off, on = (run_json(*WRITE, file, "--kernels", kernels) for kernels in ("off", "on"))
                self.assertEqual(off["generated_ids"], on["generated_ids"], name)
                report = run_json("explain", file)
                variants = {slot["numeric_variant"] for slot in report["slots"] if slot["layer"] == "PackedLinear"}
                self.assertIn(name, variants)

    def test_refusals(self):
        for arguments in (("--weights", "squeezed"), ("--device", "cuda", "--weights", "packed")):
            self.assertNotEqual(run(*WRITE, *arguments).returncode, 0)


if __name__ == "__main__":
    unittest.main()
