// How kernel packages are shown, by every command below `kernels`.
#pragma once

#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "graft/kernel/get_kernel.h"

#include "cli/options.h"

namespace graft::cli {

// The request for a KERNEL argument; `v1` where it names no ref. Throws as kernel::kernel_request.
kernel::ResolveRequest kernel_argument(const std::string& text, const KernelsOptions& options);

// The options for what a lock names.
kernel::KernelOptions lock_options(const KernelsOptions& options);

// `org/repo@v1`, or a path.
std::string name_of(const kernel::ResolvedKernel& kernel);

nlohmann::ordered_json to_json(const kernel::ResolvedKernel& kernel);

// One line for each kernel of a tree: name, commit, variant, where it comes from, bytes.
std::string to_text(const std::vector<kernel::ResolvedKernel>& tree, bool dry_run);

// What is decided about a kernel that is here, from what is here; nothing is noted or asked.
trust::Verdict trust_of(const kernel::Resolution& found);

// What the canary says of a package, in words: `ok, 20 checks; opened and not run: …`.
std::string canary_text(const kernel::CanaryVerdict& verdict);
// The same of a package that is looked at: that it was not run here, or need not be, too.
std::string canary_text_of(const kernel::Resolution& found);

}  // namespace graft::cli
