// Rows of the kernel benchmarks (kernels/common/bench_harness.h): run, read, and set against what
// bounds them.
#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace graft::cli {

// One peer of a row: another way to the same result, timed in the same run.
struct BenchPeer {
  std::string name;
  double median_us = 0;
};

struct BenchRow {
  std::string op;
  std::string variant;
  std::string device;
  std::string dtype;  // as c10 prints it: BFloat16
  std::string shape;
  std::string machine;
  std::string commit;
  double median_us = 0;
  double p10_us = 0;
  double p90_us = 0;
  double gigabytes_per_second = 0;
  double teraflops_per_second = 0;      // 0: arithmetic was not counted
  double copy_us = 0;                   // the same bytes through a copy kernel, in the same run
  std::optional<double> arithmetic_us;  // its operations at the data sheet's peak, where known
  std::vector<BenchPeer> peers;

  // The time that the machine could do it in: the slower of copy and arithmetic.
  double ceiling_us() const;
  // `silu_mul, two strided inputs`
  std::string title() const;
};

// Parses one JSON line of a benchmark. Throws FormatError `cli.bench.*` that names file and line.
BenchRow parse_bench_row(const std::string& line, const std::string& file, size_t line_number);

// Rows of a file of JSON lines, or of every `*_bench.jsonl` of a folder. Throws NotFound
// `cli.bench.results`, FormatError.
std::vector<BenchRow> read_bench_rows(const std::filesystem::path& path);

// The benchmark programs beside this one: package (`rms-norm`) and path, sorted.
struct BenchProgram {
  std::string package;
  std::filesystem::path path;
};
std::vector<BenchProgram> bench_programs();

// Runs a program on `device` (empty: every one that the machine has) and hands each row over as it
// comes. Throws Error `cli.bench.program` when it fails.
void run_bench_program(const BenchProgram& program, const std::string& device,
                       const std::function<void(const std::string& line)>& take);

}  // namespace graft::cli
