#include "cli/plan_model.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <optional>

#include <fmt/format.h>

#include "graft/core/error.h"
#include "graft/core/file_status.h"
#include "graft/core/temporary_folder.h"
#include "graft/hub/cache.h"
#include "graft/hub/download.h"
#include "graft/hub/environment.h"
#include "graft/io/json.h"
#include "graft/models/checkpoint_weights.h"
#include "graft/models/decoder.h"
#include "graft/models/decoder_config.h"
#include "graft/models/model_files.h"
#include "graft/models/registry.h"
#include "graft/nn/attention_name.h"
#include "graft/tensor/device.h"

#include "cli/load_model.h"
#include "cli/model_path.h"
#include "cli/output.h"

namespace graft::cli {

namespace {

namespace fs = std::filesystem;

struct Config {
  nlohmann::json object;
  std::string where;  // that errors name
  fs::path folder;    // that may have weights beside it; empty: fetched
};

Config config_in(const fs::path& folder) {
  const fs::path file = folder / "config.json";
  return {io::read_json_file(file, "models.config"), file.string(), folder};
}

// The repository's config.json, by way of a folder that goes away.
Config fetch_config(const std::string& repo_id, const std::string& revision) {
  const hub::Client client;
  const auto commit =
      client.resolve_commit(hub::RepoType::kModel, repo_id, revision.empty() ? "main" : revision);
  const auto files = client.list_folder(hub::RepoType::kModel, repo_id, commit);
  const auto file = std::find_if(files.begin(), files.end(),
                                 [](const auto& each) { return each.path == "config.json"; });
  if (file == files.end()) {
    throw NotFound("cli.plan", "config",
                   fmt::format("`{}`: expected a config.json, got none", repo_id),
                   fmt::format("of a GGUF model bring the file: `graft download {}`", repo_id));
  }
  const TemporaryFolder folder("graft-plan", [](const std::string& name) {
    throw Error("hub.download", "disk", fmt::format("`{}` cannot be made", name));
  });
  hub::download_files({client, hub::RepoType::kModel, repo_id, commit, folder.path()}, {*file});
  Config config = config_in(folder.path() / "snapshots" / commit);
  config.where = fmt::format("config.json of `{}`", repo_id);
  config.folder.clear();
  return config;
}

// What is here before what is not.
Config find_config(const ModelOptions& options) {
  const std::string model = resolve_model(options.model);
  if (is_folder(model)) {
    return config_in(model);
  }
  const bool is_id = hub::is_repo_id(model) && !is_file(model);
  const auto snapshot = is_id ? hub::find_snapshot(hub::cache_folder(), hub::RepoType::kModel,
                                                   model, options.revision)
                              : std::nullopt;
  if (snapshot && is_file(snapshot->folder / "config.json")) {
    return config_in(snapshot->folder);
  }
  if (!is_id || hub::offline()) {
    return config_in(locate_model(options.model, "", options.revision));  // says what is missing
  }
  return fetch_config(model, options.revision);
}

// As from_pretrained() has it: the option, then the config, then the weights, where they are here.
at::ScalarType dtype_of(const ModelOptions& options, const models::ConfigReader& config,
                        const fs::path& folder, const CommonOptions& common) {
  auto dtype = tensor::parse_dtype(options.dtype);
  dtype = dtype ? dtype : models::read_dtype(config);
  if (dtype) {
    return *dtype;
  }
  try {
    if (!folder.empty()) {
      return models::open_safetensors(folder)->stored_dtype();
    }
  } catch (const NotFound&) {
  }
  print_note(common, "config.json names no dtype and no weights are here: planned for float32");
  return at::kFloat;
}

// An attention that a kernel of the Hub computes is brought and bound when the model is loaded.
nn::AttentionChoice planned_attention(const std::string& name, const CommonOptions& common) {
  const auto kind = nn::parse_attention_name(name).kind;
  const bool is_plain = kind == nn::AttentionKind::kEager || kind == nn::AttentionKind::kSdpa;
  if (!is_plain) {
    print_note(common,
               fmt::format("the kernel of attn_implementation `{}` is not part of the plan", name));
  }
  return {name,
          kind == nn::AttentionKind::kEager ? nn::AttentionBackend::kEager
                                            : nn::AttentionBackend::kSdpa,
          nullptr};
}

// Such a file is here or it is not: config, dtype and the kind of every matrix are in one header.
PlannedModel plan_gguf(const ModelOptions& options, layers::Mode mode,
                       const nn::AttentionChoice& attention) {
  const models::LoadOptions load = load_options(options);
  const auto location = models::locate_model_files(resolve_model(options.model), load);
  const at::Device device = load.device_map.resolve();
  tensor::ensure_device(device);
  const bool packed = loads_packed(load, location, mode);
  auto files = models::open_model_files(location);
  const models::ConfigReader config(std::move(files.config), location.config_file().string());
  const auto& family = config.parsed("model_type", "", &models::find_model_family);
  const auto model = family.make(config, {attention});
  const auto named_dtype = load.dtype ? load.dtype : models::read_dtype(config);
  const at::ScalarType dtype = named_dtype.value_or(files.weights->stored_dtype());
  models::load_weights(*model, *files.weights,
                       {.dtype = dtype, .device = at::kMeta, .packed = packed});
  model->finish_loading(location.folder.string(), location.gguf_file.string(), config.raw().dump(),
                        /*trainable=*/false);
  model->eval();
  return {model, device, dtype};
}

}  // namespace

PlannedModel plan_model(const ModelOptions& options, layers::Mode mode,
                        const CommonOptions& common) {
  const auto attention = planned_attention(options.attn_implementation, common);
  if (!options.gguf_file.empty() || is_gguf_file(resolve_model(options.model))) {
    return plan_gguf(options, mode, attention);
  }
  Config found = find_config(options);
  const models::ConfigReader config(std::move(found.object), found.where);
  const auto& family = config.parsed("model_type", "", &models::find_model_family);
  const models::DeviceMap device_map(options.device);
  const at::Device device = device_map.resolve();
  tensor::ensure_device(device);
  models::stays_packed(load_options(options), {resolve_model(options.model), {}},
                       device);  // or says why not
  std::shared_ptr<models::CausalLM> model = family.make(config, {attention});
  model->eval();
  return {model, device, dtype_of(options, config, found.folder, common)};
}

}  // namespace graft::cli
