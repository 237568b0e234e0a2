#include "graft/models/save_pretrained.h"

#include <fstream>
#include <map>
#include <set>
#include <system_error>

#include <ATen/core/grad_mode.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "graft/core/error.h"
#include "graft/core/file_status.h"
#include "graft/io/safetensors.h"
#include "graft/layers/packed_weight.h"
#include "graft/nn/block.h"
#include "graft/tensor/device.h"

namespace graft::models {

namespace fs = std::filesystem;

namespace {

io::ScalarType stored_type(at::ScalarType dtype) {
  switch (dtype) {
    case at::kFloat:
      return io::ScalarType::kF32;
    case at::kBFloat16:
      return io::ScalarType::kBF16;
    case at::kHalf:
      return io::ScalarType::kF16;
    default:
      throw InternalError("models.save", "dtype",
                          fmt::format("expected a floating dtype, got {}", c10::toString(dtype)));
  }
}

void write_config(const CausalLM& model, const fs::path& folder) {
  auto config = nlohmann::ordered_json::parse(model.info().config_json);
  config.erase("torch_dtype");
  config["dtype"] = tensor::dtype_name(model.dtype());
  std::ofstream file(folder / "config.json");
  file << config.dump(2) << "\n";
  if (!file.flush()) {
    throw Error(
        "models.save", "config",
        fmt::format("`{}`: expected to write it, got: {}", (folder / "config.json").string(),
                    std::generic_category().message(errno)));
  }
}

void copy_beside(const fs::path& from, const fs::path& to) {
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                           "chat_template.jinja", "generation_config.json"}) {
    if (is_file(from / name)) {
      fs::copy_file(from / name, to / name, fs::copy_options::overwrite_existing);
    }
  }
}

}  // namespace

std::vector<at::Tensor> unique_parameters(CausalLM& model) {
  std::vector<at::Tensor> unique;
  std::set<const void*> seen;
  for (const at::Tensor& parameter : model.parameters()) {
    if (seen.insert(parameter.unsafeGetTensorImpl()).second) {
      unique.push_back(parameter);
    }
  }
  return unique;
}

void save_pretrained(CausalLM& model, const fs::path& folder) {
  const at::NoGradGuard no_grad;
  std::error_code failed;
  fs::create_directories(folder, failed);
  if (failed) {
    throw Error("models.save", "folder",
                fmt::format("`{}`: expected a folder, got: {}", folder.string(), failed.message()));
  }
  std::vector<at::Tensor> held;  // until the file is written
  std::vector<io::TensorView> views;
  std::set<const void*> seen;
  for (const auto& parameter : model.named_parameters()) {
    if (!seen.insert(parameter.value().unsafeGetTensorImpl()).second) {
      continue;  // tied: transformers ties it again
    }
    held.push_back(parameter.value().detach().to(at::kCPU).contiguous());
    const at::Tensor& weight = held.back();
    views.push_back({parameter.key(),
                     stored_type(weight.scalar_type()),
                     weight.sizes().vec(),
                     {static_cast<const std::byte*>(weight.const_data_ptr()), weight.nbytes()}});
  }
  for (const auto& [key, weight] : nn::list_packed_weights(model)) {
    if (!seen.insert(weight.get()).second) {
      continue;
    }
    held.push_back(weight->unpacked(model.dtype()));
    const at::Tensor& values = held.back();
    views.push_back({key,
                     stored_type(values.scalar_type()),
                     values.sizes().vec(),
                     {static_cast<const std::byte*>(values.const_data_ptr()), values.nbytes()}});
  }
  io::write_safetensors(folder / "model.safetensors", std::move(views), {{"format", "pt"}});
  write_config(model, folder);
  if (model.info().weights_file.empty() && !fs::equivalent(model.info().folder, folder)) {
    copy_beside(model.info().folder, folder);
  }
}

}  // namespace graft::models
