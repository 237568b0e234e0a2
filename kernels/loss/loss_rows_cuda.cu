// The gradient of an embedding added where the gradient of a head with the same weight lies, on CUDA: only rows that were
// looked up are touched, where autograd would write a whole second gradient and read both for their sum.

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "kernels/common/cuda_launch.h"
#include "kernels/common/registration.h"
#include "kernels/common/vec.cuh"
#include "kernels/loss/loss_rows.h"

namespace graft_kernels::loss {

namespace {

constexpr unsigned kThreads = 256;
// Rows of one id that are on their way at a time.
constexpr int kAhead = 8;

struct RowSums {
  void* sums;
  const void* rows;
  const int64_t* ids;
  const int64_t* order;
  int64_t num_rows, num_sums, vectors;
  int64_t skipped;  // an id whose rows have no gradient, or -1
};

// A block adds all rows of the id that begins at its place, in their order, in float32, and rounds once.
template <typename T, int kSize>
__global__ void __launch_bounds__(kThreads) add_rows_kernel(const RowSums problem) {
  const int64_t begin = blockIdx.x, id = problem.ids[begin];
  const bool is_first = begin == 0 || problem.ids[begin - 1] != id;
  const int64_t vector = int64_t{blockIdx.y} * kThreads + threadIdx.x;
  if (!is_first || id < 0 || id >= problem.num_sums || id == problem.skipped ||
      vector >= problem.vectors) {
    return;
  }
  const int64_t stride = problem.vectors * kSize;
  const T* rows = static_cast<const T*>(problem.rows) + vector * kSize;
  T* own = static_cast<T*>(problem.sums) + id * stride + vector * kSize;
  const Vec<T, kSize> before = load_streaming<T, kSize>(own);
  float sum[kSize] = {};
  for (int64_t first = begin; first < problem.num_rows; first += kAhead) {
    Vec<T, kSize> loaded[kAhead];
    bool same[kAhead];
#pragma unroll
    for (int ahead = 0; ahead < kAhead; ++ahead) {
      const int64_t at = min(first + ahead, problem.num_rows - 1);
      same[ahead] = first + ahead < problem.num_rows && problem.ids[at] == id;
      if (same[ahead]) {
        loaded[ahead] = load_streaming<T, kSize>(rows + problem.order[at] * stride);
      }
    }
#pragma unroll
    for (int ahead = 0; ahead < kAhead; ++ahead) {
      if (same[ahead]) {
#pragma unroll
        for (int element = 0; element < kSize; ++element) {
          sum[element] += to_float(loaded[ahead].data[element]);
        }
      }
    }
    if (!same[kAhead - 1]) {
      break;
    }
  }
  Vec<T, kSize> after;
#pragma unroll
  for (int element = 0; element < kSize; ++element) {
    after.data[element] = from_float<T>(to_float(before.data[element]) + sum[element]);
  }
  store_vector(own, after);
}

template <typename T>
void add_rows(const CudaScope& scope, RowSums problem, int64_t columns) {
  const auto launch = [&](auto size) {
    constexpr int kSize = decltype(size)::value;
    problem.vectors = columns / kSize;
    const dim3 grid(static_cast<unsigned>(problem.num_rows),
                    static_cast<unsigned>((problem.vectors + kThreads - 1) / kThreads));
    add_rows_kernel<T, kSize><<<grid, kThreads, 0, scope.stream()>>>(problem);
    check_cuda(cudaGetLastError(), "add_rows_kernel");
  };
  const bool aligned = reinterpret_cast<uintptr_t>(problem.sums) % 16 == 0 &&
                       reinterpret_cast<uintptr_t>(problem.rows) % 16 == 0;
  aligned&& columns % kVectorSize<T> == 0 ? launch(std::integral_constant<int, kVectorSize<T>>())
                                          : launch(std::integral_constant<int, 1>());
}

void add_rows_cuda(Tensor sums, const Tensor& rows, const Tensor& ids, const Tensor& order,
                   int64_t skipped) {
  check_added_rows(sums, rows, ids, order);
  const int64_t columns = sums.size(1);
  if (rows.size(0) > INT32_MAX || columns > int64_t{kThreads} * 65535) {
    fail("add_rows_", "rows", "at most 2147483647 rows of 16776960", shape_text(rows));
  }
  if (rows.numel() == 0) {
    return;
  }
  const CudaScope scope(sums);
  const RowSums problem{sums.mutable_data_ptr(),
                        rows.const_data_ptr(),
                        static_cast<const int64_t*>(ids.const_data_ptr()),
                        static_cast<const int64_t*>(order.const_data_ptr()),
                        rows.size(0),
                        sums.size(0),
                        0,
                        skipped};
  switch (dtype_of(sums)) {
    case Dtype::kFloat32:
      return add_rows<float>(scope, problem, columns);
    case Dtype::kBfloat16:
      return add_rows<Bf16>(scope, problem, columns);
    case Dtype::kFloat16:
      return add_rows<Fp16>(scope, problem, columns);
  }
}

}  // namespace

}  // namespace graft_kernels::loss

GRAFT_OPS_IMPL(CUDA, ops) { ops.impl("add_rows_", TORCH_BOX(&graft_kernels::loss::add_rows_cuda)); }
