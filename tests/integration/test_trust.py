"""`graft kernels trust`: signatures of a Sigstore instance that this test makes anew, beside sigstore-python, and the
commands that edit the policy and show the journal."""

import json
import pathlib
import tempfile
import unittest

import sigstore_cases
import sigstore_instance
import support


class Trust(unittest.TestCase):
    def setUp(self):
        self.scratch = tempfile.TemporaryDirectory()
        self.root = pathlib.Path(self.scratch.name)
        self.env = {"XDG_CONFIG_HOME": str(self.root / "config"), "XDG_STATE_HOME": str(self.root / "state"),
                    "GRAFT_TRUST_JOURNAL": str(self.root / "state/trust.jsonl"), "GRAFT_TRUSTED_ROOT": str(self.root / "trusted_root.json")}
        self.policy = self.root / "config/graft/trust.json"

    def tearDown(self):
        self.scratch.cleanup()

    def trust(self, *arguments, expect=0, **env):
        return support.run_json("kernels", "trust", *arguments, env={**self.env, **env}, expect=expect)

    def package(self, case):
        folder = self.root / case["name"] / "torch-stable-abi211-cpu-x86_64-linux"
        folder.mkdir(parents=True)
        (folder / "metadata.json").write_bytes(case["content"])
        (folder / "metadata.json.sigstore").write_text(case["bundle"])
        (self.root / "trusted_root.json").write_text(json.dumps(case["root"]))
        return folder

    def test_bundles_of_a_fresh_instance_end_as_in_python_or_stricter(self):
        python_alone = set()
        for case in sigstore_cases.Cases(sigstore_instance.Instance()).all():
            with self.subTest(case["name"]):
                folder = self.package(case)
                python = sigstore_instance.python_verdict(case["root"], case["content"], case["bundle"])
                done = support.run("kernels", "trust", "check", folder, "--repository", "kernels-community/relu",
                                   "--json", env=self.env)
                answer = json.loads(done.stdout)
                if case["expected"].startswith("trust.root."):
                    self.assertEqual(answer["error"]["code"], case["expected"])
                elif case["expected"] == sigstore_cases.ACCEPTED:
                    self.assertEqual((done.returncode, answer["reason"]), (0, "signed"), answer)
                    self.assertEqual(python, "accepted")
                elif case["expected"] == "wrong-signer":
                    self.assertEqual((done.returncode, answer["reason"]), (4, "wrong-signer"), answer)
                else:
                    self.assertEqual((done.returncode, answer["reason"]), (4, "broken-signature"), answer)
                    self.assertIn(case["expected"], answer["text"])
                if python == "accepted" and case["expected"] != sigstore_cases.ACCEPTED:
                    python_alone.add(case["name"])
        self.assertEqual(len(python_alone), 12, python_alone)

    def test_kernels_verify_signature_of_python_agrees(self):
        """The whole check of a variant, by the function that `kernels verify-signature` calls, with our own root."""
        from unittest import mock

        from kernels import verify
        from sigstore.models import TrustedRoot
        from sigstore.verify import Verifier
        from sigstore_models.trustroot.v1 import TrustedRoot as Model

        instance = sigstore_instance.Instance()
        verifier = Verifier(trusted_root=TrustedRoot(Model.from_json(json.dumps(instance.trusted_root()))))
        good = instance.sign_file(sigstore_cases.CONTENT)
        other = instance.sign_file(sigstore_cases.CONTENT, identity=sigstore_instance.Identity(repository="https://x"))
        for name, bundle, expected in (("good", good, True), ("other", other, False)):
            folder = self.package({"name": name, "content": sigstore_cases.CONTENT, "root": instance.trusted_root(),
                                   "bundle": sigstore_cases.compact(bundle)})
            (folder / "__init__.py").touch()
            with mock.patch.object(verify.Verifier, "production", return_value=verifier):
                python = verify.verify_variant(folder)
            self.assertEqual(isinstance(python, verify.VerificationResult.Success), expected, python)
            answer = self.trust("check", folder, "--repository", "kernels-community/relu", expect=0 if expected else 4)
            self.assertEqual(answer["allowed"], expected)

    def test_policy_is_edited_by_command_and_shown(self):
        would = self.trust("allow", "org/name", "--dry-run")
        self.assertIn("org/name", would["allow"])
        self.assertFalse(self.policy.exists())
        commit = "0" * 40
        self.trust("allow", "org/name", "other/*", "--commit", commit, "--note", "reviewed")
        self.trust("deny", "bad/*", "https://github.com/x/y/.github/workflows/z.yaml@refs/heads/main")
        shown = self.trust("list")
        self.assertEqual(shown["allow"]["org/name"], {"commits": [commit], "note": "reviewed"})
        self.assertIn("bad/*", shown["deny"])
        self.assertIn("kernels-community", shown["signers"])
        self.assertNotIn("kernels-community", self.policy.read_text())
        self.trust("remove", "bad/*")
        self.assertNotIn("bad/*", self.trust("list")["deny"])
        self.assertEqual(self.trust("remove", "bad/*", expect=1)["error"]["code"], "cli.trust.entry")
        self.assertEqual(self.trust("allow", "nonsense", expect=2)["error"]["code"], "trust.policy.name")
        text = support.run("kernels", "trust", "list", env=self.env).stdout
        self.assertIn("allow  org/name  commits " + commit, text)

    def test_policy_that_is_misspelled_is_refused_with_its_line(self):
        self.policy.parent.mkdir(parents=True)
        self.policy.write_text('{\n  "schema": 1,\n  "alow": {}\n}\n')
        error = self.trust("list", expect=1)["error"]
        self.assertEqual(error["code"], "trust.policy.unknown-key")
        self.assertIn("line 3", error["message"])

    def test_package_of_a_stranger_needs_an_entry(self):
        case = {"name": "stranger", "content": sigstore_cases.CONTENT, "bundle": "",
                "root": sigstore_instance.Instance().trusted_root()}
        folder = self.package(case)
        (folder / "metadata.json.sigstore").unlink()
        check = ("check", folder, "--repository", "somebody/name", "--commit", "1" * 40)
        answer = self.trust(*check, expect=4)
        self.assertEqual(answer["reason"], "not-asked")
        self.assertIn("graft kernels trust allow somebody/name", answer["way_on"])
        self.assertEqual(self.trust(*check, GRAFT_TRUST_ALLOW="somebody/*")["reason"], "allowed")
        self.assertEqual(self.trust(*check, "--trusted-publisher")["reason"], "trusted-publisher")
        self.assertEqual(self.trust(*check, "--trusted-publisher", GRAFT_REQUIRE_SIGNATURES="1", expect=4)["reason"],
                         "no-signature")
        self.trust("allow", "somebody/name")
        self.assertEqual(self.trust(*check)["reason"], "allowed")
        self.assertEqual(self.trust("journal")["entries"], [])  # a check is no load


if __name__ == "__main__":
    unittest.main()
