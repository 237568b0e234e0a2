// Whether the kernels of a model are safe inside the capture of a graph.
#include <fmt/format.h>

#include "graft/layers/kernelize.h"
#include "graft/layers/slot.h"

namespace graft::layers {

std::string capture_refusal(torch::nn::Module& model) {
  for (const auto& module : model.modules(/*include_self=*/false)) {
    const auto* slot = dynamic_cast<const SlotModule*>(module.get());
    if (slot != nullptr && slot->swapped() && !slot->session()) {
      return fmt::format("a kernel for {} was swapped in by hand", slot->layer_name());
    }
  }
  const auto report = kernelize_report(model);
  for (const auto& slot : report ? report->slots : std::vector<SlotTrace>{}) {
    if (!slot.chosen.empty() && !slot.capturable) {
      return fmt::format("`{}` for {} is not safe under capture", slot.chosen, slot.slot);
    }
  }
  return "";
}

}  // namespace graft::layers
