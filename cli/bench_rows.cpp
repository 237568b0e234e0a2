#include "cli/bench_rows.h"

#include <algorithm>
#include <fstream>
#include <system_error>
#include <utility>

#include <fmt/format.h>
#include <sys/wait.h>

#include "graft/core/error.h"
#include "graft/io/json.h"

#include "cli/child_process.h"

namespace graft::cli {

namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPrefix = "kernels_";
constexpr std::string_view kSuffix = "_bench";
constexpr std::string_view kDeviceVariable = "GRAFT_BENCH_DEVICE";

// Dense peak of 16-bit tensor cores in TFLOP/s, from the vendor's data sheets.
struct Peak {
  std::string_view machine;
  double teraflops_per_second;
};
constexpr Peak kPeaks[] = {
    {"NVIDIA H100 80GB HBM3", 989}, {"NVIDIA H200", 989}, {"NVIDIA A100", 312}};

std::optional<double> arithmetic_us(const BenchRow& row, double flops) {
  if (flops > 0 && (row.dtype == "BFloat16" || row.dtype == "Half")) {
    for (const Peak& peak : kPeaks) {
      if (row.machine.rfind(peak.machine, 0) == 0) {
        return flops / peak.teraflops_per_second * 1e-6;
      }
    }
  }
  return std::nullopt;
}

BenchRow row_of(const nlohmann::json& json) {
  BenchRow row;
  row.op = json.at("op").get<std::string>();
  row.variant = json.at("variant").get<std::string>();
  row.device = json.at("device").get<std::string>();
  row.dtype = json.at("dtype").get<std::string>();
  row.shape = json.at("shape").get<std::string>();
  row.machine = json.at("machine").get<std::string>();
  row.commit = json.at("commit").get<std::string>();
  row.median_us = json.at("median_us").get<double>();
  row.p10_us = json.at("p10_us").get<double>();
  row.p90_us = json.at("p90_us").get<double>();
  row.gigabytes_per_second = json.at("GBps").get<double>();
  row.teraflops_per_second = json.value("TFLOPps", 0.0);
  row.copy_us = json.at("ceiling_us").get<double>();
  row.arithmetic_us = arithmetic_us(row, json.value("flops", 0.0));
  for (const auto& peer : json.value("peers", nlohmann::json::array())) {
    row.peers.push_back({peer.at("name").get<std::string>(), peer.at("median_us").get<double>()});
  }
  return row;
}

std::vector<BenchRow> read_file(const fs::path& path) {
  std::ifstream file(path);
  std::vector<BenchRow> rows;
  size_t number = 0;
  for (std::string line; std::getline(file, line);) {
    ++number;
    if (line.find_first_not_of(" \t\r") != std::string::npos) {
      rows.push_back(parse_bench_row(line, path.string(), number));
    }
  }
  return rows;
}

}  // namespace

double BenchRow::ceiling_us() const { return std::max(copy_us, arithmetic_us.value_or(0.0)); }

std::string BenchRow::title() const {
  std::string words = variant;
  for (size_t i = 0; i + 1 < words.size(); ++i) {
    if (words[i] == '_' && std::islower(static_cast<unsigned char>(words[i + 1])) != 0) {
      words[i] = ' ';  // but Q4_0 is a name
    }
  }
  return words.empty() ? op : op + ", " + words;
}

BenchRow parse_bench_row(const std::string& line, const std::string& file, size_t line_number) {
  const std::string where = fmt::format("{}:{}", file, line_number);
  try {
    const BenchRow row = row_of(io::parse_json(line, "cli.bench", where));
    if (!(row.median_us > 0) || !(row.copy_us > 0)) {
      throw FormatError(
          "cli", "bench.row",
          fmt::format("`{}`: expected times above zero, got median_us {}, ceiling_us {}", where,
                      row.median_us, row.copy_us));
    }
    return row;
  } catch (const nlohmann::json::exception& error) {
    throw FormatError(
        "cli", "bench.row",
        fmt::format("`{}`: expected a benchmark's row, got: {}", where, error.what()));
  }
}

std::vector<BenchRow> read_bench_rows(const fs::path& path) {
  std::vector<fs::path> files;
  if (fs::is_directory(path)) {
    for (const auto& entry : fs::directory_iterator(path)) {
      if (entry.path().filename().string().ends_with("_bench.jsonl")) {
        files.push_back(entry.path());
      }
    }
    std::sort(files.begin(), files.end());
  } else if (fs::is_regular_file(path)) {
    files.push_back(path);
  }
  if (files.empty()) {
    throw NotFound("cli", "bench.results",
                   fmt::format("`{}`: expected a file of benchmark rows or a folder with some "
                               "`*_bench.jsonl`, got none",
                               path.string()));
  }
  std::vector<BenchRow> rows;
  for (const auto& file : files) {
    const auto more = read_file(file);
    rows.insert(rows.end(), more.begin(), more.end());
  }
  return rows;
}

std::vector<BenchProgram> bench_programs() {
  std::vector<BenchProgram> programs;
  for (const auto& entry :
       fs::directory_iterator(fs::read_symlink("/proc/self/exe").parent_path())) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with(kPrefix) && name.ends_with(kSuffix)) {
      std::string package =
          name.substr(kPrefix.size(), name.size() - kPrefix.size() - kSuffix.size());
      std::replace(package.begin(), package.end(), '_', '-');
      programs.push_back({package, entry.path()});
    }
  }
  std::sort(programs.begin(), programs.end(),
            [](const auto& a, const auto& b) { return a.package < b.package; });
  return programs;
}

void run_bench_program(const BenchProgram& program, const std::string& device,
                       const std::function<void(const std::string& line)>& take) {
  std::vector<std::string> environment = environment_without(
      [&](std::string_view name) { return !device.empty() && name == kDeviceVariable; });
  if (!device.empty()) {
    environment.push_back(fmt::format("{}={}", kDeviceVariable, device));
  }
  std::string line;
  const auto take_piece = [&](std::string_view piece) {
    for (const char letter : piece) {
      if (letter != '\n') {
        line += letter;
      } else {
        take(std::exchange(line, {}));
      }
    }
  };
  int status = 0;
  try {
    status = run_child({program.path.string()}, environment, take_piece);
  } catch (const std::system_error& error) {
    throw Error("cli", "bench.program",
                fmt::format("`{}`: expected to start it, got: {}", program.path.string(),
                            error.code().message()));
  }
  if (status != 0) {
    throw Error("cli", "bench.program",
                fmt::format("`{}`: expected exit code 0, got {}", program.path.string(),
                            WIFEXITED(status) ? fmt::to_string(WEXITSTATUS(status))
                                              : fmt::format("signal {}", WTERMSIG(status))),
                "its own words are above");
  }
}

}  // namespace graft::cli
