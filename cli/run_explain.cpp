#include <fmt/format.h>

#include "graft/generation/generate.h"
#include "graft/layers/kernelize.h"

#include "cli/load_model.h"
#include "cli/model_path.h"
#include "cli/output.h"
#include "cli/run.h"

namespace graft::cli {

int run_explain(const ExplainOptions& options) {
  ModelOptions model_options = options.model;
  const auto mode = layers::parse_mode(options.mode);
  model_options.kernel_config.clear();
  model_options.use_kernels = false;  // kernelized below, with the mode that was asked for
  const auto model = load_model(model_options, options.common);
  layers::KernelizeOptions kernelize{.mode = mode,
                                     .device = model->device(),
                                     .dtype = model->dtype(),
                                     .config = kernel_config(options.model)};
  const auto report = layers::kernelize(*model, kernelize);
  const std::string no_graph = generation::graph_refusal(*model);
  if (options.common.json) {
    auto object = report.to_json();
    object["model"] = resolve_model(options.model.model);
    object["cuda_graph"] = {{"possible", no_graph.empty()}, {"reason", no_graph}};
    print_json(object);
  } else {
    write_stdout(report.to_text());
    if (model->device().is_cuda()) {
      write_stdout(fmt::format("decode steps with a static cache: {}\n",
                               no_graph.empty() ? "replayed from a CUDA graph"
                                                : "no CUDA graph: " + no_graph));
    }
  }
  return 0;
}

}  // namespace graft::cli
