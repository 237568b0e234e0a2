// The linear layer on packed weights, on CUDA. Few rows of x: unpacked in registers, bound by reading the
// packed weight once; up to four of them by one kernel on Hopper. Many rows: panels of the weight are unpacked to x's dtype for ATen's product.

#include <algorithm>
#include <cstddef>
#include <optional>
#include <type_traits>

#include "kernels/common/aten.h"
#include "kernels/common/cuda_launch.h"
#include "kernels/linear/packed_kernel.cuh"
#include "kernels/linear/packed_ops.h"
#include "kernels/linear/packed_ring_kernel.cuh"

namespace graft_kernels::linear {

namespace {

// Elements of weight that are unpacked at a time.
constexpr int64_t kPanelElements = int64_t{1} << 27;

template <typename Body>
void with_type(Dtype dtype, const Body& body) {
  switch (dtype) {
    case Dtype::kFloat32:
      return body(float{});
    case Dtype::kBfloat16:
      return body(Bf16{});
    case Dtype::kFloat16:
      return body(Fp16{});
  }
}

// Calls body with the index of `format` as a constant. Q5_0 and Q8_0 are laid out alike.
template <int kIndex = 0, typename Body>
void with_format(const PackedFormat& format, const Body& body) {
  if constexpr (kIndex < static_cast<int>(std::size(kPackedFormats))) {
    constexpr bool kIsQ50 = kPackedFormats[kIndex].type == 6;
    if constexpr (!kIsQ50) {
      const bool serves_q50 = kPackedFormats[kIndex].type == 8 && format.type == 6;
      if (kPackedFormats[kIndex].type == format.type || serves_q50) {
        return body(std::integral_constant<int, kIndex>());
      }
    }
    with_format<kIndex + 1>(format, body);
  }
}

// Memory that a kernel fills for the next: x as bytes with scales, or as float32.
struct Prepared {
  Tensor codes, scales, values;
};

Prepared prepare(const CudaScope& scope, const Tensor& x, bool round_x,
                 PackedCudaProblem& problem) {
  const int64_t depth = x.size(1), blocks = x.size(0) * problem.chunks;
  Prepared prepared;
  if (round_x) {
    prepared.codes = new_tensor(x, {x.size(0) * depth}, ScalarType::Char);
    prepared.scales = new_tensor(x, {blocks}, ScalarType::Float);
    problem.codes = static_cast<const int8_t*>(prepared.codes.const_data_ptr());
    problem.scales = static_cast<const float*>(prepared.scales.const_data_ptr());
  } else {
    prepared.values = new_tensor(x, {x.size(0) * depth}, ScalarType::Float);
    problem.values = static_cast<const float*>(prepared.values.const_data_ptr());
  }
  constexpr unsigned kThreads = 256;
  const auto grid = static_cast<unsigned>((blocks * 32 + kThreads - 1) / kThreads);
  with_type(problem.dtype, [&](auto type) {
    using T = decltype(type);
    launch_overlapping(scope, prepare_kernel<T>, grid, kThreads, 0,
                       static_cast<const T*>(x.const_data_ptr()), x.stride(0),
                       static_cast<int>(depth), blocks, const_cast<int8_t*>(problem.codes),
                       const_cast<float*>(problem.scales), const_cast<float*>(problem.values));
  });
  return prepared;
}

template <int kFormat, bool kRounded>
void launch_few_rows(const CudaScope& scope, const PackedCudaProblem& problem) {
  const auto kernel = kRounded && problem.rows == 1 ? packed_kernel<kFormat, true, 1>
                                                    : packed_kernel<kFormat, kRounded, kPassRows>;
  launch_reading_ahead(scope, kernel,
                       static_cast<unsigned>((problem.columns + kPackedRows - 1) / kPackedRows),
                       kPackedThreads, 0, problem);
}

// Whether one kernel rounds x and multiplies.
bool takes_ring(const CudaScope& scope, const Tensor& x, bool round_x) {
  const int64_t row_bytes = x.stride(0) * static_cast<int64_t>(x.element_size());
  return scope.is_hopper() && round_x && x.size(0) <= kPassRows && x.numel() <= kMostRounded &&
         reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 16 == 0 &&
         (x.size(0) == 1 || row_bytes % 16 == 0);
}

template <int kFormat, int kRows>
void launch_ring(const CudaScope& scope, const PackedCudaProblem& problem) {
  constexpr auto kKernel = packed_ring_kernel<kFormat, kRows>;
  allow_shared<kKernel>(scope, packed_ring_shared(1, kMostRounded / kPackedColumns));
  const int groups = (problem.columns + kPackedRows - 1) / kPackedRows;
  const int processors = scope.attribute(cudaDevAttrMultiProcessorCount);
  launch_reading_ahead(
      scope, kKernel, static_cast<unsigned>(std::min(groups, processors)), kPackedRingThreads,
      static_cast<size_t>(packed_ring_shared(problem.rows, problem.chunks)), problem);
}

// Where a kernel before prepares x, it does so once for all parts.
void run_few_rows(const CudaScope& scope, const Tensor& matrix, const Tensor& x,
                  const std::vector<PackedPart>& parts, bool round_x) {
  PackedCudaProblem problem;
  problem.dtype = dtype_of(x);
  problem.rows = static_cast<int>(x.size(0));
  problem.chunks = static_cast<int>(x.size(1) / kPackedColumns);
  problem.out_stride = matrix.size(1);
  const bool in_one = takes_ring(scope, x, round_x);
  problem.x = x.const_data_ptr();
  problem.x_stride = x.stride(0);
  const std::optional<Prepared> prepared =
      in_one ? std::nullopt : std::optional(prepare(scope, x, round_x, problem));
  auto* out = static_cast<std::byte*>(matrix.mutable_data_ptr());
  for (const PackedPart& part : parts) {
    if (part.rows == 0) {
      continue;
    }
    problem.columns = static_cast<int>(part.rows);
    problem.packed = static_cast<const uint8_t*>(part.packed.const_data_ptr());
    problem.bias = part.bias ? part.bias->const_data_ptr() : nullptr;
    problem.out = out;
    with_format(*find_packed_format(part.type), [&](auto index) {
      constexpr int kFormat = decltype(index)::value;
      if (in_one) {
        return x.size(0) == 1 ? launch_ring<kFormat, 1>(scope, problem)
                              : launch_ring<kFormat, kPassRows>(scope, problem);
      }
      round_x ? launch_few_rows<kFormat, true>(scope, problem)
              : launch_few_rows<kFormat, false>(scope, problem);
    });
    out += part.rows * matrix.element_size();
  }
}

// Writes columns [first_column, first_column + part.rows) of `matrix`.
void run_many_rows(const CudaScope& scope, Tensor& matrix, int64_t first_column, const Tensor& x,
                   const PackedPart& part) {
  const PackedFormat& format = *find_packed_format(part.type);
  const int64_t depth = x.size(1), columns = part.rows;
  const int64_t chunks = depth / kPackedColumns;
  const int64_t panel_rows =
      std::max(kPanelElements / depth / kPackedRows, int64_t{1}) * kPackedRows;
  const Tensor panel = new_tensor(x, {std::min(panel_rows, columns), depth});
  const auto* bytes = static_cast<const uint8_t*>(part.packed.const_data_ptr());
  for (int64_t begin = 0; begin < columns; begin += panel_rows) {
    const int64_t count = std::min(panel_rows, columns - begin);
    const uint8_t* from = bytes + begin / kPackedRows * chunks * format.chunk_bytes();
    with_format(format, [&](auto index) {
      with_type(dtype_of(x), [&](auto type) {
        using T = decltype(type);
        unpack_kernel<decltype(index)::value, T>
            <<<static_cast<unsigned>((count + kPackedRows - 1) / kPackedRows), kPackedThreads, 0,
               scope.stream()>>>(from, static_cast<int>(chunks), count,
                                 static_cast<T*>(panel.mutable_data_ptr()));
        check_cuda(cudaGetLastError(), "unpack_kernel");
      });
    });
    Tensor weight = panel, target = torch::stable::narrow(matrix, 1, first_column + begin, count);
    std::optional<Tensor> bias;
    if (part.bias) {
      Tensor whole = *part.bias;
      bias = torch::stable::narrow(whole, 0, begin, count);
    }
    torch::stable::copy_(target, aten_linear(x, torch::stable::narrow(weight, 0, 0, count), bias));
  }
}

void run_cuda(const char*, Tensor& out, const Tensor& x, const std::vector<PackedPart>& parts,
              bool round_x) {
  const CudaScope scope(x);
  const Tensor rows = torch::stable::reshape(x, {count_rows(x), x.size(x.dim() - 1)});
  Tensor matrix = torch::stable::view(out, {rows.size(0), out.size(out.dim() - 1)});
  const bool aligned = std::all_of(parts.begin(), parts.end(), [](const PackedPart& part) {
    return reinterpret_cast<uintptr_t>(read_pointer(part.packed)) % 16 == 0;
  });
  if (rows.size(0) <= kMaxPackedRows && aligned) {
    return run_few_rows(scope, matrix, rows, parts, round_x);
  }
  int64_t column = 0;
  for (const PackedPart& part : parts) {
    run_many_rows(scope, matrix, column, rows, part);
    column += part.rows;
  }
}

}  // namespace

using PackedCudaOps = PackedOps<&run_cuda>;

}  // namespace graft_kernels::linear

GRAFT_OPS_IMPL(CUDA, ops) { graft_kernels::linear::PackedCudaOps::implement(ops); }
