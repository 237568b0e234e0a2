// Environment variables. Every name that graft reads goes through here and is listed in
// docs/env.md.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

namespace graft::env {

// Returns the variable's value, or nothing when it is unset. An empty value is a value.
std::optional<std::string> get(const char* name);

// The user's folder: HOME, and where that is unset what the system's list of users says; `/` where neither names one.
std::filesystem::path user_home();

// A path as Python's expanduser() and expandvars() read it: `~` and `~name` at the start, `$NAME` and `${NAME}`
// anywhere. What nobody knows stays as it is.
std::filesystem::path expand_path(const std::string& text);

// The folder or file that a variable names, expanded. A variable that is set to nothing names none.
std::optional<std::filesystem::path> folder(const char* name);

// Reads USE_HUB_KERNELS as transformers does: 1, ON, YES, TRUE (any case) or unset mean true,
// everything else means false.
bool use_hub_kernels();

// Reads DISABLE_KERNEL_MAPPING: an integer, non-zero means true, unset means false.
// Throws InvalidArgument when the value is not an integer.
bool disable_kernel_mapping();

}  // namespace graft::env
