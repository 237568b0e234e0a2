"""`graft bench ops`: rows measured here or stored before, as a table, as JSON and as a drawing."""

import json
import pathlib
import sys
import unittest
import xml.etree.ElementTree

sys.path.insert(0, str(pathlib.Path(__file__).parent))
from support import GRAFT, ROOT, Workspace, run, run_json  # noqa: E402

STORED = ROOT / "bench/results/h200"
SVG = "{http://www.w3.org/2000/svg}"


def stored_rows(package):
    lines = (STORED / f"kernels_{package}_bench.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines if line.strip()]


class Stored(unittest.TestCase):
    def test_every_row_is_there_with_its_share(self):
        rows = run_json("bench", "ops", "--from", STORED / "kernels_rms_norm_bench.jsonl")["rows"]
        stored = stored_rows("rms_norm")
        self.assertEqual([(row["op"], row["shape"]) for row in rows], [(row["op"], row["shape"]) for row in stored])
        for row, other in zip(rows, stored):
            self.assertAlmostEqual(row["share_of_ceiling"], other["ceiling_us"] / other["median_us"])

    def test_a_folder_and_a_dtype_select_rows(self):
        rows = run_json("bench", "ops", "--from", STORED, "--dtype", "float16")["rows"]
        self.assertTrue(rows)
        self.assertEqual({row["dtype"] for row in rows}, {"Half"})

    def test_arithmetic_bounds_where_it_takes_longer_than_a_copy(self):
        rows = run_json("bench", "ops", "--from", STORED / "kernels_loss_bench.jsonl")["rows"]
        row = next(row for row in rows if row["op"] == "linear_cross_entropy" and row["dtype"] == "BFloat16")
        self.assertAlmostEqual(row["share_of_ceiling"], row["teraflops_per_second"] / 989, delta=0.01)

    def test_the_drawing_is_svg_with_a_bar_per_row_and_peer(self):
        with Workspace() as folder:
            run("bench", "ops", "--from", STORED / "kernels_rms_norm_bench.jsonl", "--plot", folder / "ops.svg")
            root = xml.etree.ElementTree.parse(folder / "ops.svg").getroot()
        bars = [box for box in root.iter(f"{SVG}rect") if box.get("rx")]
        stored = stored_rows("rms_norm")
        self.assertEqual(len(bars), sum(1 + len(row.get("peers", [])) for row in stored))
        widths = [float(box.get("width")) for box in bars]
        self.assertAlmostEqual(widths[0], 400 * stored[0]["ceiling_us"] / stored[0]["median_us"], delta=0.1)
        self.assertIn("NVIDIA H200", "".join(root.itertext()))

    def test_text_of_a_row_cannot_leave_its_place_in_the_drawing(self):
        row = dict(stored_rows("rms_norm")[0], op="<script>&\"'", variant="")
        with Workspace() as folder:
            (folder / "a_bench.jsonl").write_text(json.dumps(row) + "\n")
            run("bench", "ops", "--from", folder, "--plot", folder / "ops.svg")
            root = xml.etree.ElementTree.parse(folder / "ops.svg").getroot()
        self.assertEqual(list(root.iter(f"{SVG}script")), [])
        self.assertIn("<script>&\"'", "".join(root.itertext()))

    def test_what_is_no_row_is_named_with_file_and_line(self):
        good = json.dumps(stored_rows("rms_norm")[0])
        for bad, code in (("{}", "cli.bench.row"), ("{", "cli.bench.json"),
                          (good.replace('"median_us":', '"median_us": -1, "was":', 1), "cli.bench.row")):
            with Workspace() as folder:
                (folder / "a_bench.jsonl").write_text(f"{good}\n{bad}\n")
                error = run_json("bench", "ops", "--from", folder, expect=1)["error"]
                self.assertEqual(error["code"], code, bad)
                self.assertIn("a_bench.jsonl:2", error["message"])
        with Workspace() as folder:
            self.assertEqual(run_json("bench", "ops", "--from", folder, expect=1)["error"]["code"], "cli.bench.results")


class Measured(unittest.TestCase):
    def test_a_package_is_measured_and_kept(self):
        small = {"GRAFT_TEST_SMALL": "1"}
        if not (GRAFT.parent / "kernels_rotary_bench").exists():
            self.fail("the build has no benchmark programs")
        with Workspace() as folder:
            rows = run_json("bench", "ops", "--package", "rotary", "--device", "cpu", "--save", folder / "rows.jsonl",
                            env=small)["rows"]
            again = run_json("bench", "ops", "--from", folder / "rows.jsonl")["rows"]
        self.assertTrue(rows)
        self.assertEqual({row["device"] for row in rows}, {"cpu"})
        self.assertEqual(rows, again)

    def test_an_unknown_package_is_refused_by_name(self):
        error = run_json("bench", "ops", "--package", "nothing", expect=2)["error"]
        self.assertEqual(error["code"], "cli.bench.package")
        self.assertIn("rms-norm", error["message"])


if __name__ == "__main__":
    unittest.main()
