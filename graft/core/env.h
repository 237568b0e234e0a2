// Environment variables. Every name that graft reads goes through here and is listed in
// docs/env.md.
#pragma once

#include <optional>
#include <string>

namespace graft::env {

// Returns the variable's value, or nothing when it is unset. An empty value is a value.
std::optional<std::string> get(const char* name);

// Reads USE_HUB_KERNELS as transformers does: 1, ON, YES, TRUE (any case) or unset mean true,
// everything else means false.
bool use_hub_kernels();

// Reads DISABLE_KERNEL_MAPPING: an integer, non-zero means true, unset means false.
// Throws InvalidArgument when the value is not an integer.
bool disable_kernel_mapping();

}  // namespace graft::env
