"""How long the program takes to say something. Runs alone: other work would be measured too."""

import pathlib
import subprocess
import sys
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from support import GRAFT, PROMPT, run, start  # noqa: E402


def seconds_of(action, repeats):
    """The fastest of several runs: what the program needs, not what the machine did beside it."""
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        action()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


class StartUp(unittest.TestCase):
    def test_version_and_help_start_without_libtorch(self):
        needed = subprocess.run(["ldd", GRAFT], capture_output=True, text=True, check=True).stdout
        self.assertNotIn("torch", needed)
        for flag in ("--version", "--help"):
            self.assertEqual(run(flag).returncode, 0)
            self.assertLess(seconds_of(lambda flag=flag: run(flag), 10), 0.05, flag)

    def test_the_first_token_of_the_demo_model_comes_within_a_second_and_a_half(self):
        seconds = []
        for _ in range(4):
            begin = time.perf_counter()
            process = start("generate", "--prompt", PROMPT, "--max-new-tokens", "8", "--ignore-eos", "--stream", "-q",
                            stdout=subprocess.PIPE)
            self.assertTrue(process.stdout.read(1))
            seconds.append(time.perf_counter() - begin)
            process.communicate()
            self.assertEqual(process.returncode, 0)
        print(f"start to first token: {min(seconds):.2f} s")
        self.assertLess(min(seconds), 1.5)


if __name__ == "__main__":
    unittest.main(verbosity=2)
