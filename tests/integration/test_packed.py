"""The demo model with its weights in the blocks of its .gguf file: ids, memory, instruction sets, other formats."""

import pathlib
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tools"))
import requantize_gguf  # noqa: E402
import teacher_forced  # noqa: E402
from support import GRAFT, PROMPT, TINY, Workspace, demo_model, run, run_json  # noqa: E402

WRITE = ("generate", "--prompt", PROMPT, "--max-new-tokens", "32", "--ignore-eos")
CHAT = ("generate", "--chat", "Explain in two sentences why the sky is blue.", "--max-new-tokens", "32")


def layers(result):
    return {row["layer"]: row["count"] for row in result["swapped"]}


def told(report):
    """What a plan and what was loaded have to agree on."""
    keys = ("slot", "layer", "numeric_variant", "mode", "chosen", "variant", "id", "source")
    return [{key: slot[key] for key in keys} for slot in report["slots"]]


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

    def test_a_plan_says_what_loading_makes_of_every_layer_and_reads_no_weights(self):
        for arguments in ((), ("--weights", "unpacked"), ("--weights", "packed"), ("--dtype", "bfloat16"),
                          ("--mode", "training"), ("--mode", "inference+compile")):
            planned, explained = (run_json(command, demo_model(), *arguments) for command in ("plan", "explain"))
            self.assertEqual(told(planned), told(explained), arguments)
            self.assertEqual((planned["device"], planned["dtype"]), (explained["device"], explained["dtype"]))
            self.assertEqual(layers(planned), layers(explained), arguments)
            self.assertEqual((planned.get("dry_run"), explained.get("dry_run")), (True, None))
        packed = run_json("plan", demo_model())
        self.assertEqual(layers(packed).get("PackedLinear"), 211)
        self.assertEqual({slot["chosen"] for slot in packed["slots"] if slot["layer"] == "PackedLinear"},
                         {"graft-kernels/linear:PackedLinear"})
        self.assertIn("graft-kernels/linear:PackedLinear", run("plan", demo_model()).stdout)
        for switched_off in ({"USE_HUB_KERNELS": "0"}, {"DISABLE_KERNEL_MAPPING": "1"}):
            planned, explained = (run_json(command, demo_model(), env=switched_off) for command in ("plan", "explain"))
            self.assertEqual(told(planned), told(explained), switched_off)
            self.assertNotIn("PackedLinear", {slot["layer"] for slot in planned["slots"]})

    def test_a_plan_of_other_formats_names_each_of_them(self):
        with Workspace() as folder:
            file = pathlib.Path(folder) / "Q5_1.gguf"
            requantize_gguf.requantize(demo_model(), file, "Q5_1")
            planned, explained = run_json("plan", file), run_json("explain", file)
            self.assertEqual(told(planned), told(explained))
            variants = {slot["numeric_variant"] for slot in planned["slots"] if slot["layer"] == "PackedLinear"}
            self.assertIn("Q5_1", variants)
            # Its header is all that a plan needs: the blocks may be anything.
            size = file.stat().st_size
            with open(file, "r+b") as out:
                out.seek(size // 2)
                out.truncate()
                out.truncate(size)
            self.assertEqual(told(run_json("plan", file)), told(planned))

    def test_refusals(self):
        for arguments in (("--weights", "squeezed"), ("--device", "cuda", "--weights", "packed")):
            self.assertNotEqual(run(*WRITE, *arguments).returncode, 0)
        refused = run("plan", TINY, "--weights", "packed")
        self.assertEqual((refused.returncode, "models.auto_model.packed" in refused.stderr), (2, True), refused.stderr)


if __name__ == "__main__":
    unittest.main()
