// Launches attention on Hopper: descriptions of the tensors for the bulk copies, and the order in
// which blocks come.

#include <algorithm>
#include <cstdint>

#include "kernels/attention/sm90_attention.h"
#include "kernels/attention/sm90_attention_kernel.cuh"
#include "kernels/attention/sm90_tensor_map.h"
#include "kernels/common/cuda_launch.h"

namespace graft_kernels::attention {

namespace {

// Below this, dividing the keys fills the device better than tiles of 128 queries.
constexpr int64_t kLeastQueries = 64;

using sm90::is_whole_vectors;

// Tiles of packed sequences, where there are some.
struct Table {
  const PackedTile* tiles = nullptr;
  int64_t count = 0;
};

template <typename T, class L>
void launch(const DecodeProblem& problem, const Sm90Device& device, const Table& table,
            int* taken) {
  const Problem& base = problem.base;
  const CUtensorMap query_map =
      sm90::describe_queries(base, base.query, base.query_stride, L::kQueryTile);
  const CUtensorMap key_map = sm90::describe_keys(base, base.key, base.key_stride, L::kKeyTile);
  const CUtensorMap value_map =
      sm90::describe_keys(base, base.value, base.value_stride, L::kKeyTile);
  const int64_t all_heads = base.batch * base.key_heads;
  const int64_t head_bytes = base.keys * base.head_dim * 4;
  sm90::Order order;
  order.query_tiles = static_cast<int>((base.queries + L::kQueryTile - 1) / L::kQueryTile);
  // Sections of as many heads each as they go: the device would wait for the long tasks of a small last one.
  const int64_t fit = std::clamp<int64_t>(device.l2_bytes * 5 / 8 / head_bytes, 1, all_heads);
  const int64_t sections = (all_heads + fit - 1) / fit;
  order.heads_together = static_cast<int>((all_heads + sections - 1) / sections);
  const auto kernel = sm90::attention_fwd_sm90_kernel<T, L>;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, L::kBytes),
             "cudaFuncSetAttribute");
  order.tasks = static_cast<int>(sm90_tasks(problem));
  if (table.tiles != nullptr) {
    order.packed = table.tiles;
    order.query_tiles = static_cast<int>(table.count);
    order.tasks = static_cast<int>(table.count * base.key_heads * base.groups);
  }
  const int blocks = std::min(order.tasks, device.processors);
  order.taken = order.tasks > blocks ? taken : nullptr;
  if (order.taken != nullptr) {
    check_cuda(cudaMemsetAsync(order.taken, 0, sizeof(int), device.stream), "cudaMemsetAsync");
  }
  kernel<<<static_cast<unsigned>(blocks), L::kThreads, L::kBytes, device.stream>>>(
      query_map, key_map, value_map, problem, order);
  check_cuda(cudaGetLastError(), "attention_fwd_sm90_kernel");
}

template <typename T>
void launch_dtype(const DecodeProblem& problem, const Sm90Device& device, const Table& table,
                  int* taken) {
  problem.base.head_dim == 64 ? launch<T, sm90::Layout<64>>(problem, device, table, taken)
                              : launch<T, sm90::Layout<128>>(problem, device, table, taken);
}

}  // namespace

const char* why_not_sm90(const DecodeProblem& problem, int compute_capability) {
  const Problem& base = problem.base;
  if (compute_capability != 90) {
    return "needs compute capability 9.0";
  }
  if (base.dtype == Dtype::kFloat32 || (base.head_dim != 64 && base.head_dim != 128)) {
    return "16-bit heads of 64 or 128 alone";
  }
  if (base.queries < kLeastQueries || base.keys == 0) {
    return "few queries: dividing the keys is faster";
  }
  if (base.mask != nullptr || problem.lengths != nullptr || problem.table != nullptr ||
      base.softcap > 0.0F || !(base.scale > 0.0F)) {
    return "no mask, lengths, pages or soft cap, and a positive scale";
  }
  if (problem.splits > 1) {
    return "keys are not divided";
  }
  if (sm90_tasks(problem) > INT32_MAX / 2) {
    return "too many tiles";
  }
  const bool whole = is_whole_vectors(base.query, base.query_stride) &&
                     is_whole_vectors(base.key, base.key_stride) &&
                     is_whole_vectors(base.value, base.value_stride) &&
                     is_whole_vectors(base.out, base.out_stride);
  return whole ? "" : "rows off 16 bytes";
}

int64_t sm90_tasks(const DecodeProblem& problem) {
  const Problem& base = problem.base;
  const int64_t tile = sm90_query_tile(base.head_dim),
                query_tiles = (base.queries + tile - 1) / tile;
  return base.batch * base.key_heads * base.groups * query_tiles;
}

void run_sm90(const DecodeProblem& problem, const Sm90Device& device, int* taken) {
  problem.base.dtype == Dtype::kBfloat16 ? launch_dtype<Bf16>(problem, device, {}, taken)
                                         : launch_dtype<Fp16>(problem, device, {}, taken);
}

int64_t sm90_packed_tiles(const TrainProblem& problem, const Packing& packing) {
  return problem.base.queries / sm90_query_tile(problem.base.head_dim) + packing.sequences;
}

void run_sm90_packed(const DecodeProblem& problem, const TrainProblem& packed,
                     const Packing& packing, const Sm90Device& device, PackedTile* tiles,
                     int* taken) {
  const Table table{tiles, sm90_packed_tiles(packed, packing)};
  const auto kernel = problem.base.head_dim == 64
                          ? sm90::attention_packed_tiles_kernel<sm90_query_tile(64)>
                          : sm90::attention_packed_tiles_kernel<sm90_query_tile(128)>;
  kernel<<<static_cast<unsigned>((table.count + 3) / 4), 128, 0, device.stream>>>(
      packed, packing, tiles, static_cast<int>(table.count));
  check_cuda(cudaGetLastError(), "attention_packed_tiles_kernel");
  problem.base.dtype == Dtype::kBfloat16 ? launch_dtype<Bf16>(problem, device, table, taken)
                                         : launch_dtype<Fp16>(problem, device, table, taken);
}

}  // namespace graft_kernels::attention
