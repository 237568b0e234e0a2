#include <fmt/format.h>

#include "graft/layers/kernelize.h"

#include "cli/load_model.h"
#include "cli/model_path.h"
#include "cli/output.h"
#include "cli/plan_model.h"
#include "cli/run.h"

namespace graft::cli {

int run_plan(const PlanOptions& options) {
  const auto mode = layers::parse_mode(options.mode);
  const PlannedModel planned = plan_model(options.model, mode, options.common);
  layers::KernelizeOptions kernelize{
      .mode = mode,
      .device = planned.device,
      .dtype = planned.dtype,
      .config = kernel_config(options.model),
      .dry_run = true,
      .trust = {.trust_all = options.trust_remote_code, .repositories = {}}};
  const auto report = layers::kernelize(*planned.model, kernelize);
  if (options.common.json) {
    auto object = report.to_json();
    object["model"] = resolve_model(options.model.model);
    print_json(object);
  } else {
    write_report(report.to_text());
  }
  return 0;
}

}  // namespace graft::cli
