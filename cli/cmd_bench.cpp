#include <algorithm>
#include <memory>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "graft/core/error.h"
#include "graft/hub/disk.h"

#include "cli/bench_plot.h"
#include "cli/bench_rows.h"
#include "cli/command.h"
#include "cli/output.h"

namespace graft::cli {

namespace {

struct BenchOpsOptions {
  CommonOptions common;
  std::vector<std::string> packages;
  std::string device;
  std::vector<std::string> from;
  std::string dtype;
  std::string plot;
  std::string save;
};

std::vector<BenchProgram> chosen_programs(const std::vector<std::string>& packages) {
  const auto programs = bench_programs();
  if (programs.empty()) {
    throw NotFound(
        "cli", "bench.programs",
        "benchmarks: expected programs `kernels_<package>_bench` beside graft, got none",
        "`make build` makes them; stored rows are read with --from bench/results/<machine>");
  }
  std::vector<BenchProgram> chosen;
  std::vector<std::string> names;
  for (const auto& program : programs) {
    names.push_back(program.package);
    if (packages.empty() ||
        std::find(packages.begin(), packages.end(), program.package) != packages.end()) {
      chosen.push_back(program);
    }
  }
  for (const auto& package : packages) {
    if (std::find(names.begin(), names.end(), package) == names.end()) {
      throw InvalidArgument(
          "cli", "bench.package",
          fmt::format("--package: expected one of {}, got `{}`", fmt::join(names, ", "), package));
    }
  }
  return chosen;
}

std::vector<BenchRow> measured_rows(const BenchOpsOptions& options) {
  std::vector<BenchRow> rows;
  std::string lines;
  for (const auto& program : chosen_programs(options.packages)) {
    print_note(options.common, fmt::format("running the benchmark of {}", program.package));
    run_bench_program(program, options.device, [&](const std::string& line) {
      rows.push_back(parse_bench_row(line, program.path.string(), rows.size() + 1));
      lines += line + "\n";
    });
  }
  if (!options.save.empty()) {
    hub::write_atomically(options.save, lines);
  }
  return rows;
}

std::vector<BenchRow> rows_of(const BenchOpsOptions& options) {
  std::vector<BenchRow> rows;
  if (options.from.empty()) {
    rows = measured_rows(options);
  }
  for (const auto& path : options.from) {
    const auto more = read_bench_rows(path);
    rows.insert(rows.end(), more.begin(), more.end());
  }
  std::erase_if(rows, [&](const BenchRow& row) {
    return (!options.dtype.empty() && row.dtype != options.dtype) ||
           (!options.device.empty() && row.device != options.device);
  });
  return rows;
}

// By what bounds the row.
std::string rate(const BenchRow& row) {
  return row.arithmetic_us.value_or(0) > row.copy_us
             ? fmt::format("{:.0f} TFLOP/s", row.teraflops_per_second)
             : fmt::format("{:.0f} GB/s", row.gigabytes_per_second);
}

std::string table(const std::vector<BenchRow>& rows) {
  std::string out = fmt::format("{:<44} {:<28} {:<9} {:>10} {:>12} {:>6}  {}\n", "op", "shape",
                                "dtype", "µs", "rate", "share", "peers: times as long");
  for (const BenchRow& row : rows) {
    std::vector<std::string> peers;
    for (const BenchPeer& peer : row.peers) {
      peers.push_back(fmt::format("{} {:.2f}", peer.name, peer.median_us / row.median_us));
    }
    out += fmt::format("{:<44} {:<28} {:<9} {:>10.1f} {:>12} {:>4.0f} %  {}\n", row.title(),
                       row.shape, row.dtype, row.median_us, rate(row),
                       100 * row.ceiling_us() / row.median_us, fmt::join(peers, ", "));
  }
  return out;
}

nlohmann::ordered_json json_of(const BenchRow& row) {
  nlohmann::ordered_json peers = nlohmann::ordered_json::array();
  for (const BenchPeer& peer : row.peers) {
    peers.push_back({{"name", peer.name},
                     {"median_us", peer.median_us},
                     {"ratio", peer.median_us / row.median_us}});
  }
  return {{"op", row.op},
          {"variant", row.variant},
          {"device", row.device},
          {"dtype", row.dtype},
          {"shape", row.shape},
          {"median_us", row.median_us},
          {"p10_us", row.p10_us},
          {"p90_us", row.p90_us},
          {"gigabytes_per_second", row.gigabytes_per_second},
          {"teraflops_per_second", row.teraflops_per_second},
          {"share_of_ceiling", row.ceiling_us() / row.median_us},
          {"peers", peers},
          {"machine", row.machine},
          {"commit", row.commit}};
}

int run(const BenchOpsOptions& options) {
  const auto rows = rows_of(options);
  if (rows.empty()) {
    throw NotFound("cli", "bench.rows",
                   "benchmarks: expected rows of that device and dtype, got none");
  }
  if (!options.plot.empty()) {
    hub::write_atomically(options.plot, plot_bench_rows(rows));
    print_note(options.common, fmt::format("drawn: {}", options.plot));
  }
  if (options.common.json) {
    nlohmann::ordered_json list = nlohmann::ordered_json::array();
    for (const auto& row : rows) {
      list.push_back(json_of(row));
    }
    print_json({{"rows", list}});
  } else {
    write_stdout(table(rows));
  }
  return 0;
}

}  // namespace

void add_bench(CLI::App& app, Chosen& chosen) {
  auto* bench = app.add_subcommand("bench", "Measure kernels beside their peers");
  bench->require_subcommand(1);
  auto options = std::make_shared<BenchOpsOptions>();
  auto* ops = bench->add_subcommand(
      "ops",
      "Time the ops of the kernel packages: table, shares of the machine's ceiling, drawing");
  ops->add_option("--package", options->packages, "Only these packages (rms-norm, attention, …)");
  ops->add_option("--device", options->device, "Only this device; default: every one there is")
      ->check(CLI::IsMember({"cpu", "cuda"}));
  ops->add_option("--dtype", options->dtype, "Only rows of this dtype")
      ->transform(CLI::CheckedTransformer(std::map<std::string, std::string>{
          {"bfloat16", "BFloat16"}, {"float16", "Half"}, {"float32", "Float"}}));
  auto* from = ops->add_option("--from", options->from,
                               "Rows stored before: a file of JSON lines or a folder of such");
  ops->add_option("--plot", options->plot, "Draw the rows into this SVG file");
  ops->add_option("--save", options->save, "Keep the measured rows as JSON lines in this file")
      ->excludes(from);
  add_common_options(*ops, options->common);
  ops->callback([options, &chosen] {
    chosen = {[options] { return run(*options); }, &options->common};
  });
}

}  // namespace graft::cli
