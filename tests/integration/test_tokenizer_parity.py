"""The program's ids beside those of the `tokenizers` library, on a megabyte of mixed text, for every family of
tests/data/text and the demo model's own vocabulary."""

import pathlib
import subprocess
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from support import GRAFT, ROOT, demo_model  # noqa: E402


class TokenizerParity(unittest.TestCase):
    def test_ids_of_a_megabyte_of_mixed_text_are_those_of_the_library(self):
        done = subprocess.run([sys.executable, str(ROOT / "tools/tokenizer_parity.py"), "compare", str(GRAFT), "--gguf",
                               str(demo_model()), "--megabytes", "1"], capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertGreaterEqual(done.stdout.count("  equal: "), 14, done.stdout)


if __name__ == "__main__":
    unittest.main()
