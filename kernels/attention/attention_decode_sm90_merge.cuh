// The merge of the attention of few rows on Hopper. Warps of a block meet in its shared memory. Every block of a
// cluster has a share of the results, and is sent what the others found of it; what clusters found meets in device
// memory, where the last to come merges. Device code, no Torch.
#pragma once

#include "kernels/attention/attention_decode_sm90_rows.cuh"
#include "kernels/common/sm90_cluster.cuh"

namespace graft_kernels::attention::sm90 {

// What the warps found: largest score and sum [part][row], weighted values [part][row][kPitch].
struct PartRows {
  float* values;
  float2* sums;
};

template <typename Ring>
__device__ __forceinline__ void share_rows(const Place& place, const RowsState<Ring::kD>& state,
                                           const PartRows& to) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int part = warp / Ring::kSetWarps * kKeyWarps + warp % kKeyWarps;
  const int first_row = warp % Ring::kSetWarps / kKeyWarps * kBlockRows;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float sum = state.sum[half];
    sum += __shfl_xor_sync(0xFFFFFFFFU, sum, 1);
    sum += __shfl_xor_sync(0xFFFFFFFFU, sum, 2);
    const int row = first_row + lane / 4 + half * 8;
    if (row < place.rows) {
      const int at = part * Ring::kRows + row;
      if (lane % 4 == 0) {
        to.sums[at] = {state.largest[half], sum};
      }
#pragma unroll
      for (int tile = 0; tile < Ring::kD / 8; ++tile) {
        *reinterpret_cast<float2*>(to.values + at * Ring::kPitch + tile * 8 + lane % 4 * 2) = {
            state.out[tile][half * 2], state.out[tile][half * 2 + 1]};
      }
    }
  }
}

// Four columns of a row, and what they are relative to.
struct Found {
  float largest;  // in units of log2
  float sum;
  float4 values;
};

// What `count` parts found, by sums(part) and values(part), in their order.
template <int kUnroll, typename Sums, typename Values>
__device__ __forceinline__ Found merge_found(int count, const Sums& sums, const Values& values) {
  Found found = {-INFINITY, 0.0F, {0.0F, 0.0F, 0.0F, 0.0F}};
#pragma unroll kUnroll
  for (int part = 0; part < count; ++part) {
    found.largest = fmaxf(found.largest, sums(part).x);
  }
  const float origin = origin_of(found.largest);
#pragma unroll kUnroll
  for (int part = 0; part < count; ++part) {
    const float2 own = sums(part);
    const float4 value = values(part);
    const float factor = exp2_fast(own.x - origin);
    found.sum += own.y * factor;
    found.values.x += value.x * factor;
    found.values.y += value.y * factor;
    found.values.z += value.z * factor;
    found.values.w += value.w * factor;
  }
  return found;
}

template <typename Ring>
__device__ __forceinline__ Found merge_warps(const PartRows& parts, int row, int column) {
  return merge_found<Ring::kParts>(
      Ring::kParts, [&](int part) { return parts.sums[part * Ring::kRows + row]; },
      [&](int part) {
        return *reinterpret_cast<const float4*>(parts.values +
                                                (part * Ring::kRows + row) * Ring::kPitch + column);
      });
}

// ---- between the blocks of a cluster

// What this thread wrote can be read by the cluster's threads once they waited.
__device__ __forceinline__ void arrive_cluster() {
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
}

// The same without a word on memory, which would wait for the device's: enough after publish_barriers().
__device__ __forceinline__ void arrive_cluster_relaxed() {
  asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
}

__device__ __forceinline__ void wait_cluster() {
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}

__device__ __forceinline__ uint32_t address_of_rank(const void* own, int rank) {
  uint32_t address;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(own)), "r"(rank));
  return address;
}

