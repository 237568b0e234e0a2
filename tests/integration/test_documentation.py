"""What README.md and docs/ say is what the program and the sources do."""

import pathlib
import re
import shlex
import subprocess
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from support import GRAFT, ROOT, environment, run  # noqa: E402

PAGES = [ROOT / "README.md", ROOT / "HACKING.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


class Documentation(unittest.TestCase):
    def check_tool(self, *command):
        done = subprocess.run([sys.executable, *map(str, command)], check=False, capture_output=True, text=True,
                              env=environment())
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_variables_and_error_codes_are_those_of_the_sources(self):
        self.check_tool(ROOT / "tools/check_docs.py")

    def test_the_generated_parts_of_the_readme_are_up_to_date(self):
        self.check_tool(ROOT / "tools/update_readme.py", "--check", GRAFT)

    def test_the_benchmark_tables_are_those_of_the_committed_results(self):
        self.check_tool(ROOT / "tools/benchmark_tables.py", "--check")

    def test_every_command_that_the_readme_shows_is_one_of_the_program(self):
        blocks = re.split(r"(?m)^```\w*$", (ROOT / "README.md").read_text())[1::2]
        shown = [line for block in blocks for line in block.splitlines() if line.startswith("graft ")]
        self.assertGreater(len(shown), 4)
        for line in shown:
            words = shlex.split(line, comments=True)[1:]
            done = run(words[0], "--help")
            self.assertEqual(done.returncode, 0, line)
            for word in words:
                if word.startswith("--"):
                    self.assertRegex(done.stdout, rf"(?m){word}\b", line)

    def test_every_link_leads_somewhere(self):
        for page in PAGES:
            for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
                self.assertTrue((page.parent / target).exists(), f"{page.name}: {target}")

    def test_every_file_that_a_page_names_exists(self):
        pattern = re.compile(r"`((?:graft|cli|tests|tools|docs|examples|kernels|bench|cmake)/[\w./-]+)`")
        for page in PAGES:
            for target in pattern.findall(page.read_text()):
                self.assertTrue((ROOT / target).exists(), f"{page.name}: {target}")


if __name__ == "__main__":
    unittest.main(verbosity=2)
