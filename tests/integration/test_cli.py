"""The program as a person or a script meets it: what it prints, where, and what its options do."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from support import (GRAFT, HAS_GPU, PROMPT, ROOT, SWAPPED_LAYERS, SWAPPED_LAYERS_PACKED, TINY,  # noqa: E402
                     Workspace, demo_model, run, run_json, run_on_terminal, start)

sys.path.insert(0, str(ROOT / "tools"))
import teacher_forced  # noqa: E402

WRITE = ("generate", "--prompt", PROMPT)


class Generate(unittest.TestCase):
    def test_json_has_the_documented_keys(self):
        result = run_json(*WRITE, "--max-new-tokens", "8")
        for key in ("prompt_ids", "generated_ids", "text", "prefill_tokens_per_second", "decode_tokens_per_second",
                    "peak_rss_bytes", "packed_bytes", "swapped"):
            self.assertIn(key, result)
        self.assertEqual(len(result["generated_ids"]), 8)
        self.assertIn("Paris", result["text"])
        self.assertGreater(result["decode_tokens_per_second"], 0)
        self.assertGreater(result["peak_rss_bytes"], 100 << 20)
        self.assertEqual({row["layer"] for row in result["swapped"]}, SWAPPED_LAYERS_PACKED)
        for row in result["swapped"]:
            self.assertEqual(set(row), {"layer", "package", "variant", "count"})
            self.assertGreater(row["count"], 0)

    def test_peak_memory_is_not_that_of_whoever_started_the_program(self):
        code = ("import subprocess, sys; large = b'x' * (1 << 30); "
                "sys.exit(subprocess.run(sys.argv[1:], check=False).returncode)")
        done = subprocess.run([sys.executable, "-c", code, str(GRAFT), "generate", str(TINY), "--prompt-ids", "1,2,3",
                               "--max-new-tokens", "2", "--json"], capture_output=True, text=True, timeout=120, check=True)
        self.assertLess(json.loads(done.stdout)["peak_rss_bytes"], 900 << 20)

    def test_ids_are_equal_with_kernels_off_and_on(self):
        for dtype in ("float32", "bfloat16"):
            off, on = (run_json("generate", "--chat", "Name three rivers.", "--max-new-tokens", "32", "--dtype", dtype,
                                "--kernels", kernels) for kernels in ("off", "on"))
            self.assertEqual(off["swapped"], [])
            verdict, ties = teacher_forced.compare(GRAFT, ["--dtype", dtype], dtype, off, on)
            self.assertIn(verdict, ["equal"] if dtype == "float32" else ["equal", "tie"], f"{dtype}: {ties}")

    def test_no_python_and_no_cuda_library_is_mapped_on_the_cpu(self):
        process = start(*WRITE, "--max-new-tokens", "4000", "--ignore-eos", "--stream", "-q", stdout=subprocess.PIPE,
                        stderr=subprocess.DEVNULL)
        try:
            self.assertTrue(process.stdout.read(1))  # the kernels have been called
            maps = pathlib.Path(f"/proc/{process.pid}/maps").read_text()
        finally:
            process.kill()
            process.communicate()
        self.assertIn("libtorch_cpu", maps)
        self.assertIn(".abi3.so", maps)
        for name in ("libpython", "libtorch_python", "libtorch_cuda", "site-packages/numpy"):
            self.assertNotIn(name, maps)

    def test_use_hub_kernels_off_swaps_nothing(self):
        tiny = ("generate", TINY, "--prompt-ids", "1,2,3", "--max-new-tokens", "2")
        for name, value in (("USE_HUB_KERNELS", "0"), ("USE_HUB_KERNELS", "OFF"), ("USE_HUB_KERNELS", "NO"),
                            ("DISABLE_KERNEL_MAPPING", "1")):
            self.assertEqual(run_json(*tiny, env={name: value})["swapped"], [], f"{name}={value}")
        for name, value in (("USE_HUB_KERNELS", "1"), ("USE_HUB_KERNELS", "yes"), ("DISABLE_KERNEL_MAPPING", "0")):
            self.assertNotEqual(run_json(*tiny, env={name: value})["swapped"], [], f"{name}={value}")

    def test_a_prompt_comes_from_an_argument_a_file_or_stdin(self):
        text = "Grüße, 世界 🚀\n"
        with Workspace() as folder:
            (folder / "prompt.txt").write_text(text)
            one = ("generate", "--max-new-tokens", "1")
            ids = run_json(*one, "--prompt", text)["prompt_ids"]
            self.assertEqual(run_json(*one, "--prompt-file", folder / "prompt.txt")["prompt_ids"], ids)
            self.assertEqual(run_json(*one, "--prompt-file", "-", input=text)["prompt_ids"], ids)
        self.assertEqual(run_json("tokenize", demo_model(), text)["ids"], ids)

    def test_an_empty_prompt_starts_from_the_first_token(self):
        result = run_json("generate", "--prompt", "", "--max-new-tokens", "2")
        self.assertEqual(len(result["generated_ids"]), 2)

    def test_a_system_message_reaches_the_template(self):
        chat = ("generate", "--chat", "Hi", "--max-new-tokens", "1")
        plain, pirate = run_json(*chat), run_json(*chat, "--system", "You are a pirate.")
        self.assertNotEqual(plain["prompt_ids"], pirate["prompt_ids"])

    def test_a_stop_string_ends_the_text(self):
        whole = run_json(*WRITE, "--max-new-tokens", "12")
        stopped = run_json(*WRITE, "--max-new-tokens", "12", "--stop", "Paris")
        self.assertEqual(stopped["finish_reason"], "stop_string")
        self.assertEqual(stopped["generated_ids"], whole["generated_ids"][:len(stopped["generated_ids"])])
        self.assertIn("Paris", stopped["text"])

    def test_a_model_without_tokenizer_answers_in_ids(self):
        tiny = ("generate", TINY, "--prompt-ids", "1, 2,3", "--max-new-tokens", "4", "--ignore-eos", "-q")
        result = run_json(*tiny)
        expected = " ".join(map(str, result["generated_ids"]))
        self.assertEqual(result["prompt_ids"], [1, 2, 3])
        self.assertEqual(run(*tiny).stdout.split(), expected.split())
        self.assertEqual(run(*tiny, "--stream").stdout.split(), expected.split())

    def test_the_static_cache_writes_the_same(self):
        tiny = ("generate", TINY, "--prompt-ids", "1,2,3", "--max-new-tokens", "12", "--ignore-eos")
        dynamic, static = run_json(*tiny), run_json(*tiny, "--cache", "static")
        self.assertEqual(dynamic["generated_ids"], static["generated_ids"])
        self.assertEqual(dynamic["cuda_graph"], {"used": False, "reason": "the cache is dynamic: only a static one "
                                                                          "keeps its place"})
        self.assertEqual(static["cuda_graph"], {"used": False, "reason": "device cpu has no graphs"})
        self.assertEqual(run_json(*tiny, "--cache", "static", "--cuda-graph", "off")["cuda_graph"]["reason"],
                         "disable_compile is set")


class Sampling(unittest.TestCase):
    TINY = ("generate", TINY, "--prompt-ids", "1,2,3", "--max-new-tokens", "16", "--ignore-eos")

    def ids(self, *arguments):
        return run_json(*self.TINY, *arguments)["generated_ids"]

    def test_a_seed_repeats_a_sample_and_another_seed_does_not(self):
        self.assertEqual(self.ids("--temperature", "1", "--seed", "1"), self.ids("--temperature", "1", "--seed", "1"))
        self.assertNotEqual(self.ids("--temperature", "1", "--seed", "1"),
                            self.ids("--temperature", "1", "--seed", "2"))

    def test_what_leaves_one_token_is_greedy(self):
        greedy = self.ids()
        for arguments in (("--temperature", "0"), ("--temperature", "0", "--top-k", "5"),
                          ("--top-k", "1", "--seed", "5"), ("--temperature", "3", "--top-k", "1"),
                          ("--top-p", "0.0001", "--seed", "3"), ("--min-p", "1.0")):
            self.assertEqual(self.ids(*arguments), greedy, arguments)

    def test_a_sampling_option_alone_samples(self):
        for arguments in (("--top-k", "20"), ("--top-p", "0.95"), ("--min-p", "0.001"), ("--temperature", "1.5")):
            samples = {tuple(self.ids(*arguments, "--seed", seed)) for seed in range(3)}
            self.assertGreater(len(samples), 1, arguments)


class Streaming(unittest.TestCase):
    def test_streamed_text_is_the_whole_text(self):
        arguments = (*WRITE, "--max-new-tokens", "24", "-q")
        self.assertEqual(run(*arguments, "--stream").stdout, run(*arguments).stdout)

    def test_every_chunk_is_whole_characters(self):
        # Sampled at a high temperature, the model writes parts of characters of many scripts.
        reading, writing = os.pipe2(os.O_DIRECT | os.O_CLOEXEC)  # every write is one read, however late that comes
        process = start(*WRITE, "--max-new-tokens", "120", "--ignore-eos", "--temperature", "3", "--seed", "4",
                        "--stream", "-q", stdout=writing)
        os.close(writing)
        chunks = []
        while chunk := os.read(reading, 65536):
            chunks.append(chunk)
        os.close(reading)
        self.assertEqual(process.wait(), 0)
        self.assertGreater(len(chunks), 20)
        for chunk in chunks:
            chunk.decode()  # raises where a character is cut
        self.assertTrue(any(max(chunk) > 127 for chunk in chunks), "no character of several bytes was written")

    def test_under_json_every_token_is_a_line_and_the_last_line_is_the_result(self):
        done = run(*WRITE, "--max-new-tokens", "6", "--stream", "--json")
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        self.assertEqual([line["token"] for line in lines[:-1]], lines[-1]["generated_ids"])
        self.assertEqual("".join(line["text"] for line in lines[:-1]), lines[-1]["text"])


class Manners(unittest.TestCase):
    TINY = ("generate", TINY, "--prompt-ids", "1,2,3", "--max-new-tokens", "4")

    def test_data_is_on_stdout_and_summaries_are_on_stderr(self):
        done = run(*WRITE, "--max-new-tokens", "4")
        self.assertEqual(len(done.stdout.strip().splitlines()), 1)
        self.assertRegex(done.stderr, r"loaded llama: 134\.5 M parameters, [\d.]+ MiB of them packed, float32, cpu, in \d+")
        self.assertRegex(done.stderr, r"decode 3 tokens, [0-9.]+ tokens/s; kernels: .*RMSNorm")
        self.assertEqual(run(*WRITE, "--max-new-tokens", "4", "-q").stderr, "")

    def test_progress_is_drawn_on_a_terminal_only(self):
        code, seen = run_on_terminal(*self.TINY)
        self.assertEqual(code, 0)
        self.assertIn("loading weights", seen)
        self.assertIn("loaded llama", seen)
        for quiet in ({"TERM": "dumb"}, {"CI": "true"}):
            self.assertNotIn("\x1b", run_on_terminal(*self.TINY, env=quiet)[1])
        self.assertEqual(run_on_terminal(*self.TINY, "-q")[1], "")
        self.assertNotIn("\r", run(*self.TINY).stderr)

    def test_a_closed_pipe_ends_the_program_quietly(self):
        for ignore in (True, False):
            process = start(*WRITE, "--max-new-tokens", "4000", "--ignore-eos", "--stream", "-q",
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, restore_signals=ignore)
            process.stdout.read(1)
            process.stdout.close()
            error = process.stderr.read()
            process.stderr.close()
            self.assertIn(process.wait(timeout=30), (-signal.SIGPIPE, 128 + signal.SIGPIPE))
            self.assertEqual(error, b"")

    def test_a_full_disk_is_an_error(self):
        for arguments in (("tokenize", demo_model(), "x"), ("info", TINY), self.TINY):
            with open("/dev/full", "w") as full:
                process = start(*arguments, stdout=full, stderr=subprocess.PIPE)
                error = process.communicate()[1].decode()
            self.assertEqual(process.returncode, 1, arguments)
            self.assertIn("No space left", error)

    def test_closed_streams_do_not_crash_it(self):
        command = f"{GRAFT} {self.TINY[0]} {self.TINY[1]} {' '.join(self.TINY[2:])}"
        for closed, code in (("2>&-", 0), (">&-", 1), ("<&-", 0)):
            done = subprocess.run(["sh", "-c", f"{command} {closed}"], capture_output=True, text=True, check=False)
            self.assertEqual(done.returncode, code, closed + done.stderr)

    def test_kernels_that_are_not_there_are_said(self):
        warned = "no kernel could be swapped in"
        self.assertIn(warned, run(*self.TINY, env={"GRAFT_EMBEDDED_HUB": "/nowhere"}).stderr)
        self.assertNotIn(warned, run(*self.TINY).stderr)
        self.assertNotIn(warned, run(*self.TINY, env={"USE_HUB_KERNELS": "0"}).stderr)
        self.assertNotIn(warned, run(*self.TINY, "--kernels", "off").stderr)

    def test_an_interrupt_keeps_what_was_written(self):
        process = start(*WRITE, "--max-new-tokens", "4000", "--ignore-eos", "--json", "--stream",
                        stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        process.stdout.readline()
        begin = time.perf_counter()
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=60)
        self.assertLess(time.perf_counter() - begin, 20)  # 4000 tokens take longer
        self.assertEqual(process.returncode, 130, error)
        result = json.loads(out.splitlines()[-1])
        self.assertEqual(result["finish_reason"], "cancelled")
        self.assertGreaterEqual(len(result["generated_ids"]), 1)

    def test_help_names_options_and_fits(self):
        top = run("--help").stdout
        for command in ("generate", "tokenize", "logits", "explain", "info", "doctor", "download"):
            self.assertIn(command, top)
            done = run(command, "--help")
            self.assertEqual(done.returncode, 0)
            self.assertIn("--json", done.stdout)
        self.assertLessEqual(len(top.splitlines()), 30)

    def test_it_works_without_a_home_and_in_a_plain_locale(self):
        bare = {"HOME": "/nonexistent", "LANG": "C", "LC_ALL": "C", "XDG_CACHE_HOME": "", "HF_HOME": "",
                "TMPDIR": "/nonexistent"}
        text = "Grüße 🚀"
        self.assertEqual(run_json("tokenize", demo_model(), text, env=bare)["ids"],
                         run_json("tokenize", demo_model(), text)["ids"])
        self.assertNotEqual(run_json(*self.TINY, env=bare)["swapped"], [])
        self.assertIn("torch", run_json("doctor", env=bare))


class Tokenize(unittest.TestCase):
    def test_text_comes_from_an_argument_a_file_or_stdin(self):
        model, text = demo_model(), "Hello,\n\tworld\n"
        with Workspace() as folder:
            (folder / "text").write_text(text)
            expected = run_json("tokenize", model, text)
            self.assertEqual(len(expected["ids"]), len(expected["tokens"]))
            self.assertEqual(run_json("tokenize", model, "--file", folder / "text"), expected)
            self.assertEqual(run_json("tokenize", model, "--file", "-", input=text), expected)
            self.assertEqual(run_json("tokenize", model, input=text), expected)
        plain = run("tokenize", model, text)
        self.assertEqual(list(map(int, plain.stdout.split())), expected["ids"])

    def test_a_tokenizer_file_alone_is_enough(self):
        folder = ROOT / "tests/data/text/gpt2"
        self.assertEqual(run_json("tokenize", folder, "Hello")["ids"],
                         run_json("tokenize", folder / "tokenizer.json", "Hello")["ids"])

    def test_empty_text_has_no_ids_of_its_own(self):
        self.assertEqual(run_json("tokenize", demo_model(), "", "--no-special-tokens")["ids"], [])


class Logits(unittest.TestCase):
    def test_writes_float32_logits(self):
        from safetensors import safe_open

        with Workspace() as folder:
            out = folder / "logits.safetensors"
            for dtype in ("float32", "bfloat16"):
                done = run("logits", TINY, "--ids", "1,2,3", "--out", out, "--dtype", dtype)
                self.assertEqual(done.returncode, 0, done.stderr)
                self.assertEqual(done.stdout, "")
                with safe_open(out, "np") as file:
                    self.assertEqual(list(file.keys()), ["logits"])
                    logits = file.get_tensor("logits")
                self.assertEqual(str(logits.dtype), "float32")
                vocabulary = json.loads((TINY / "config.json").read_text())["vocab_size"]
                self.assertEqual(logits.shape[-2:], (3, vocabulary))


class Explain(unittest.TestCase):
    def test_shows_every_slot_with_its_reason(self):
        report = run_json("explain", TINY)
        layers = {slot["layer"] for slot in report["slots"]}
        self.assertLessEqual(SWAPPED_LAYERS, layers)
        for slot in report["slots"]:
            self.assertTrue(slot["considered"], slot)
            for item in slot["considered"]:
                self.assertTrue(item["outcome"] == "chosen" or item["reason"], item)
        self.assertEqual(report["cuda_graph"], {"possible": False, "reason": "device cpu has no graphs"})
        self.assertTrue(all(slot["capturable"] for slot in report["slots"]))
        text = run("explain", TINY).stdout
        self.assertRegex(text, r"swapped \d+ of \d+ slots on cpu in \w+, mode inference")
        for step in ("prefill", "decode"):
            candidates = report["attention"][step]
            self.assertTrue(any(not candidate["reason"] for candidate in candidates), candidates)
            self.assertEqual(candidates[-1]["name"], "plain ATen")
        self.assertIn("* the slot's kernel", text[text.index("decode (1 new token)"):])
        eager = run("explain", TINY, "--attn-implementation", "eager").stdout
        self.assertIn("* plain ATen", eager)

    def test_a_kernel_for_a_whole_mlp_shows_what_is_inside(self):
        report = run_json("explain", TINY)
        slots = {slot["slot"]: slot for slot in report["slots"]}
        mlp = slots["model.layers.0.mlp"]
        self.assertEqual((mlp["layer"], mlp["chosen"]), ("SwiGLUMLP", "graft-kernels/mlp:SwiGLUMLP"))
        for part in ("gate_proj", "up_proj", "down_proj", "act_and_mul"):
            slot = slots[f"model.layers.0.mlp.{part}"]
            self.assertEqual((slot["chosen"], slot["inside"]), ("", "model.layers.0.mlp"), slot)
        self.assertIn("inside graft-kernels/mlp:SwiGLUMLP\n", run("explain", TINY).stdout)
        off = run_json("explain", TINY, "--kernel-config", '{"SwiGLUMLP": ""}')
        served = {slot["slot"]: slot["chosen"] for slot in off["slots"]}
        self.assertEqual(served["model.layers.0.mlp"], "")
        self.assertEqual(served["model.layers.0.mlp.act_and_mul"], "graft-kernels/activation:SiluAndMul")
        ids = [run_json("generate", TINY, "--prompt-ids", "1,2,3", "--max-new-tokens", "12", *options)["generated_ids"]
               for options in (("--kernels", "off"), (), ("--kernel-config", '{"SwiGLUMLP": ""}'))]
        self.assertEqual(ids[0], ids[1])
        self.assertEqual(ids[0], ids[2])

    def test_each_mode_is_explained(self):
        for mode in ("training", "inference+compile", "training+compile"):
            report = run_json("explain", TINY, "--mode", mode)
            self.assertTrue(report["slots"])
            for slot in report["slots"]:
                self.assertTrue(slot["chosen"] or slot["considered"][0]["reason"], slot)

    def test_what_is_turned_off_says_by_what(self):
        self.assertEqual(run_json("explain", TINY, env={"USE_HUB_KERNELS": "0"})["disabled_by"], "USE_HUB_KERNELS")

    def test_explain_says_what_generate_does(self):
        planned = run_json("explain", TINY)["swapped"]
        done = run_json("generate", TINY, "--prompt-ids", "1", "--max-new-tokens", "1")["swapped"]
        self.assertEqual(planned, done)

    def test_a_kernel_config_is_text_or_a_file(self):
        config = json.dumps({"kernel_mapping": {"RMSNorm": "somebody/elses:Norm"}})
        with Workspace() as folder:
            (folder / "config.json").write_text(config)
            for value in (config, folder / "config.json"):
                report = run_json("explain", TINY, "--kernel-config", value)
                norm = next(slot for slot in report["slots"] if slot["layer"] == "RMSNorm")
                self.assertEqual(norm["considered"][0]["kernel"], "somebody/elses:Norm")
                self.assertNotEqual(norm["considered"][0]["outcome"], "chosen")


class Facts(unittest.TestCase):
    def test_doctor_says_what_is_here(self):
        facts = run_json("doctor")
        self.assertTrue(re.match(r"\d+\.\d+", facts["torch"]))
        self.assertEqual(facts["cuda_available"], HAS_GPU)
        self.assertTrue({row["package"] for row in facts["packages"]} >=
                        {"graft-kernels/rms-norm", "graft-kernels/activation", "graft-kernels/linear"})
        self.assertTrue(pathlib.Path(facts["demo_model"]).exists())
        self.assertIn(facts["torch"], run("doctor").stdout)

    def test_info_counts_what_the_files_hold(self):
        demo = run_json("info")
        self.assertEqual((demo["format"], demo["architecture"], demo["parameters"]), ("GGUF", "llama", 134515008))
        tiny = run_json("info", TINY, "--tensors")
        self.assertEqual(tiny["tensors"], len(tiny["tensor_list"]))
        self.assertIn("llama", run("info", TINY).stdout)


if __name__ == "__main__":
    unittest.main(verbosity=2)
