// Cross-entropy on CUDA: launches the row kernel on the current stream of the logits' device; the
// linear forms put it between cuBLAS products, one chunk of tokens after the other.

#include <algorithm>
#include <cstdint>

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cuda.h>

#include "kernels/common/cuda_launch.h"
#include "kernels/loss/loss_aten.h"
#include "kernels/loss/loss_ops.h"
#include "kernels/loss/loss_ring_kernel.cuh"

namespace graft_kernels::loss {

namespace {

// Bytes of logits that exist at a time.
constexpr int64_t kChunkBytes = int64_t{1} << 30;
// Shared memory that the kernel's own sums take, and the runtime's share.
constexpr int kReservedShared = 2048;
constexpr int64_t kMaxGrid = 0x7fffffff;

bool is_aligned(const void* pointer, const RowLayout& rows, int64_t element_bytes) {
  bool aligned = reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
  for (int dim = 0; dim < rows.num_dims; ++dim) {
    aligned = aligned && (rows.stride[dim] * element_bytes) % 16 == 0;
  }
  return aligned;
}

// Several turns of kUnroll vectors per thread: many small blocks on a processor hide each other's
// sums. A row that fills the shared memory has its processor alone and takes all threads.
int threads_for(int64_t vectors, bool is_cached) {
  constexpr int64_t kTurns = 4, kSharedThreads = 512;
  const int64_t wanted = (vectors + kUnroll * kTurns - 1) / (kUnroll * kTurns);
  const int64_t most = is_cached ? kMaxThreads : kSharedThreads;
  return static_cast<int>(std::clamp<int64_t>((wanted + kWarp - 1) / kWarp * kWarp, kWarp, most));
}

template <typename T, int kSize, Mode kMode>
void launch(const Problem& problem, const CudaScope& scope) {
  const auto kernel = cross_entropy_kernel<T, kSize, kMode>;
  const int64_t vectors = problem.columns / kSize;
  const int vector_bytes = static_cast<int>(sizeof(T)) * kSize;
  int cached = 0;
  if (kMode == Mode::kTrain && kSize > 1) {
    const int most = scope.attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin) - kReservedShared;
    cached = static_cast<int>(std::min<int64_t>(vectors, most / vector_bytes));
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most),
               "cudaFuncSetAttribute");
  }
  kernel<<<static_cast<unsigned>(problem.rows), threads_for(vectors, cached > 0),
           static_cast<size_t>(cached) * vector_bytes, scope.stream()>>>(problem, cached);
  check_cuda(cudaGetLastError(), "cross_entropy_kernel");
}

// Shorter rows are left to blocks of their own.
constexpr int64_t kLeastRingBytes = 70 * 1024;

// The smallest cluster whose blocks keep a row of so many vectors and have room for the next, or 0.
int cluster_for(int64_t vectors) {
  constexpr int64_t kMost = int64_t{kMaxSharePlaces} * kPlaceBytes / 16;
  int cluster = 1;
  while (cluster <= kMaxCluster && (vectors + cluster - 1) / cluster > kMost) {
    cluster *= 2;
  }
  return cluster > kMaxCluster ? 0 : cluster;
}

// Long rows that train, on Hopper. Returns false where it is not for the call.
template <typename T, int kSize>
bool launch_ring(const Problem& problem, const CudaScope& scope) {
  const int64_t vectors = problem.columns / kSize;
  const int cluster = cluster_for(vectors);
  if (vectors * 16 < kLeastRingBytes || cluster == 0 ||
      scope.attribute(cudaDevAttrComputeCapabilityMajor) != 9) {
    return false;
  }
  const auto kernel = cross_entropy_ring_kernel<T, kSize>;
  constexpr int kBytes = kPlaces * kPlaceBytes;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
             "cudaFuncSetAttribute");
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(cluster));
  config.blockDim = dim3(kRingThreads + kWarp);
  config.dynamicSmemBytes = kBytes;
  config.stream = scope.stream();
  config.attrs = &attribute;
  config.numAttrs = 1;
  // No more clusters than run at once: one that waits for the others takes as long again.
  int clusters = 0;
  check_cuda(cudaOccupancyMaxActiveClusters(&clusters, kernel, &config),
             "cudaOccupancyMaxActiveClusters");
  if (clusters < 1) {
    return false;
  }
  config.gridDim = dim3(static_cast<unsigned>(std::min<int64_t>(clusters, problem.rows) * cluster));
  check_cuda(cudaLaunchKernelEx(&config, kernel, problem, cluster), "cross_entropy_ring_kernel");
  return true;
}

template <typename T, int kSize>
void launch_mode(const Problem& problem, const CudaScope& scope) {
  switch (problem.mode) {
    case Mode::kForward:
      return launch<T, kSize, Mode::kForward>(problem, scope);
    case Mode::kBackward:
      return launch<T, kSize, Mode::kBackward>(problem, scope);
    case Mode::kTrain:
      if constexpr (kSize > 1) {
        if (launch_ring<T, kSize>(problem, scope)) {
          return;
        }
      }
      return launch<T, kSize, Mode::kTrain>(problem, scope);
  }
}