// Into the memory of another block, whose barrier counts the bytes.
__device__ __forceinline__ void send(uint32_t to, uint32_t barrier, float4 value) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%2, %3, %4, %5}, "
      "[%1];" ::"r"(to),
      "r"(barrier), "f"(value.x), "f"(value.y), "f"(value.z), "f"(value.w)
      : "memory");
}

__device__ __forceinline__ void send(uint32_t to, uint32_t barrier, float2 value) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%2, %3}, [%1];" ::
          "r"(to),
      "r"(barrier), "f"(value.x), "f"(value.y)
      : "memory");
}

// wait() for what other blocks sent.
__device__ __forceinline__ void wait_sent(uint64_t* barrier) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], 0;\n"
      "@!done bra again;\n"
      "}\n" ::"r"(shared_address(barrier))
      : "memory");
}

// What a block is sent: four columns each of its share [sender][share], sums [sender][row].
struct Inbox {
  float4* columns;
  float2* sums;
  uint64_t* barrier;
  bool* is_last;
};

// Results of a block's rows in fours of columns, and the share of them that each block of the cluster merges.
struct Shares {
  int fours;  // of a row
  int all;
  int share;
  int begin, own;  // of this block's

  __device__ __forceinline__ Shares(const DecodeProblem& problem, const Place& place, int cluster,
                                    int rank)
      : fours(static_cast<int>(problem.base.head_dim) / 4),
        all(place.rows * fours),
        share(cluster == 1 ? all : (all + cluster - 1) / cluster),
        begin(rank * share),
        own(min(max(all - begin, 0), share)) {}
};

template <typename Ring>
__device__ __forceinline__ void send_found(const Place& place, const PartRows& parts,
                                           const Shares& shares, const Inbox& inbox, int cluster,
                                           int rank) {
  const int threads = Ring::kThreads;
  if (threadIdx.x == 0) {
    arrive_expecting(inbox.barrier, cluster * (shares.own * 16 + place.rows * 8));
  }
  for (int index = threadIdx.x; index < shares.all; index += threads) {
    const int row = index / shares.fours, column = (index - row * shares.fours) * 4;
    const int to = index / shares.share;
    const Found found = merge_warps<Ring>(parts, row, column);
    send(address_of_rank(inbox.columns + rank * shares.share + index - to * shares.share, to),
         address_of_rank(inbox.barrier, to), found.values);
  }
  for (int index = threadIdx.x; index < cluster * place.rows; index += threads) {
    const int to = index / place.rows, row = index - to * place.rows;
    const Found found = merge_found<Ring::kParts>(
        Ring::kParts, [&](int part) { return parts.sums[part * Ring::kRows + row]; },
        [](int) {
          return float4{0.0F, 0.0F, 0.0F, 0.0F};
        });
    send(address_of_rank(inbox.sums + rank * place.rows + row, to),
         address_of_rank(inbox.barrier, to), float2{found.largest, found.sum});
  }
}

// ---- between clusters

// What this thread has seen is before the fence for the device's threads that come to see what it writes behind it.
__device__ __forceinline__ void fence_device() { asm volatile("fence.acq_rel.gpu;" ::: "memory"); }

// Says whether this thread is the last of `count` to come to `word`, which holds the launch's number and how many came;
// anything else counts as nobody, and is what the last one leaves.
__device__ __forceinline__ bool is_last_to_come(unsigned long long* word, uint64_t launch,
                                                int count) {
  unsigned long long seen = *reinterpret_cast<volatile unsigned long long*>(word);
  for (;;) {
    const int came = (seen >> 8 == launch ? static_cast<int>(seen & 0xFFU) : 0) + 1;
    const unsigned long long next = came == count ? 0 : launch << 8 | static_cast<unsigned>(came);
    const unsigned long long before = atomicCAS(word, seen, next);
    if (before == seen) {
      return came == count;
    }
    seen = before;
  }
}

// Memory that splits meet in: fours of columns [work][split][four], their sums likewise, words [work][rank].
struct Meeting {
  float4* columns;
  float2* sums;
  unsigned long long* word;

