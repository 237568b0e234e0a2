#include <c10/core/InferenceMode.h>
#include <fmt/format.h>

#include "graft/core/error.h"
#include "graft/io/safetensors.h"

#include "cli/load_model.h"
#include "cli/output.h"
#include "cli/run.h"

namespace graft::cli {

int run_logits(const LogitsOptions& options) {
  const auto ids = parse_ids(options.ids);
  if (ids.empty()) {
    throw InvalidArgument("cli.logits", "ids", "--ids: expected at least one token id, got none");
  }
  const auto model = load_model(options.model, options.common);
  for (const int64_t id : ids) {
    if (id < 0 || id >= model->info().vocab_size) {
      throw InvalidArgument("cli.logits", "ids",
                            fmt::format("--ids: expected ids from 0 to {}, got {}",
                                        model->info().vocab_size - 1, id));
    }
  }
  const c10::InferenceMode inference;
  const at::Tensor input = at::tensor(ids, at::kLong).unsqueeze(0).to(model->device());
  const at::Tensor logits =
      model->forward({.input_ids = input})[0].to(at::kFloat).to(at::kCPU).contiguous();
  const auto* data = static_cast<const std::byte*>(logits.const_data_ptr());
  io::write_safetensors(
      options.out,
      {{"logits", io::ScalarType::kF32, logits.sizes().vec(), {data, logits.nbytes()}}});
  if (options.common.json) {
    print_json({{"out", options.out}, {"shape", logits.sizes().vec()}});
  } else {
    print_note(options.common,
               fmt::format("wrote logits {} to `{}`", c10::str(logits.sizes()), options.out));
  }
  return 0;
}

}  // namespace graft::cli
