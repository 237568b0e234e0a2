#include <filesystem>
#include <map>
#include <memory>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "graft/core/error.h"
#include "graft/io/checkpoint.h"
#include "graft/io/excerpt.h"
#include "graft/io/gguf.h"
#include "graft/io/json.h"

#include "cli/command.h"
#include "cli/model_path.h"
#include "cli/output.h"

namespace graft::cli {

namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

// Sums over a model's tensors.
struct Totals {
  int64_t num_tensors = 0;
  int64_t num_parameters = 0;
  uint64_t size_bytes = 0;
  std::map<std::string, int64_t> types;
  ordered_json tensors = ordered_json::array();

  void add(const std::string& name, std::string_view type, const std::vector<int64_t>& shape,
           uint64_t bytes) {
    int64_t count = 1;
    for (const int64_t size : shape) {
      count *= size;
    }
    ++num_tensors;
    num_parameters += count;
    size_bytes += bytes;
    ++types[std::string(type)];
    tensors.push_back({{"name", name}, {"dtype", type}, {"shape", shape}});
  }
};

ordered_json describe_gguf(const fs::path& path, Totals& totals) {
  const auto file = io::GgufFile::open(path);
  for (const auto& tensor : file.tensors()) {
    totals.add(tensor.name, io::info(tensor.type).name, tensor.shape, tensor.bytes.size());
  }
  return {{"format", "GGUF"}, {"architecture", file.text("general.architecture")}};
}

ordered_json describe_folder(const fs::path& folder, Totals& totals) {
  const fs::path config_file = folder / "config.json";
  const auto config = io::read_json_file(config_file, "cli.info");
  const auto family = config.is_object() ? config.find("model_type") : config.end();
  if (!config.is_object() || (family != config.end() && !family->is_string())) {
    throw FormatError("cli.info", "config",
                      fmt::format("`{}`: expected an object whose `model_type` is a text, got {}",
                                  config_file.string(), io::describe(config)));
  }
  const auto checkpoint = io::Checkpoint::open(folder);
  for (const auto& name : checkpoint.names()) {
    const auto* tensor = checkpoint.find(name);
    totals.add(name, io::name(tensor->dtype), tensor->shape, tensor->bytes.size());
  }
  return {{"format", "safetensors"},
          {"shards", checkpoint.shards().size()},
          {"architecture", family == config.end() ? "unknown" : family->get<std::string>()},
          {"config", config}};
}

int run(const InfoOptions& options) {
  const fs::path model = locate_model(options.model, {}, options.revision);
  Totals totals;
  ordered_json out = {{"model", model.string()}};
  out.update(is_gguf_file(model) ? describe_gguf(model, totals) : describe_folder(model, totals));
  out["tensors"] = totals.num_tensors;
  out["parameters"] = totals.num_parameters;
  out["size_bytes"] = totals.size_bytes;
  out["dtypes"] = totals.types;
  if (options.tensors) {
    out["tensor_list"] = totals.tensors;
  }
  if (options.common.json) {
    print_json(out);
    return 0;
  }
  std::string text = fmt::format(
      "model         {}\nformat        {}\narchitecture  {}\nparameters    {} in {} "
      "tensors\nsize          {}\ndtypes        ",
      model.string(), out["format"].get<std::string>(), out["architecture"].get<std::string>(),
      format_count(totals.num_parameters), totals.num_tensors, format_bytes(totals.size_bytes));
  for (const auto& [type, count] : totals.types) {
    text += fmt::format("{} x {}  ", count, type);
  }
  text += "\n";
  for (const auto& tensor : options.tensors ? totals.tensors : ordered_json::array()) {
    text += fmt::format("  {:<60} {:<6} {}\n", tensor["name"].get<std::string>(),
                        tensor["dtype"].get<std::string>(), tensor["shape"].dump());
  }
  write_report(text);
  return 0;
}

}  // namespace

void add_info(CLI::App& app, Chosen& chosen) {
  auto options = std::make_shared<InfoOptions>();
  auto* command = app.add_subcommand("info", "Show what a model's files hold");
  command->add_option("MODEL", options->model,
                      "Folder, .gguf file or Hub id (default: the demo model)");
  command->add_option("--revision", options->revision, "Branch, tag or commit of a Hub id");
  command->add_flag("--tensors", options->tensors, "List every tensor");
  add_common_options(*command, options->common);
  command->callback([options, &chosen] {
    chosen = {[options] { return run(*options); }, &options->common};
  });
}

}  // namespace graft::cli
