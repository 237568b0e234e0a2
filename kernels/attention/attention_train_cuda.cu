// Attention for training on CUDA: picks the kernels by dtype, head size and device.

#include <algorithm>
#include <cstdint>

#include "kernels/attention/attention_grad_kernel.cuh"
#include "kernels/attention/attention_train_cuda.h"
#include "kernels/attention/attention_train_kernel.cuh"
#include "kernels/attention/attention_train_ops.h"
#include "kernels/attention/sm90_attention.h"
#include "kernels/attention/sm90_attention_backward.h"
#include "kernels/common/cuda_launch.h"

namespace graft_kernels::attention {

namespace {

using TrainKernel = void (*)(TrainProblem, Packing, bool);

struct Call {
  const TrainProblem& problem;
  const Packing& packing;
  const CudaScope& scope;
};

bool is_whole_vectors(const void* pointer, const int64_t (&stride)[3]) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0 && stride[0] % 8 == 0 &&
         stride[1] % 8 == 0 && stride[2] % 8 == 0;
}

// What is read can be read in 16 bytes.
bool has_whole_vectors(const TrainProblem& problem) {
  const Problem& base = problem.base;
  return base.head_dim % 8 == 0 && is_whole_vectors(base.query, base.query_stride) &&
         is_whole_vectors(base.key, base.key_stride) &&
         is_whole_vectors(base.value, base.value_stride) &&
         (!problem.backward || is_whole_vectors(problem.grad_out, problem.grad_out_stride));
}

// Blocks of threads for tiles of `rows` queries (of keys) of `heads` heads; when packed, as many as any
// division into sequences may need.
unsigned count_blocks(const Call& call, int64_t length, int64_t heads, int64_t rows) {
  const int64_t tiles = call.packing.queries == nullptr ? (length + rows - 1) / rows
                                                        : length / rows + call.packing.sequences;
  const int64_t blocks = call.problem.base.batch * heads * tiles;
  if (blocks > INT32_MAX) {
    fail("attention", "query", "at most 2^31 tiles of queries and of keys", std::to_string(blocks));
  }
  return static_cast<unsigned>(blocks);
}

void launch(const Call& call, TrainKernel kernel, unsigned blocks, int shared_bytes,
            const char* name) {
  if (blocks == 0) {
    return;
  }
  check_cuda(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes),
      "cudaFuncSetAttribute");
  kernel<<<blocks, kTileThreads, shared_bytes, call.scope.stream()>>>(
      call.problem, call.packing, has_whole_vectors(call.problem));
  check_cuda(cudaGetLastError(), name);
}

template <typename Tile>
void run_tile(const Call& call) {
  using L = TrainLayout<Tile>;
  const Problem& base = call.problem.base;
  const int64_t heads = base.key_heads * base.groups;
  const unsigned query_blocks = count_blocks(call, base.queries, heads, Tile::kRows);
  if (!call.problem.backward) {
    return launch(call, attention_train_forward_kernel<Tile>, query_blocks, L::kForwardBytes,
                  "attention_train_forward_kernel");
  }
  const int64_t rows = base.batch * heads * base.queries;
  constexpr int64_t kRowsPerBlock = kTileThreads / 32;
  if (rows > 0) {
    attention_delta_kernel<typename Tile::T>
        <<<static_cast<unsigned>((rows + kRowsPerBlock - 1) / kRowsPerBlock), kTileThreads, 0,
           call.scope.stream()>>>(call.problem);
    check_cuda(cudaGetLastError(), "attention_delta_kernel");
  }
  launch(call, attention_grad_queries_kernel<Tile>, query_blocks, L::kBackwardBytes,
         "attention_grad_queries_kernel");
  launch(call, attention_grad_keys_kernel<Tile>,
         count_blocks(call, base.keys, base.key_heads, Tile::kRows), L::kBackwardBytes,
         "attention_grad_keys_kernel");
}

// Tensor cores where the device's shared memory holds their tiles.
template <typename T, int kD>
void run_size(const Call& call) {
  if constexpr (sizeof(T) == 2) {
    constexpr int kMargin = 2048;  // what the kernels hold beside
    if (TrainLayout<MmaTile<T, kD>>::kBackwardBytes + kMargin <=
        call.scope.attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin)) {
      return run_tile<MmaTile<T, kD>>(call);
    }
    if constexpr (kD < 256) {
      fail("attention", "query", "a device with 100 KiB of shared memory for a block", "less");
    }
  }
  if constexpr (sizeof(T) == 4 || kD == 256) {
    run_tile<FmaTile<T, kD>>(call);
  }
}

