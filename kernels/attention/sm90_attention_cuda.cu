// Launches attention on Hopper: descriptions of the tensors for the bulk copies, and the order in
// which blocks come.

#include <algorithm>
#include <cstdint>

#include "kernels/attention/sm90_attention.h"
#include "kernels/attention/sm90_attention_kernel.cuh"
#include "kernels/common/cuda_launch.h"

namespace graft_kernels::attention {

namespace {

// Below this, dividing the keys fills the device better than tiles of 128 queries.
constexpr int64_t kLeastQueries = 64;

bool is_whole_vectors(const void* pointer, const int64_t (&stride)[3]) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0 && stride[0] % 8 == 0 &&
         stride[1] % 8 == 0 && stride[2] % 8 == 0;
}

using Encode = decltype(&cuTensorMapEncodeTiled);

Encode encode_function() {
  static const Encode found = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result;
    check_cuda(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                                cudaEnableDefault, &result),
               "cudaGetDriverEntryPointByVersion");
    if (result != cudaDriverEntryPointSuccess) {
      throw std::runtime_error("[cuda] cuTensorMapEncodeTiled: expected in the driver, got none");
    }
    return reinterpret_cast<Encode>(function);
  }();
  return found;
}

struct Extents {
  int64_t rows, heads, batch;                     // sizes
  int64_t row_stride, head_stride, batch_stride;  // elements
};

CUtensorMap describe(const Problem& base, const void* from, const Extents& extents, int tile_rows) {
  CUtensorMap map;
  const auto bytes = [](int64_t size, int64_t stride) {
    return static_cast<cuuint64_t>(size == 1 ? 16 : stride * 2);
  };
  const cuuint64_t sizes[4] = {
      static_cast<cuuint64_t>(base.head_dim), static_cast<cuuint64_t>(extents.rows),
      static_cast<cuuint64_t>(extents.heads), static_cast<cuuint64_t>(extents.batch)};
  const cuuint64_t strides[3] = {bytes(extents.rows, extents.row_stride),
                                 bytes(extents.heads, extents.head_stride),
                                 bytes(extents.batch, extents.batch_stride)};
  const cuuint32_t box[4] = {sm90::kBoxColumns, static_cast<cuuint32_t>(tile_rows), 1, 1};
  const cuuint32_t steps[4] = {1, 1, 1, 1};
  const CUtensorMapDataType dtype = base.dtype == Dtype::kBfloat16
                                        ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                        : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  const CUresult status =
      encode_function()(&map, dtype, 4, const_cast<void*>(from), sizes, strides, box, steps,
                        CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                        CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) {
    throw std::runtime_error("[cuda] cuTensorMapEncodeTiled: expected CUDA_SUCCESS, got " +
                             std::to_string(static_cast<int>(status)));
  }
  return map;
}

template <typename T, int kD>
void launch(const DecodeProblem& problem, const Sm90Device& device, int* taken) {
  const Problem& base = problem.base;
  const CUtensorMap query_map =
      describe(base, base.query,
               {base.queries, base.key_heads * base.groups, base.batch, base.query_stride[1],
                base.query_stride[2], base.query_stride[0]},
               sm90::kQueryTile);
  const auto cache_map = [&](const void* from, const int64_t(&stride)[3]) {
    return describe(base, from,
                    {base.keys, base.key_heads, base.batch, stride[2], stride[1], stride[0]},
                    sm90::kKeyTile);
  };
  const CUtensorMap key_map = cache_map(base.key, base.key_stride);
  const CUtensorMap value_map = cache_map(base.value, base.value_stride);
  const int64_t all_heads = base.batch * base.key_heads;
  const int64_t head_bytes = base.keys * base.head_dim * 4;
  sm90::Order order;
  order.query_tiles = static_cast<int>((base.queries + sm90::kQueryTile - 1) / sm90::kQueryTile);
  order.heads_together =
      static_cast<int>(std::clamp<int64_t>(device.l2_bytes * 5 / 8 / head_bytes, 1, all_heads));
  constexpr int kBytes = sm90::Layout<kD>::kBytes;
  const auto kernel = sm90::attention_fwd_sm90_kernel<T, kD>;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
             "cudaFuncSetAttribute");
  order.tasks = static_cast<int>(sm90_tasks(problem));
  const int blocks = std::min(order.tasks, device.processors);
  order.taken = order.tasks > blocks ? taken : nullptr;
  if (order.taken != nullptr) {
    check_cuda(cudaMemsetAsync(order.taken, 0, sizeof(int), device.stream), "cudaMemsetAsync");
  }
  kernel<<<static_cast<unsigned>(blocks), sm90::kThreads, kBytes, device.stream>>>(
      query_map, key_map, value_map, problem, order);
  check_cuda(cudaGetLastError(), "attention_fwd_sm90_kernel");
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
      problem.sinks.values != nullptr || problem.window > 0 || base.softcap > 0.0F ||
      !(base.scale > 0.0F)) {
    return "no mask, lengths, pages, sinks, window or soft cap, and a positive scale";
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
  const int64_t query_tiles = (base.queries + sm90::kQueryTile - 1) / sm90::kQueryTile;
  return base.batch * base.key_heads * base.groups * query_tiles;
}

void run_sm90(const DecodeProblem& problem, const Sm90Device& device, int* taken) {
  const bool is_bfloat16 = problem.base.dtype == Dtype::kBfloat16;
  if (problem.base.head_dim == 64) {
    is_bfloat16 ? launch<Bf16, 64>(problem, device, taken)
                : launch<Fp16, 64>(problem, device, taken);
  } else {
    is_bfloat16 ? launch<Bf16, 128>(problem, device, taken)
                : launch<Fp16, 128>(problem, device, taken);
  }
}

}  // namespace graft_kernels::attention
