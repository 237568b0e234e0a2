// Draws benchmark rows: one group of bars per row, ours first, its peers below, as shares of what
// the machine could do.
#pragma once

#include <string>
#include <vector>

#include "cli/bench_rows.h"

namespace graft::cli {

// An SVG document (UTF-8, no script, no outside reference). Rows appear in the order given; all
// should come from one machine, whose name stands in the caption.
std::string plot_bench_rows(const std::vector<BenchRow>& rows);

}  // namespace graft::cli