template <typename T>
void launch_dtype(const Problem& problem, const CudaScope& scope) {
  const int64_t bytes = bytes_of(problem.dtype);
  const bool aligned =
      is_aligned(problem.logits, problem.logits_rows, bytes) &&
      (problem.grad == nullptr || is_aligned(problem.grad, problem.grad_rows, bytes));
  aligned ? launch_mode<T, kVectorSize<T>>(problem, scope) : launch_mode<T, 1>(problem, scope);
}

void compute_rows(const Problem& problem, const CudaScope& scope) {
  switch (problem.dtype) {
    case Dtype::kFloat32:
      return launch_dtype<float>(problem, scope);
    case Dtype::kBfloat16:
      return launch_dtype<Bf16>(problem, scope);
    case Dtype::kFloat16:
      return launch_dtype<Fp16>(problem, scope);
  }
}

void rows_cuda(const Problem& problem, const Tensor& logits) {
  if (problem.rows == 0) {
    return;
  }
  if (problem.rows > kMaxGrid) {
    fail("cross_entropy", "logits", "at most 2147483647 rows", std::to_string(problem.rows));
  }
  compute_rows(problem, CudaScope(logits));
}

// out = start + a b
void add_product(Tensor& out, const Tensor& start, const Tensor& a, const Tensor& b) {
  TORCH_ERROR_CODE_CHECK(
      aoti_torch_cuda_addmm_out(out.get(), start.get(), a.get(), b.get(), 1.0, 1.0));
}

void zero_gradients(LinearProblem& linear, std::optional<Tensor>& bias_sum) {
  if (linear.grad_bias) {
    bias_sum = torch::stable::new_zeros(linear.hidden, {linear.rows.columns}, ScalarType::Float);
  }
  if (linear.rows.rows == 0 && linear.grad_weight) {
    torch::stable::zero_(*linear.grad_weight);
  }
}

// One chunk's share of the gradients, from the gradient of its logits. The weight's is added to in
// the order of the chunks, in cuBLAS' float32, and rounded once per chunk.
void spread_gradient(LinearProblem& linear, const Tensor& gradient, const Tensor& hidden,
                     int64_t begin, std::optional<Tensor>& bias_sum) {
  Tensor own = rows_of(*linear.grad_hidden, begin, hidden.size(0));
  aten_product(own, gradient, linear.weight);
  if (linear.grad_weight) {
    Tensor& sum = *linear.grad_weight;
    begin == 0 ? aten_product(sum, transposed(gradient), hidden)
               : add_product(sum, sum, transposed(gradient), hidden);
  }
  if (bias_sum) {
    torch::stable::copy_(*bias_sum,
                         torch::stable::subtract(*bias_sum, column_sums(gradient), -1.0));
  }
}

void linear_cuda(LinearProblem& linear) {
  std::optional<Tensor> bias_sum;
  const CudaScope scope(linear.hidden);
  zero_gradients(linear, bias_sum);
  // Rows of logits begin at whole vectors, whatever the number of columns.
  const int64_t columns = linear.rows.columns, pitch = (columns + 7) / 8 * 8;
  const int64_t step = chunk_rows_for(linear, kChunkBytes, pitch * bytes_of(linear.rows.dtype));
  Tensor buffer = torch::stable::new_empty(linear.hidden, {step, pitch});
  for (int64_t begin = 0; begin < linear.rows.rows; begin += step) {
    const int64_t count = std::min(step, linear.rows.rows - begin);
    Tensor whole = rows_of(buffer, 0, count);
    Tensor logits = torch::stable::narrow(whole, 1, 0, columns);
    const Tensor hidden = rows_of(linear.hidden, begin, count);
    if (linear.bias) {
      add_product(logits, *linear.bias, hidden, transposed(linear.weight));
    } else {
      aten_product(logits, hidden, transposed(linear.weight));
    }
    Problem chunk = chunk_of(linear, begin, count);
    chunk.logits = chunk.grad = logits.mutable_data_ptr();
    chunk.logits_rows = chunk.grad_rows = row_layout("linear_cross_entropy", {"logits", logits});
    compute_rows(chunk, scope);
    if (chunk.mode != Mode::kForward) {
      spread_gradient(linear, logits, hidden, begin, bias_sum);
    }
  }
  if (bias_sum) {
    torch::stable::copy_(*linear.grad_bias, *bias_sum);
  }
}

}  // namespace

using CudaOps = Ops<&rows_cuda, &linear_cuda>;

}  // namespace graft_kernels::loss

GRAFT_OPS_IMPL(CUDA, ops) { graft_kernels::loss::CudaOps::implement(ops); }
