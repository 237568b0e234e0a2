#include "graft/models/auto_model.h"

#include <fmt/format.h>

#include "graft/core/error.h"
#include "graft/core/warn.h"
#include "graft/layers/kernelize.h"
#include "graft/models/decoder.h"
#include "graft/models/model_files.h"
#include "graft/models/registry.h"
#include "graft/nn/attention_name.h"
#include "graft/tensor/device.h"

namespace graft::models {

namespace {

// Kernels go in after the weights: the guard runs in the model's own dtype, on its device.
void swap_kernels(CausalLM& model, const LoadOptions& options) {
  if (!options.use_kernels && !options.kernel_config) {
    return;
  }
  if (!options.use_kernels) {
    warn("[models.auto_model] kernel_config without use_kernels: kernels are turned on");
  }
  const auto report = layers::kernelize(
      model, {.device = model.device(), .dtype = model.dtype(), .config = options.kernel_config});
  inform(report.to_text());
  nn::prepare_packed(model);
}

}  // namespace

WeightFormat parse_weight_format(const std::string& text) {
  if (text == "auto") {
    return WeightFormat::kAuto;
  }
  if (text == "packed") {
    return WeightFormat::kPacked;
  }
  if (text == "unpacked") {
    return WeightFormat::kUnpacked;
  }
  throw InvalidArgument("models.weights", "format",
                        fmt::format("weights: expected auto, packed or unpacked, got `{}`", text));
}

std::shared_ptr<CausalLM> AutoModelForCausalLM::from_pretrained(const std::string& name_or_path,
                                                                const LoadOptions& options) {
  nn::parse_attention_name(options.attn_implementation);  // a mistyped name comes first
  const ModelLocation location = locate_model_files(name_or_path, options);
  const at::Device device = options.device_map.resolve();
  tensor::ensure_device(device);
  const ModelOptions model_options{nn::choose_attention(options.attn_implementation, device)};

  ModelFiles files = open_model_files(location);
  const std::unique_ptr<WeightSource> source = std::move(files.weights);
  const ConfigReader config(std::move(files.config), location.config_file().string());
  const ModelFamily& family = config.parsed("model_type", "", &find_model_family);
  const auto model = family.make(config, model_options);
  options.device_map.check_covers(nn::list_weights(*model));

  const auto named_dtype = options.dtype ? options.dtype : read_dtype(config);
  const at::ScalarType dtype = named_dtype.value_or(source->stored_dtype());
  model->check_attention(dtype, device, options.trainable);
  load_weights(*model, *source,
               {.dtype = dtype,
                .device = device,
                .trainable = options.trainable,
                .packed = stays_packed(options, location, device),
                .progress = options.progress});
  model->finish_loading(location.folder.string(), location.gguf_file.string(), config.raw().dump(),
                        options.trainable);
  model->eval();
  swap_kernels(*model, options);
  return model;
}

}  // namespace graft::models