template <typename T>
void run_dtype(const Call& call) {
  const int64_t head_dim = call.problem.base.head_dim;
  if (head_dim <= 64) {
    return run_size<T, 64>(call);
  }
  head_dim <= 128 ? run_size<T, 128>(call) : run_size<T, 256>(call);
}

int capability_of(const CudaScope& scope) {
  return scope.attribute(cudaDevAttrComputeCapabilityMajor) * 10 +
         scope.attribute(cudaDevAttrComputeCapabilityMinor);
}

// The Hopper kernels for gradients, where they compute these.
bool run_backward_sm90(const Call& call, const Tensor& like) {
  const TrainProblem& problem = call.problem;
  if (!problem.backward || *why_not_sm90_backward(problem, capability_of(call.scope)) != '\0') {
    return false;
  }
  BackwardCall backward = sm90_backward_call(problem, call.packing,
                                             call.scope.attribute(cudaDevAttrMultiProcessorCount));
  const auto room = [&](int64_t count, ScalarType dtype) {
    return torch::stable::new_empty(like, {count}, dtype);
  };
  const int64_t rows = backward.tiles() * backward_query_tile(problem.base.head_dim);
  const Tensor statistics = room(2 * rows, ScalarType::Float);
  const Tensor sums = room(rows * problem.base.head_dim, ScalarType::Float);
  const Tensor turns = room(problem.deterministic ? 2 * backward.tiles() : 0, ScalarType::Int);
  backward.lse = static_cast<float*>(statistics.mutable_data_ptr());
  backward.delta = backward.lse + rows;
  backward.query_sums = static_cast<float*>(sums.mutable_data_ptr());
  if (problem.deterministic) {
    backward.turns = static_cast<int32_t*>(turns.mutable_data_ptr());
  }
  run_sm90_backward(backward, call.scope.stream());
  return true;
}

// The Hopper kernel for prompts, where it computes this forward pass.
bool run_forward_sm90(const Call& call, const Tensor& like) {
  const TrainProblem& problem = call.problem;
  DecodeProblem decode;
  decode.base = problem.base;
  decode.sinks = problem.sinks;
  decode.window = static_cast<int32_t>(problem.window);
  decode.lse = problem.lse;
  if (problem.backward || problem.base.blocks() == 0 ||
      *why_not_sm90(decode, capability_of(call.scope)) != '\0') {
    return false;
  }
  const Sm90Device device{call.scope.attribute(cudaDevAttrMultiProcessorCount),
                          call.scope.attribute(cudaDevAttrL2CacheSize), call.scope.stream()};
  const Tensor taken = torch::stable::new_empty(like, {1}, ScalarType::Int);
  int* number = static_cast<int*>(taken.mutable_data_ptr());
  if (call.packing.queries == nullptr) {
    run_sm90(decode, device, number);
    return true;
  }
  constexpr int64_t kWords = sizeof(PackedTile) / 4;
  const Tensor tiles = torch::stable::new_empty(
      like, {sm90_packed_tiles(problem, call.packing) * kWords}, ScalarType::Int);
  run_sm90_packed(decode, problem, call.packing, device,
                  static_cast<PackedTile*>(tiles.mutable_data_ptr()), number);
  return true;
}

Packing packing_of(const Sequences* sequences) {
  if (sequences == nullptr) {
    return {};
  }
  return {static_cast<const int32_t*>(read_pointer(sequences->query)),
          static_cast<const int32_t*>(read_pointer(sequences->key)),
          static_cast<int32_t>(sequences->query.size(0) - 1)};
}

void run_cuda(const TrainProblem& problem, const Sequences* sequences, const Tensor& like) {
  const CudaScope scope(like);
  const Packing packing = packing_of(sequences);
  const Call call{problem, packing, scope};
  if (problem.base.queries > INT32_MAX / 2 || problem.base.keys > INT32_MAX / 2) {
    fail("attention", "query", "fewer than 2^30 queries and keys", "more");
  }
  if (run_forward_sm90(call, like) || run_backward_sm90(call, like)) {
    return;
  }
  switch (problem.base.dtype) {
    case Dtype::kFloat32:
      return run_dtype<float>(call);
    case Dtype::kBfloat16:
      return run_dtype<Bf16>(call);
    case Dtype::kFloat16:
      return run_dtype<Fp16>(call);
  }
}

using CudaTrainOps = TrainOps<&run_cuda>;

}  // namespace

}  // namespace graft_kernels::attention

GRAFT_OPS_IMPL(CUDA, ops) { graft_kernels::attention::CudaTrainOps::implement(ops); }
