#include "graft/layers/slot.h"

namespace graft::layers {

SlotModule::SlotModule(std::string layer_name, std::string variant_name)
    : layer_name_(std::move(layer_name)), variant_name_(std::move(variant_name)) {}

}  // namespace graft::layers