  __device__ __forceinline__ Meeting(const DecodeProblem& problem, const DecodeShape& shape,
                                     int rows, int rank) {
    const int64_t works = static_cast<int64_t>(gridDim.y) * gridDim.z;
    const int64_t work = static_cast<int64_t>(blockIdx.z) * gridDim.y + blockIdx.y;
    const int64_t fours = problem.base.head_dim / 4 * rows;
    columns = reinterpret_cast<float4*>(problem.parts);
    sums = reinterpret_cast<float2*>(columns + works * shape.splits * fours);
    word = reinterpret_cast<unsigned long long*>(sums + works * shape.splits * fours) +
           work * shape.cluster + rank;
    columns += work * shape.splits * fours;
    sums += work * shape.splits * fours;
  }
};

template <typename T>
__device__ __forceinline__ void write_result(const DecodeProblem& problem, const Place& place,
                                             int row, int column, const Found& found) {
  const RowView view = view_row(problem, place, row);
  const RowResult result = finish_row<T>(problem, view.head, found.largest, found.sum);
  T* out = out_row<T>(problem, place.batch, view) + column;
  *reinterpret_cast<uint2*>(out) = {
      pack<T>(found.values.x * result.factor, found.values.y * result.factor),
      pack<T>(found.values.z * result.factor, found.values.w * result.factor)};
  if (column == 0) {
    store_lse(problem, place.batch, view, result.lse);
  }
}

// The merge of what all warps of the cluster, and of all clusters with the same rows, found. By all threads.
template <typename T, typename Ring>
__device__ __forceinline__ void merge_parts(const DecodeProblem& problem, const DecodeShape& shape,
                                            const Place& place, const PartRows& parts,
                                            const Inbox& inbox) {
  const int cluster = shape.cluster, rank = cluster == 1 ? 0 : rank_in_cluster();
  const Shares shares(problem, place, cluster, rank);
  if (cluster > 1) {
    send_found<Ring>(place, parts, shares, inbox, cluster, rank);
    wait_sent(inbox.barrier);
  }
  const auto for_own = [&](const auto& use) {
    for (int slot = threadIdx.x; slot < shares.own; slot += Ring::kThreads) {
      const int index = shares.begin + slot, row = index / shares.fours;
      use(slot, index, row, (index - row * shares.fours) * 4);
    }
  };
  const auto merge_own = [&](int slot, int row, int column) {
    return cluster == 1
               ? merge_warps<Ring>(parts, row, column)
               : merge_found<4>(
                     cluster, [&](int from) { return inbox.sums[from * place.rows + row]; },
                     [&](int from) { return inbox.columns[from * shares.share + slot]; });
  };
  if (shape.splits == 1) {
    return for_own([&](int slot, int, int row, int column) {
      write_result<T>(problem, place, row, column, merge_own(slot, row, column));
    });
  }
  const Meeting meeting(problem, shape, Ring::kRows, rank);
  const int pitch = shares.fours * Ring::kRows;
  for_own([&](int slot, int index, int row, int column) {
    const Found found = merge_own(slot, row, column);
    meeting.columns[place.split * pitch + index] = found.values;
    meeting.sums[place.split * pitch + index] = {found.largest, found.sum};
  });
  __syncthreads();
  if (threadIdx.x == 0) {
    fence_device();
    *inbox.is_last = is_last_to_come(meeting.word, shape.launch, shape.splits);
    fence_device();
  }
  __syncthreads();
  if (*inbox.is_last) {
    for_own([&](int, int index, int row, int column) {
      write_result<T>(
          problem, place, row, column,
          merge_found<4>(
              shape.splits, [&](int split) { return __ldcg(meeting.sums + split * pitch + index); },
              [&](int split) { return __ldcg(meeting.columns + split * pitch + index); }));
    });
  }
}

}  // namespace graft_kernels::attention::sm90
