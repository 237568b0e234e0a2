// The linear layer on packed weights, on the CPU: any number of rows of x, the weight read once for
// all of them.

#include <algorithm>
#include <memory>

#include "kernels/common/isa.h"
#include "kernels/common/parallel.h"
#include "kernels/linear/linear_ops.h"
#include "kernels/linear/packed_ops.h"

namespace graft_kernels::linear {

namespace {

// Bytes of weight, times rows of x, below which a second thread costs more than it saves.
constexpr int64_t kGrainBytes = 1 << 16;
// Elements of x for which the same holds.
constexpr int64_t kGrainElements = 1 << 14;

template <typename T>
std::unique_ptr<T[]> make_array(int64_t count) {
  return std::unique_ptr<T[]>(new T[static_cast<size_t>(count)]);
}

// How the rows of x are multiplied.
enum class Path { kExact, kWholeNumbers, kBytes, kTiles };

Path choose_path(int64_t rows, int64_t depth, bool round_x) {
  if (!round_x || depth == 0) {
    return Path::kExact;
  }
  if (rows <= kMaxVectorRows) {
    return Path::kWholeNumbers;
  }
  return multiplies_tiles() ? Path::kTiles : Path::kBytes;
}

// What a path reads of x, and the memory for it.
class PreparedRows {
 public:
  PreparedRows(const char* op, const Tensor& x, bool round_x)
      : path(choose_path(count_rows(x), x.size(x.dim() - 1), round_x)) {
    problem.dtype = dtype_of(x);
    problem.rows = count_rows(x);
    problem.depth = x.size(x.dim() - 1);
    const float* rows = float_rows(op, x, problem.rows, problem.depth, wide_);
    if (path == Path::kExact) {
      problem.x = rows;
    } else if (path == Path::kTiles) {
      make_tiles(rows);
    } else {
      make_whole_numbers(rows);
    }
  }

  const Path path;
  PackedProblem problem;  // without a weight

 private:
  void make_tiles(const float* rows) {
    const int64_t tile_rows = (problem.rows + kTileRows - 1) / kTileRows;
    tiles_ = make_array<uint16_t>(tile_rows * kTileRows * problem.depth);
    spread(tile_rows, kGrainElements / (kTileRows * problem.depth) + 1,
           [&](int64_t begin, int64_t end) {
             avx512::tile_rows(rows, problem.rows, problem.depth, tiles_.get(), begin, end);
           });
    problem.x_tiles = tiles_.get();
  }

  void make_whole_numbers(const float* rows) {
    const bool low = path == Path::kWholeNumbers;
    const int64_t count = problem.rows * problem.depth;
    problem.use_vnni = low && multiplies_bytes();
    bytes_ = make_array<int8_t>(count * (low ? 2 : 1));
    floats_ = make_array<float>(count / 32 * 3);
    counts_ = make_array<int32_t>(count / 16);
    const RoundedX to{bytes_.get(), low ? bytes_.get() + count : nullptr, floats_.get(),
                      floats_.get() + count / 32, counts_.get()};
    if (problem.use_vnni) {
      spread_ = make_array<int8_t>(count * 16);
    }
    const auto round =
        choose_isa<RoundFunction>(plain::round_rows, avx2::round_rows, avx512::round_rows);
    spread(problem.rows, kGrainElements / problem.depth + 1, [&](int64_t begin, int64_t end) {
      const int64_t at = begin * problem.depth, part = (end - begin) * problem.depth;
      int8_t* low_part = low ? to.low + at : nullptr;
      round(rows + at, part,
            {to.high + at, low_part, to.scales + at / 32, to.sums + at / 16, to.counts + at / 16});
      if (problem.use_vnni) {
        avx512::spread_rows(to.high + at, low_part, part, spread_.get() + at * 16);
      }
    });
    problem.x_high = to.high;
    problem.x_low = to.low;
    problem.x_scales = to.scales;
    problem.x_sums = to.sums;
    problem.x_counts = to.counts;
    problem.x_spread = spread_.get();
  }

