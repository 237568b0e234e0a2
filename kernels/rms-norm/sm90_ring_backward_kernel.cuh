// The backward of all norms on Hopper, for rows of more than a warp's vectors: rows come through shared memory, several
// ahead, and a row that is too long for a block is shared by a cluster. Device code, no Torch.
//
// A thread owns kVectors vectors of every row and keeps their shares of the gradients of weight and bias in registers.
#pragma once

#include "kernels/rms-norm/forms_backward_kernel.cuh"
#include "kernels/rms-norm/sm90_ring.cuh"

namespace graft_kernels::rms_norm::sm90 {

// Tensors of a row: x, grad_out, and the gate or the gradient of the sum.
template <Form kForm, bool kAdd>
inline constexpr int kStreams = 2 + (is_gated(kForm) || kAdd ? 1 : 0);

// The rows of a team of blocks: those of one group, from `part` on in steps of `parts`.
struct TeamRows {
  int64_t group, part, parts, count;

  __device__ TeamRows(const FormBackwardProblem& problem, int64_t team) {
    const int64_t groups = problem.call.groups;
    group = team % groups;
    part = team / groups;
    parts = problem.parts;
    const int64_t rows = problem.call.rows / groups;
    count = part < rows ? (rows - part + parts - 1) / parts : 0;
  }
  __device__ __forceinline__ int64_t row(const FormBackwardProblem& problem, int64_t turn) const {
    return (part + turn * parts) * problem.call.groups + group;
  }
};

// Starts the copies of a row's slice. One thread calls it.
template <Form kForm, typename X, bool kAdd>
__device__ __forceinline__ void start_row(const FormBackwardProblem& problem, int64_t row,
                                          int64_t first_column, unsigned bytes,
                                          unsigned stream_bytes, unsigned char* to,
                                          uint64_t* barrier) {
  const auto copy = [&](int stream, const void* from, const RowLayout& layout) {
    copy_bytes(to + stream * stream_bytes,
               static_cast<const X*>(from) + offset_of(layout, row) + first_column, barrier,
               static_cast<int>(bytes));
  };
  arrive_expecting(barrier, kStreams<kForm, kAdd> * static_cast<int>(bytes));
  copy(0, problem.call.x, problem.call.x_rows);
  copy(1, problem.grad_out, problem.grad_out_rows);
  if constexpr (is_gated(kForm)) {
    copy(2, problem.call.gate, problem.call.gate_rows);
  } else if constexpr (kAdd) {
    copy(2, problem.grad_sum, problem.grad_sum_rows);
  }
}

// gridDim.x = parts * groups * ring.cluster; dynamic shared memory: stages * streams * (slice * 16 bytes, rounded up to
// 128). X is the dtype of all tensors.
template <Form kForm, typename X, bool kAdd, int kVectors>
__global__ void __launch_bounds__(kRingThreads, 1)
    ring_bwd_kernel(const __grid_constant__ FormBackwardProblem problem, const RingShape ring) {
#if __CUDA_ARCH__ >= 900
  constexpr int kSize = kVectorSize<X>;
  constexpr bool kIsLayer = kForm == Form::kLayer;
  constexpr int kOthers = kStreams<kForm, kAdd>;
  using Vector = Vec<X, kSize>;
  extern __shared__ __align__(128) unsigned char slots[];
  __shared__ RingScratch<kMaxStages> scratch;
  RingSum sum(scratch, ring.cluster);
  init_ring(scratch, ring.stages, ring.cluster);

  const FormProblem& call = problem.call;
  const int64_t team = blockIdx.x / ring.cluster;
  const TeamRows rows(problem, team);
  const int num_vectors = static_cast<int>(call.columns / kSize);
  const int first = sum.rank() * ring.slice;
  const int own = min(ring.slice, num_vectors - first);
  const unsigned bytes = static_cast<unsigned>(own) * 16;
  const unsigned stream_bytes = (static_cast<unsigned>(ring.slice) * 16 + 127) / 128 * 128;
  const unsigned slot_bytes = kOthers * stream_bytes;
  int64_t started = 0;  // rows whose copies have begun; thread 0's
  int load_slot = 0;
  const auto start = [&](int64_t end) {
    for (; started < min(end, rows.count); ++started) {
      start_row<kForm, X, kAdd>(problem, rows.row(problem, started), int64_t{first} * kSize, bytes,
                                stream_bytes, slots + load_slot * slot_bytes,
                                &scratch.full[load_slot]);
      load_slot = load_slot + 1 == ring.stages ? 0 : load_slot + 1;
    }
  };
  if (threadIdx.x == 0) {
    start(ring.stages);
  }

  Vector weights[kVectors] = {};
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int index = static_cast<int>(threadIdx.x + v * blockDim.x);
    if (index < own && call.weight != nullptr) {
      weights[v] =
          load_shared_data<X, kSize>(static_cast<const X*>(call.weight) +
                                     rows.group * call.columns + int64_t{first + index} * kSize);
    }
  }
  const float offset =
      call.variant == Variant::kZeroCentered || call.weight == nullptr ? 1.0F : 0.0F;
  float weight_shares[kVectors][kSize] = {};
  float bias_shares[kIsLayer ? kVectors : 1][kSize] = {};
  const float width = static_cast<float>(call.columns);
  int slot = 0, phase = 0;
  for (int64_t turn = 0; turn < rows.count; ++turn) {
    const unsigned char* base = slots + slot * slot_bytes;
    wait(&scratch.full[slot], phase);
    // Calls body(v, column, vector, weight) for the vectors of this thread.
    const auto for_own = [&](const auto& body) {
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        const int index = static_cast<int>(threadIdx.x + v * blockDim.x);
        if (index < own) {
          FormBackwardVector<kForm, X, kSize> vector;
          vector.x = reinterpret_cast<const Vector*>(base)[index];
          vector.grad_out = reinterpret_cast<const Vector*>(base + stream_bytes)[index];
          if constexpr (is_gated(kForm)) {
            vector.gate = reinterpret_cast<const Vector*>(base + 2 * stream_bytes)[index];
          }
          Vector scaling = weights[v];
          forget(scaling);
          Vec<float, kSize> weight;
#pragma unroll
          for (int i = 0; i < kSize; ++i) {
            weight.data[i] = offset + to_float(scaling.data[i]);
          }
          body(v, index, vector, weight);
        }
      }
    };
    // Past the first barrier of a turn nobody reads the row before any more.
    const auto refill = [&] {
      if (threadIdx.x == 0) {
        start(turn + ring.stages);
      }
    };
    FormFactors factors = {};
    if constexpr (kIsLayer) {
      float total[1] = {};
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        const int index = static_cast<int>(threadIdx.x + v * blockDim.x);
        if (index < own) {
          total[0] += elements_of(reinterpret_cast<const Vector*>(base)[index]);
        }
      }
      sum(total, refill);
      factors.mean = total[0] / width;
    }
    float sums[kIsLayer ? 3 : 2] = {};  // of squares, of gradient * value, of gradients
    for_own([&](int, int, const auto& vector, const Vec<float, kSize>& weight) {
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
        const FormElement element = element_of<kForm, X, kSize>(vector, i, call.function);
        const float gradient = element.incoming * weight.data[i];
        const float value = element.value - factors.mean;
        sums[0] = fmaf(value, value, sums[0]);
        sums[1] = fmaf(gradient, value, sums[1]);
        if constexpr (kIsLayer) {
          sums[2] += gradient;
        }
      }
    });
    if constexpr (kIsLayer) {
      sum(sums, [] {});
      factors.shift = sums[2] / width;
    } else {
      sum(sums, refill);
    }
    factors.inverse = rsqrtf(sums[0] / width + call.eps);
    factors.pull = factors.inverse * factors.inverse * (sums[1] / width);
    const int64_t row = rows.row(problem, turn);
    X* grad_x = static_cast<X*>(problem.grad_x) + offset_of(problem.grad_x_rows, row) +
                int64_t{first} * kSize;
    X* grad_gate = nullptr;
    if constexpr (is_gated(kForm)) {
      grad_gate = static_cast<X*>(problem.grad_gate) + offset_of(problem.grad_gate_rows, row) +
                  int64_t{first} * kSize;
    }
    for_own([&](int v, int index, const auto& vector, const Vec<float, kSize>& weight) {
      Vector of_x, of_gate;
      const Vector* addend = nullptr;
      if constexpr (kAdd) {
        addend = &reinterpret_cast<const Vector*>(base + 2 * stream_bytes)[index];
      }
      form_gradients<kForm, X, kSize>(vector, weight, factors, call.function, of_x, of_gate,
                                      weight_shares[v], bias_shares[kIsLayer ? v : 0], addend);
      store_vector(grad_x + int64_t{index} * kSize, of_x);
      if constexpr (is_gated(kForm)) {
        store_vector(grad_gate + int64_t{index} * kSize, of_gate);
      }
    });
    slot = slot + 1 == ring.stages ? 0 : slot + 1;
    phase ^= slot == 0 ? 1 : 0;
  }

  // Write the shares.
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    const int index = static_cast<int>(threadIdx.x + v * blockDim.x);
    if (index < own) {
      const int64_t at = team * call.columns + int64_t{first + index} * kSize;
      Vec<float, kSize> shares, of_bias;
#pragma unroll
      for (int i = 0; i < kSize; ++i) {
        shares.data[i] = weight_shares[v][i];
        of_bias.data[i] = kIsLayer ? bias_shares[kIsLayer ? v : 0][i] : 0.0F;
      }
      store_vector(problem.partial + at, shares);
      if constexpr (kIsLayer) {
        store_vector(problem.partial_bias + at, of_bias);
      }
    }
  }
  if (ring.cluster > 1) {
    sync_cluster();  // no block leaves while a peer may still write into its shared memory
  }
#endif
}

}  // namespace graft_kernels::rms_norm::sm90
