"""What the program says when something is wrong: exit code, text, hint; and that it never crashes."""

import json
import pathlib
import shutil
import subprocess
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from support import HAS_GPU, TINY, Workspace, demo_model, run, run_json, start  # noqa: E402

IDS = ("--prompt-ids", "1,2,3", "--max-new-tokens", "2")


class Errors(unittest.TestCase):
    def check(self, arguments, code, *texts, env=None):
        """The command fails with this exit code; stderr holds every text, stdout nothing."""
        done = run(*arguments, env=env)
        said = f"{arguments}\nexit {done.returncode}\n{done.stdout}{done.stderr}"
        self.assertEqual(done.returncode, code, said)
        for text in texts:
            self.assertIn(text, done.stderr, said)
        self.assertEqual(done.stdout, "", said)
        self.assertTrue(done.stderr.startswith("graft: ") or "\ngraft: error: [" in done.stderr, said)
        self.assertLessEqual(len(done.stderr.splitlines()), 30, said)

    def test_wrong_usage_is_2(self):
        generate = ("generate", TINY, "--prompt-ids", "1,2,3")
        for arguments, texts in [
            ((), ["--help"]),
            (("frobnicate",), ["frobnicate"]),
            (("generat",), ["did you mean `generate`?"]),
            (("generate", "--bogus"), ["--help"]),
            ((*generate, "--temprature", "1"), ["did you mean `--temperature`?"]),
            (("generate", TINY), ["--prompt", "--chat"]),
            (("generate", "--prompt", "a", "--chat", "b"), ["2 were given"]),
            (("generate", "--prompt", "a", "--system", "b"), ["--chat"]),
            ((*generate, "--top-p", "7"), ["top_p", "7"]),
            ((*generate, "--top-k", "-1"), ["top_k"]),
            ((*generate, "--min-p", "2"), ["min_p"]),
            ((*generate, "--temperature", "-1"), ["--temperature", "-1"]),
            ((*generate, "--temperature", "nan"), ["--temperature", "nan"]),
            ((*generate, "--temperature", "warm"), ["--temperature", "warm"]),
            ((*generate, "--seed", "-1"), ["--seed"]),
            ((*generate, "--max-new-tokens", "0"), ["max_new_tokens"]),
            ((*generate, "--max-new-tokens", "100000"), ["100000"]),
            ((*generate, "--repetition-penalty", "0"), ["repetition_penalty"]),
            ((*generate, "--num-beams", "2", "--stream"), ["num_beams"]),
            ((*generate, "--stop", ""), ["stop_strings"]),
            ((*generate, "--device", "warp"), ["warp", "cuda:N"]),
            ((*generate, "--dtype", "int3"), ["int3", "bfloat16"]),
            ((*generate, "--kernels", "perhaps"), ["perhaps"]),
            ((*generate, "--attn-implementation", "flashy"), ["flashy"]),
            ((*generate, "--cache", "endless"), ["endless"]),
            (("generate", TINY, "--prompt-ids", "1,two"), ["two"]),
            (("generate", TINY, "--prompt-ids", "1,,2"), ["numbers"]),
            (("generate", TINY, "--prompt-ids", "99999999"), ["99999999"]),
            (("generate", TINY, "--prompt-ids", "99999999999999999999"), ["99999999999999999999"]),
            (("generate", "--prompt-file", TINY), ["folder"]),
            (("tokenize",), ["MODEL"]),
            (("logits", "--ids", "1"), ["--out"]),
            (("logits", TINY, "--ids", "-1", "--out", "x"), ["-1"]),
            (("logits", TINY, "--ids", "", "--out", "x"), ["--ids"]),
            (("logits", TINY, "--ids", "1", "--out", "/dev/null"), ["/dev/null"]),
            (("explain", TINY, "--mode", "fast"), ["fast", "inference"]),
            (("explain", TINY, "--kernel-config", '{"RMSNrm": "a/b:C"}'), ["RMSNrm", "RMSNorm"]),
            (("download", "../x"), ["../x"]),
        ]:
            with self.subTest(arguments=arguments):
                self.check(arguments, 2, *texts)

    def test_what_is_missing_is_1_and_named(self):
        for arguments, texts in [
            (("generate", "/nowhere", "--prompt", "x"), ["/nowhere"]),
            (("generate", "nobody/nothing", "--prompt", "x"), ["nobody/nothing", "graft download nobody/nothing"]),
            (("generate", "nothing.gguf", "--prompt", "x"), ["nothing.gguf"]),
            (("generate", TINY.parent, "--prompt", "x"), ["config.json", "--gguf-file"]),
            (("generate", TINY, "--prompt", "x"), ["tokenizer.json", "--prompt-ids"]),
            (("generate", __file__, "--prompt", "x"), [".gguf"]),
            (("generate", "--prompt-file", "/nowhere"), ["/nowhere"]),
            (("tokenize", "/nowhere", "x"), ["/nowhere"]),
            (("tokenize", demo_model(), "--file", "/nowhere"), ["/nowhere"]),
            (("logits", TINY, "--ids", "1", "--out", "/nowhere/x"), ["/nowhere/x"]),
            (("info", "/nowhere"), ["/nowhere"]),
            (("explain", TINY, "--kernel-config", '{"RMSNorm'), ["JSON"]),
            (("explain", TINY, "--kernel-config", '{"RMSNorm": "' + "x" * 5000), ["JSON"]),
            (("explain", TINY, "--kernel-config", "x" * 5000), ["--kernel-config"]),
        ]:
            with self.subTest(arguments=arguments):
                self.check(arguments, 1, *texts)
        self.check(("generate", "--prompt", "x"), 1, "/nowhere", env={"GRAFT_DEMO_MODEL": "/nowhere"})

    def test_variables_that_make_no_sense_are_refused(self):
        self.check(("explain", TINY), 2, "DISABLE_KERNEL_MAPPING", "maybe", env={"DISABLE_KERNEL_MAPPING": "maybe"})

    def test_offline_is_3(self):
        self.check(("download", "some/model"), 3, "HF_HUB_OFFLINE", env={"HF_HUB_OFFLINE": "1"})
        # Nothing listens on this port: the program says so instead of waiting.
        self.check(("download", "some/model"), 3, "127.0.0.1", env={
            "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "", "TRANSFORMERS_OFFLINE": ""})

    @unittest.skipIf(HAS_GPU, "a GPU is here")
    def test_a_missing_cuda_device_is_5(self):
        for command in (("generate", TINY, *IDS), ("explain", TINY), ("logits", TINY, "--ids", "1", "--out", "x")):
            self.check((*command, "--device", "cuda"), 5, "cuda", "--device cpu")

    def test_a_package_that_was_tampered_with_is_never_loaded(self):
        from support import BUILD

        with Workspace() as folder:
            hub = folder / "hub"
            shutil.copytree(BUILD / "share/graft/hub", hub)
            library = next(hub.glob("graft-kernels/rms-norm/build/*-cpu-*/*.so"))
            data = bytearray(library.read_bytes())
            data[len(data) // 2] ^= 1
            library.write_bytes(data)
            report = run_json("explain", TINY, env={"GRAFT_EMBEDDED_HUB": str(hub)})
            norms = [slot for slot in report["slots"] if slot["layer"] == "RMSNorm"]
            self.assertTrue(norms)
            for slot in norms:
                self.assertEqual(slot["chosen"], "")
                self.assertTrue(any("digest" in item["outcome"] + item["reason"] for item in slot["considered"]),
                                slot)
            others = [slot for slot in report["slots"] if slot["layer"] != "RMSNorm"]
            self.assertTrue(all(slot["chosen"] or slot["inside"] for slot in others))


class BrokenCheckpoints(unittest.TestCase):
    def broken(self, change):
        """The error of `generate` on a copy of the tiny model that `change` has spoilt."""
        with Workspace() as folder:
            model = folder / "model"
            shutil.copytree(TINY, model)
            model.chmod(0o755)
            for path in model.iterdir():
                path.chmod(0o644)
            change(model)
            done = run("generate", model, *IDS)
        self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
        self.assertEqual(done.stdout, "")
        self.assertIn("graft: error: [", done.stderr)
        return done.stderr

    def edit(self, **fields):
        def change(model):
            config = json.loads((model / "config.json").read_text())
            config.update(fields)
            (model / "config.json").write_text(json.dumps(config))

        return change

    def cut(self, size):
        def change(model):
            data = (model / "model.safetensors").read_bytes()
            (model / "model.safetensors").write_bytes(data[:size])

        return change

    def test_weights(self):
        for size in (0, 5, 500, 5000, 90000):
            self.assertIn("model.safetensors", self.broken(self.cut(size)))
        self.assertIn("safetensors", self.broken(lambda model: (model / "model.safetensors").unlink()))

        def lie_about_length(model):
            data = bytearray((model / "model.safetensors").read_bytes())
            data[:8] = (2**63).to_bytes(8, "little")
            (model / "model.safetensors").write_bytes(data)

        self.assertIn("model.safetensors", self.broken(lie_about_length))

    def test_config(self):
        self.assertIn("rwkv9", self.broken(self.edit(model_type="rwkv9")))
        self.assertIn("vocab_size", self.broken(self.edit(vocab_size=-1)))
        self.assertIn("hidden_size", self.broken(self.edit(hidden_size="many")))
        self.assertIn("missing", self.broken(self.edit(num_hidden_layers=9)))
        self.assertIn("expected shape", self.broken(self.edit(intermediate_size=96)))
        self.assertIn("config.json", self.broken(lambda model: (model / "config.json").write_text("{")))
        self.assertIn("config.json", self.broken(lambda model: (model / "config.json").write_bytes(b"\xff\xfe")))
        self.assertIn(r"\x1b[31m", self.broken(self.edit(model_type="\x1b[31mred")))
        with Workspace() as folder:
            shutil.copytree(TINY, folder / "model")
            for text in ("[]", "null", '{"model_type": 5}', '{"model_type": null}'):
                (folder / "model/config.json").write_text(text)
                self.assertEqual(run_json("info", folder / "model", expect=1)["error"]["code"], "cli.info.config", text)
            (folder / "model/config.json").write_text(json.dumps({"model_type": "\x1b[31mred"}))
            self.assertNotIn("\x1b", run("info", folder / "model").stdout)
        self.assertIn("do_sample", self.broken(
            lambda model: (model / "generation_config.json").write_text('{"do_sample": "perhaps"}')))

    def test_gguf(self):
        data = demo_model().read_bytes()[:4_000_000]
        with Workspace() as folder:
            for size in (0, 3, 24, 1000, 1_000_000, 4_000_000):
                path = folder / "model.gguf"
                path.write_bytes(data[:size])
                for command in (("generate", path, "--prompt", "x"), ("info", path)):
                    done = run(*command)
                    self.assertEqual(done.returncode, 1, done.stderr)
                    self.assertIn("graft: error: [", done.stderr)


class Doctor(unittest.TestCase):
    """Every line says ok, warn or fail; what is not ok says why and what to do."""

    def checks(self, env=None, expect=0):
        report = run_json("doctor", env=env, expect=expect)
        self.assertEqual(report["healthy"], expect == 0)
        rows = {row["check"]: row for row in report["checks"]}
        self.assertEqual(len(rows), len(report["checks"]))
        for row in rows.values():
            self.assertIn(row["status"], ("ok", "warn", "fail"))
            self.assertTrue(row["found"], row)
            self.assertEqual("reason" in row, row["status"] != "ok", row)
            self.assertEqual("hint" in row, row["status"] != "ok", row)
            self.assertTrue(row["status"] == "ok" or row["reason"] and row["hint"], row)
        text = run("doctor", env=env)
        self.assertEqual(text.returncode, expect)
        for row in rows.values():
            self.assertRegex(text.stdout, rf"(?m)^{row['status']} +{row['check']} ")
        return rows

    def test_every_part_of_the_machine_is_looked_at(self):
        rows = self.checks()
        for name in ("memory", "processor", "threads", "cuda", "kernels", "trusted root", "trust policy", "isolation", "cache", "disk",
                     "demo model"):
            self.assertIn(name, rows)
        self.assertEqual(rows["graft-kernels/rms-norm on cpu"]["status"], "ok")
        self.assertIn("-cpu-", rows["graft-kernels/rms-norm on cpu"]["found"])
        self.assertIn("Exit code", run("doctor", "--help").stdout)

    def test_trust_and_isolation_are_looked_at(self):
        rows = self.checks()
        self.assertRegex(rows["trusted root"]["found"], r"trusted_root\.json, (until \d{4}-\d\d-\d\dT|without an end)")
        self.assertIn("signatures when present", rows["trust policy"]["found"])
        self.assertRegex(rows["isolation"]["found"], r"(no )?Landlock")
        with Workspace() as folder:
            root, policy = folder / "root.json", folder / "trust.json"
            root.write_text("{}")
            policy.write_text('{"schema": 1, "signatures": "required", "allow": {"org/*": {}}}')
            rows = self.checks({"GRAFT_TRUSTED_ROOT": str(root), "GRAFT_TRUST_POLICY": str(policy)}, expect=1)
            self.assertEqual(rows["trusted root"]["status"], "fail")
            self.assertIn("GRAFT_TRUSTED_ROOT", rows["trusted root"]["found"])
            self.assertIn("signatures required", rows["trust policy"]["found"])
            self.assertIn("1 allowed, 0 denied", rows["trust policy"]["found"])
            policy.write_text('{"schema": 1, "alow": {}}')
            row = self.checks({"GRAFT_TRUST_POLICY": str(policy)}, expect=1)["trust policy"]
            self.assertEqual((row["status"], "alow" in row["reason"]), ("fail", True))

    def test_missing_kernel_packages_fail(self):
        with Workspace() as folder:
            row = self.checks({"GRAFT_EMBEDDED_HUB": str(folder)}, expect=1)["packages"]
            self.assertEqual(row["status"], "fail")
            self.assertIn(str(folder), row["reason"])

    def test_a_package_without_a_variant_for_this_machine_fails(self):
        with Workspace() as folder:
            for variant in ("torch211-cxx11-rocm70-x86_64-linux", "torch-stable-abi211-cpu-aarch64-linux"):
                (folder / "graft-kernels/rms-norm/build" / variant).mkdir(parents=True)
            row = self.checks({"GRAFT_EMBEDDED_HUB": str(folder)}, expect=1)["graft-kernels/rms-norm on cpu"]
            self.assertEqual(row["status"], "fail")
            self.assertIn("rocm70", row["reason"])
            self.assertIn("aarch64", row["reason"])

    def test_a_cache_that_cannot_be_written_is_a_warning(self):
        with Workspace() as folder:
            (folder / "file").write_text("")
            row = self.checks({"HF_HUB_CACHE": str(folder / "file/hub")})["cache"]
            self.assertEqual(row["status"], "warn")
            self.assertIn("HF_HOME", row["hint"])
            self.checks({"HF_HUB_CACHE": str(folder / "new/hub")})
            self.assertFalse((folder / "new").exists())

    def test_what_variables_turn_off_is_a_warning(self):
        self.assertEqual(self.checks({"USE_HUB_KERNELS": "0"})["kernels"]["status"], "warn")
        self.assertIn("DISABLE_KERNEL_MAPPING", self.checks({"DISABLE_KERNEL_MAPPING": "1"})["kernels"]["hint"])
        self.assertEqual(self.checks({"ATEN_CPU_CAPABILITY": "default"})["processor"]["status"], "warn")


class Json(unittest.TestCase):
    def test_errors_are_objects_under_json(self):
        for arguments, code in [
            (("generate", "/nowhere", "--prompt", "x"), 1),
            (("generate", TINY, "--prompt", "x"), 1),
            (("generate", TINY, *IDS, "--top-p", "7"), 2),
            (("generate", "--bogus"), 2),
            (("generat",), 2),
            (("logits", TINY, "--ids", "x", "--out", "y"), 2),
            (("info", "/nowhere"), 1),
        ]:
            result = run_json(*arguments, expect=code)
            self.assertEqual(set(result), {"schema", "error", "exit_code"}, arguments)
            self.assertEqual(result["exit_code"], code, arguments)
            self.assertRegex(result["error"]["code"], r"^[a-z_]+(\.[a-z0-9_-]+)+$")
            self.assertNotIn("hint:", result["error"]["message"])

    def test_an_error_with_nobody_to_read_it_is_still_an_exit_code(self):
        with open("/dev/full", "w") as full:
            process = start("info", "/nowhere", "--json", stdout=full, stderr=subprocess.DEVNULL)
            self.assertEqual(process.wait(timeout=30), 1)


if __name__ == "__main__":
    unittest.main(verbosity=2)