  std::unique_ptr<float[]> wide_, floats_;
  std::unique_ptr<uint16_t[]> tiles_;
  std::unique_ptr<int8_t[]> bytes_, spread_;
  std::unique_ptr<int32_t[]> counts_;
};

// A part's share of the tasks: groups or panels, counted over all parts.
struct PartTasks {
  PackedProblem problem;
  int64_t first = 0, end = 0;
};

std::vector<PartTasks> describe_parts(const Tensor& out, const std::vector<PackedPart>& parts,
                                      const PackedProblem& shared, int64_t task_rows) {
  std::vector<PartTasks> described;
  auto* bytes = static_cast<char*>(out.mutable_data_ptr());
  int64_t task = 0;
  for (const PackedPart& part : parts) {
    PartTasks tasks{shared, task, task + (part.rows + task_rows - 1) / task_rows};
    tasks.problem.format = find_packed_format(part.type);
    tasks.problem.columns = part.rows;
    tasks.problem.packed = static_cast<const uint8_t*>(part.packed.const_data_ptr());
    tasks.problem.bias = part.bias ? part.bias->const_data_ptr() : nullptr;
    tasks.problem.out = bytes;
    tasks.problem.out_stride = out.size(out.dim() - 1);
    bytes += part.rows * bytes_of(shared.dtype);
    task = tasks.end;
    described.push_back(tasks);
  }
  return described;
}

void run_cpu(const char* op, Tensor& out, const Tensor& x, const std::vector<PackedPart>& parts,
             bool round_x) {
  const PreparedRows x_rows(op, x, round_x);
  const bool tiles = x_rows.path == Path::kTiles;
  const std::vector<PartTasks> described =
      describe_parts(out, parts, x_rows.problem, tiles ? kPanelRows : kPackedRows);
  const PackedFunction groups =
      x_rows.problem.use_vnni
          ? avx512::vnni_groups
          : choose_isa<PackedFunction>(plain::packed_groups, avx2::packed_groups,
                                       avx512::packed_groups);
  const int64_t depth = x_rows.problem.depth;
  const int64_t group_bytes = depth / kPackedColumns *
                              described.front().problem.format->chunk_bytes() * x_rows.problem.rows;
  const int64_t grain = tiles ? 1 : kGrainBytes / (group_bytes + 1) + 1;
  spread(described.back().end, grain, [&](int64_t begin, int64_t end) {
    // A tile's store and load want lines of the cache.
    constexpr size_t kAlignment = 32;  // elements
    const auto scratch = tiles ? make_array<uint16_t>(panel_elements(depth) + kAlignment) : nullptr;
    for (const PartTasks& part : described) {
      const int64_t first = std::max(begin, part.first), last = std::min(end, part.end);
      if (first >= last) {
        continue;
      }
      PackedProblem problem = part.problem;
      if (tiles) {
        const auto address = reinterpret_cast<uintptr_t>(scratch.get());
        problem.panel = reinterpret_cast<uint16_t*>((address + 63) / 64 * 64);
        avx512::tile_panels(problem, first - part.first, last - part.first);
      } else {
        groups(problem, first - part.first, last - part.first);
      }
    }
  });
}

Tensor pack_weight(const Tensor& blocks, int64_t type, int64_t rows, int64_t columns) {
  const PackedFormat& format = check_packed_shape("pack_weight", type, rows, columns);
  check_bytes("pack_weight", {"blocks", blocks}, block_bytes(format, rows, columns));
  Tensor packed = new_tensor(blocks, {packed_bytes(format, rows, columns)});
  const auto* from = static_cast<const uint8_t*>(blocks.const_data_ptr());
  auto* to = static_cast<uint8_t*>(packed.mutable_data_ptr());
  torch::stable::parallel_for(0, (rows + kPackedRows - 1) / kPackedRows, 16,
                              [&](int64_t begin, int64_t end) {
                                pack_groups(format, from, rows, columns, to, begin, end);
                              });
  return packed;
}

}  // namespace

using PackedCpuOps = PackedOps<&run_cpu>;

}  // namespace graft_kernels::linear

GRAFT_OPS_IMPL(CPU, ops) {
  graft_kernels::linear::PackedCpuOps::implement(ops);
  ops.impl("pack_weight", TORCH_BOX(&graft_kernels::linear::pack_weight));
}
