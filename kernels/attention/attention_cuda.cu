// Attention on CUDA: picks the kernel by dtype, head size and alignment, divides the keys so that the
// device is filled, and launches kernel and merge on the current stream.

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>

#include "kernels/attention/attention_append_kernel.cuh"
#include "kernels/attention/attention_append_ops.h"
#include "kernels/attention/attention_decode_kernel.cuh"
#include "kernels/attention/attention_decode_sm90.h"
#include "kernels/attention/attention_plain_kernel.cuh"
#include "kernels/attention/sm90_attention.h"
#include "kernels/common/cuda_launch.h"

namespace graft_kernels::attention {

namespace {

// A part of fewer keys costs more to merge than it saves.
constexpr int64_t kLeastTilesPerSplit = 4;
// What a block of threads, the merge and each part in it cost, in tiles of a processor.
constexpr int64_t kBlockCostTiles = 4;
constexpr int64_t kMergeCostTiles = 10;
constexpr int64_t kSplitsPerTile = 4;

using Kernel = void (*)(DecodeProblem);

struct Choice {
  Kernel kernel;
  int threads;
  int shared_bytes;
  int blocks_per_processor;  // resident together
};

// Blocks of `kernel` that one processor of the current device holds; 0 where its shared memory does
// not suffice. Asked once per device.
template <typename Ask>
int remember_per_device(std::array<std::atomic<int>, 64>& known, const Ask& ask) {
  int device = 0;
  check_cuda(cudaGetDevice(&device), "cudaGetDevice");
  std::atomic<int>& slot = known[static_cast<size_t>(device) % known.size()];
  int value = slot.load(std::memory_order_acquire);
  if (value == 0) {
    value = ask(device) + 1;
    slot.store(value, std::memory_order_release);
  }
  return value - 1;
}

template <typename T, int kD, bool kPaged>
Choice mma_choice() {
  static std::array<std::atomic<int>, 64> known;
  constexpr int kBytes = DecodeLayout<kD>::kBytes;
  const Kernel kernel = attention_decode_mma_kernel<T, kD, kPaged>;
  const int blocks = remember_per_device(known, [&](int device) {
    int most = 0, count = 0;
    check_cuda(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
               "cudaDeviceGetAttribute");
    if (kBytes + 1024 > most) {
      return 0;
    }
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes),
               "cudaFuncSetAttribute");
    check_cuda(
        cudaOccupancyMaxActiveBlocksPerMultiprocessor(&count, kernel, kDecodeThreads, kBytes),
        "cudaOccupancyMaxActiveBlocksPerMultiprocessor");
    return count;
  });
  return {kernel, kDecodeThreads, kBytes, blocks};
}

template <typename T, bool kPaged>
Choice mma_choice(int64_t head_dim) {
  if (head_dim <= 64) {
    return mma_choice<T, 64, kPaged>();
  }
  if (head_dim <= 96) {
    return mma_choice<T, 96, kPaged>();
  }
  if (head_dim <= 128) {
    return mma_choice<T, 128, kPaged>();
  }
  return head_dim <= 192 ? mma_choice<T, 192, kPaged>() : mma_choice<T, 256, kPaged>();
}

bool is_whole_vectors(const void* pointer, const int64_t (&stride)[3]) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0 && stride[0] % 8 == 0 &&
         stride[1] % 8 == 0 && stride[2] % 8 == 0;
}

template <typename T, bool kPaged>
Choice choose(const DecodeProblem& problem) {
  const Problem& base = problem.base;
  if constexpr (sizeof(T) == 2) {
    const bool fits = base.head_dim % 8 == 0 && is_whole_vectors(base.query, base.query_stride) &&
                      is_whole_vectors(base.key, base.key_stride) &&
                      is_whole_vectors(base.value, base.value_stride) &&
                      is_whole_vectors(base.out, base.out_stride);
    if (fits) {
      const Choice choice = mma_choice<T, kPaged>(base.head_dim);
      if (choice.blocks_per_processor > 0) {
        return choice;
      }
    }
  }
  return {attention_decode_plain_kernel<T, kPaged>, kPlainThreads, 0, 8};
}

// Parts for which the processor with most blocks has least to do. Depends on shapes and device alone.
int choose_splits(const DecodeProblem& problem, int64_t processors) {
  const int64_t blocks = problem.base.blocks();
  const int64_t tiles = (problem.base.keys + kTileKeys - 1) / kTileKeys;
  const int64_t most = std::min<int64_t>(kMaxSplits, tiles / kLeastTilesPerSplit);
  int64_t best = 1, best_cost = INT64_MAX;
  for (int64_t splits = 1; splits <= std::max<int64_t>(most, 1); ++splits) {
    const int64_t together = (blocks * splits + processors - 1) / processors;
    const int64_t merge = splits > 1 ? kMergeCostTiles + splits / kSplitsPerTile : 0;
    const int64_t cost = together * ((tiles + splits - 1) / splits + kBlockCostTiles) + merge;
    if (cost < best_cost) {
      best = splits;
      best_cost = cost;
    }
  }
  return static_cast<int>(best);
}

template <typename T>
void launch_merge(const DecodeProblem& problem, const CudaScope& scope) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(
      static_cast<unsigned>(problem.base.batch * problem.base.key_heads * problem.base.rows()));
  config.blockDim = dim3(kPlainThreads);
  config.stream = scope.stream();
  // The merge is brought onto the device while the parts are still worked on.
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &attribute;
  config.numAttrs = scope.attribute(cudaDevAttrComputeCapabilityMajor) >= 9 ? 1 : 0;
  check_cuda(cudaLaunchKernelEx(&config, attention_decode_merge_kernel<T>, problem),
             "attention_decode_merge_kernel");
}

