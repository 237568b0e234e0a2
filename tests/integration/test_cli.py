"""The program as a person or a script meets it."""

import json
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from support import GRAFT, ROOT, run, run_json  # noqa: E402

sys.path.insert(0, str(ROOT / "tools"))
import teacher_forced  # noqa: E402

PROMPT = "The capital of France is"


class StartUp(unittest.TestCase):
    def test_version_and_help_start_without_libtorch(self):
        needed = subprocess.run(["ldd", GRAFT], capture_output=True, text=True, check=True).stdout
        self.assertNotIn("torch", needed)
        for flag in ("--version", "--help"):
            seconds = []
            for _ in range(10):
                start = time.perf_counter()
                self.assertEqual(run(flag).returncode, 0)
                seconds.append(time.perf_counter() - start)
            # 20 ms on an idle machine; the test runner keeps this one busy.
            self.assertLess(min(seconds), 0.1, flag)

    def test_first_token_of_the_demo_model_comes_within_a_second_and_a_half(self):
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            done = run("generate", "--prompt", PROMPT, "--max-new-tokens", "1", "-q")
            seconds.append(time.perf_counter() - start)
            self.assertEqual(done.returncode, 0, done.stderr)
        self.assertLess(min(seconds), 1.5)


class Generate(unittest.TestCase):
    def test_json_has_the_documented_keys(self):
        result = run_json("generate", "--prompt", PROMPT, "--max-new-tokens", "8")
        for key in ("prompt_ids", "generated_ids", "text", "prefill_tokens_per_second", "decode_tokens_per_second",
                    "peak_rss_bytes", "swapped"):
            self.assertIn(key, result)
        self.assertEqual(len(result["generated_ids"]), 8)
        self.assertGreater(len(result["swapped"]), 0)
        for row in result["swapped"]:
            self.assertEqual({"layer", "package", "variant", "count"} - set(row), set())

    def test_ids_are_equal_with_kernels_off_and_on(self):
        for dtype in ("float32", "bfloat16"):
            off, on = (run_json("generate", "--chat", "Name three rivers.", "--max-new-tokens", "48", "--dtype", dtype,
                                "--kernels", kernels) for kernels in ("off", "on"))
            verdict, ties = teacher_forced.compare(GRAFT, ["--dtype", dtype], dtype, off, on)
            self.assertIn(verdict, ["equal"] if dtype == "float32" else ["equal", "tie"], f"{dtype}: {ties}")

    def test_no_python_and_no_cuda_library_is_mapped_on_the_cpu(self):
        process = subprocess.Popen([GRAFT, "generate", "--prompt", PROMPT, "--max-new-tokens", "400",
                                    "--ignore-eos", "--json"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        try:
            time.sleep(2.5)
            maps = pathlib.Path(f"/proc/{process.pid}/maps").read_text()
        finally:
            process.kill()
            process.communicate()
        self.assertIn("libtorch_cpu", maps)
        self.assertIn("abi3.so", maps)
        self.assertNotIn("libpython", maps)
        self.assertNotIn("libtorch_python", maps)
        self.assertNotIn("libtorch_cuda", maps)

    def test_a_seed_repeats_a_sample_and_another_seed_does_not(self):
        def sample(seed):
            return run_json("generate", "--prompt", PROMPT, "--max-new-tokens", "16", "--temperature", "1.0",
                            "--seed", seed)["generated_ids"]

        self.assertEqual(sample(1), sample(1))
        self.assertNotEqual(sample(1), sample(2))

    def test_streamed_text_is_the_whole_text(self):
        arguments = ("generate", "--prompt", PROMPT, "--max-new-tokens", "24", "-q")
        self.assertEqual(run(*arguments, "--stream").stdout.strip(), run(*arguments).stdout.strip())

    def test_use_hub_kernels_off_swaps_nothing(self):
        for name, value in (("USE_HUB_KERNELS", "0"), ("DISABLE_KERNEL_MAPPING", "1")):
            result = run_json("generate", "--prompt", PROMPT, "--max-new-tokens", "2", env={name: value})
            self.assertEqual(result["swapped"], [], name)


class Logits(unittest.TestCase):
    def test_writes_float32_logits(self):
        from safetensors import safe_open

        with tempfile.TemporaryDirectory() as folder:
            out = pathlib.Path(folder) / "logits.safetensors"
            done = run("logits", "--ids", "1,2,3", "--out", out)
            self.assertEqual(done.returncode, 0, done.stderr)
            with safe_open(out, "np") as file:
                logits = file.get_tensor("logits")
        self.assertEqual(str(logits.dtype), "float32")
        self.assertEqual(logits.shape[-2:], (3, 49152))


class Explain(unittest.TestCase):
    def test_shows_every_slot_with_its_reason(self):
        report = run_json("explain")
        layers = {slot["layer"] for slot in report["slots"]}
        self.assertLessEqual({"RMSNorm", "SiluAndMul", "Linear"}, layers)
        for slot in report["slots"]:
            self.assertTrue(slot["chosen"] or slot["considered"], slot)


class Errors(unittest.TestCase):
    def test_exit_codes_and_texts(self):
        cases = [
            (("generate", "/nowhere", "--prompt", "x"), 1, "/nowhere"),
            (("generate", "--prompt", "x", "--top-p", "7"), 2, "top_p"),
            (("generate", "--prompt", "x", "--device", "warp"), 2, "warp"),
            (("generate", "--bogus"), 2, "bogus"),
            (("frobnicate",), 2, ""),
            (("generate", "--prompt", "x", "--max-new-tokens", "100000"), 2, "8192"),
            (("logits", "--ids", "99999999", "--out", "/tmp/x.safetensors"), 2, "99999999"),
        ]
        for arguments, code, text in cases:
            done = run(*arguments)
            self.assertEqual(done.returncode, code, f"{arguments}\n{done.stdout}{done.stderr}")
            self.assertIn(text, done.stderr, arguments)
            self.assertEqual(done.stdout, "", arguments)

    def test_a_missing_cuda_device_is_named(self):
        if pathlib.Path("/dev/nvidiactl").exists():
            self.skipTest("a GPU is here")
        done = run("generate", "--prompt", "x", "--device", "cuda")
        self.assertEqual(done.returncode, 5, done.stderr)
        self.assertIn("cuda", done.stderr)

    def test_errors_are_json_under_json(self):
        result = run_json("generate", "/nowhere", "--prompt", "x", expect=1)
        self.assertIn("code", result["error"])
        self.assertIn("/nowhere", result["error"]["message"])


class Documentation(unittest.TestCase):
    def test_every_environment_variable_in_the_sources_is_documented(self):
        documented = (ROOT / "docs/env.md").read_text()
        pattern = re.compile(r'(?:env::get|getenv|env_get|folder)\(\s*"([A-Z0-9_]+)"')
        for folder in ("graft", "cli", "kernels"):
            for path in (ROOT / folder).rglob("*.[ch]*"):
                if path.stem.endswith("_test"):
                    continue
                for name in pattern.findall(path.read_text(errors="replace")):
                    self.assertIn(f"`{name}`", documented, path)

    def test_every_help_page_names_its_options(self):
        for command in ("generate", "tokenize", "logits", "explain", "info", "doctor"):
            done = run(command, "--help")
            self.assertEqual(done.returncode, 0)
            self.assertIn("--json", done.stdout)

    def test_the_support_table_of_the_readme_is_what_the_registries_say(self):
        done = subprocess.run([sys.executable, ROOT / "tools/update_readme.py", "--check", GRAFT], check=False,
                              capture_output=True, text=True)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)


if __name__ == "__main__":
    unittest.main(verbosity=2)
