// What a package's library asks of the process, for a person who decides whether to run it.
#pragma once

#include <string>

#include <nlohmann/json.hpp>

#include "graft/kernel/package_source.h"

namespace graft::cli {

// Read from the file, which is not opened. `refused` where loading would refuse it, with the reason;
// `library` is empty where the package has none, or is not here yet.
nlohmann::ordered_json library_report(const kernel::Resolution& found);

// The same as rows of `indent` spaces, a name of `width` and a value; empty where there is no library.
std::string library_text(const nlohmann::ordered_json& report, size_t indent, size_t width);

}  // namespace graft::cli