// Stores the new tokens and turns the queries, which the problem then reads from the returned memory.
template <typename T>
Tensor append_first(DecodeProblem& problem, const Tensor& query, const CudaScope& scope) {
  Problem& base = problem.base;
  const int64_t heads = base.key_heads * (base.groups + 2);
  Tensor turned = torch::stable::new_empty(query, query.sizes());
  T* queries = static_cast<T*>(turned.mutable_data_ptr());
  const auto kernel = problem.table == nullptr ? attention_append_kernel<T, false>
                                               : attention_append_kernel<T, true>;
  launch_overlapping(scope, kernel, static_cast<unsigned>(base.batch * base.queries * heads),
                     kAppendThreads, 0, problem, queries);
  base.query = queries;
  for (int dim = 0; dim < 3; ++dim) {
    base.query_stride[dim] = turned.stride(dim);
  }
  return turned;
}

template <typename T>
void run_dtype(DecodeProblem& problem, const Tensor& query, const CudaScope& scope) {
  Tensor turned;
  if (problem.append.key != nullptr) {
    turned = append_first<T>(problem, query, scope);
  }
  const Choice choice =
      problem.table == nullptr ? choose<T, false>(problem) : choose<T, true>(problem);
  if (problem.splits == 0) {
    problem.splits = choose_splits(problem, scope.attribute(cudaDevAttrMultiProcessorCount));
  }
  Tensor parts;
  if (problem.splits > 1) {
    parts = torch::stable::new_empty(query, {problem.part_floats()}, ScalarType::Float);
    problem.parts = static_cast<float*>(parts.mutable_data_ptr());
  }
  const int64_t blocks = problem.base.blocks() * problem.splits;
  if (blocks > INT32_MAX) {
    fail("attention", "query", "at most 2^31 blocks of 16 rows", std::to_string(blocks));
  }
  launch_overlapping(scope, choice.kernel, static_cast<unsigned>(blocks),
                     static_cast<unsigned>(choice.threads),
                     static_cast<size_t>(choice.shared_bytes), problem);
  if (problem.splits > 1) {
    launch_merge<T>(problem, scope);
  }
}

void run_few_queries_sm90(DecodeProblem& problem, const Tensor& query, const CudaScope& scope) {
  const DecodeShape shape =
      choose_decode_shape(problem, scope.attribute(cudaDevAttrMultiProcessorCount),
                          scope.attribute(cudaDevAttrL2CacheSize));
  problem.splits = shape.splits;
  Tensor parts;
  if (problem.splits > 1) {
    parts =
        torch::stable::new_empty(query, {decode_part_floats(problem, shape)}, ScalarType::Float);
    problem.parts = static_cast<float*>(parts.mutable_data_ptr());
  }
  run_decode_sm90(problem, shape, scope.may_overlap(), scope.stream());
}

void run_cuda(DecodeProblem problem, const Tensor& query) {
  if (problem.base.blocks() == 0 || problem.base.head_dim == 0) {
    return;
  }
  const CudaScope scope(query);
  const int capability = scope.attribute(cudaDevAttrComputeCapabilityMajor) * 10 +
                         scope.attribute(cudaDevAttrComputeCapabilityMinor);
  if (problem.append.key == nullptr && *why_not_sm90(problem, capability) == '\0') {
    const Sm90Device device{scope.attribute(cudaDevAttrMultiProcessorCount),
                            scope.attribute(cudaDevAttrL2CacheSize), scope.stream()};
    const Tensor taken = torch::stable::new_empty(query, {1}, ScalarType::Int);
    return run_sm90(problem, device, static_cast<int*>(taken.mutable_data_ptr()));
  }
  if (*why_not_decode_sm90(problem, capability) == '\0') {
    return run_few_queries_sm90(problem, query, scope);
  }
  switch (problem.base.dtype) {
    case Dtype::kFloat32:
      return run_dtype<float>(problem, query, scope);
    case Dtype::kBfloat16:
      return run_dtype<Bf16>(problem, query, scope);
    case Dtype::kFloat16:
      return run_dtype<Fp16>(problem, query, scope);
  }
}

void attention_out(Tensor out, const Tensor& query, const Tensor& key, const Tensor& value,
                   const std::optional<Tensor>& mask, double scale, double softcap, bool causal) {
  const std::optional<Tensor> none;
  run_cuda(check_decode("attention_out", {out, query, key, value, mask, scale, softcap, causal},
                        {none, none, none, none, 0, 0}),
           query);
}

Tensor attention(const Tensor& query, const Tensor& key, const Tensor& value,
                 const std::optional<Tensor>& mask, double scale, double softcap, bool causal) {
  Tensor out = torch::stable::new_empty(query, query.sizes());
  const std::optional<Tensor> none;
  run_cuda(check_decode("attention", {out, query, key, value, mask, scale, softcap, causal},
                        {none, none, none, none, 0, 0}),
           query);
  return out;
}

using CudaCacheOps = CacheOps<&run_cuda>;

}  // namespace

}  // namespace graft_kernels::attention

GRAFT_OPS_IMPL(CUDA, ops) {
  graft_kernels::attention::CudaCacheOps::implement(ops);
  ops.impl("attention_out", TORCH_BOX(&graft_kernels::attention::attention_out));
  ops.impl("attention", TORCH_BOX(&graft_kernels::attention::attention));
}
