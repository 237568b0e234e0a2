// The merge of the attention of few rows on Hopper. Warps of a block meet in its shared memory. Every block of a
// cluster has a share of the results, and is sent what the others found of it; what clusters found meets in device
// memory. Device code, no Torch.
#pragma once

#include "kernels/attention/attention_decode_sm90_meet.cuh"
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

// What several parts found of the same four columns, and where the next part's lie.
struct Parts {
  const float4* values;
  int values_step;
  const float2* sums;
  int sums_step;
  int count;
};

// Merged in their order. One place in the code for all who merge: instructions that run once are fetched while the
// device waits for them.
static __device__ __noinline__ Found merge_found(const Parts parts) {
  constexpr int kTogether = 8;
  Found found = {-INFINITY, 0.0F, {0.0F, 0.0F, 0.0F, 0.0F}};
#pragma unroll 1
  for (int first = 0; first < parts.count; first += kTogether) {
    float2 sums[kTogether];
    float4 values[kTogether];
    float largest = found.largest;
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      sums[i] = {-INFINITY, 0.0F};
      values[i] = {0.0F, 0.0F, 0.0F, 0.0F};
      if (first + i < parts.count) {
        sums[i] = parts.sums[(first + i) * parts.sums_step];
        values[i] = parts.values[(first + i) * parts.values_step];
      }
      largest = fmaxf(largest, sums[i].x);
    }
    const float origin = origin_of(largest), before = exp2_fast(found.largest - origin);
    found = {largest,
             found.sum * before,
             {found.values.x * before, found.values.y * before, found.values.z * before,
              found.values.w * before}};
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      const float factor = exp2_fast(sums[i].x - origin);
      found.sum += sums[i].y * factor;
      found.values.x += values[i].x * factor;
      found.values.y += values[i].y * factor;
      found.values.z += values[i].z * factor;
      found.values.w += values[i].w * factor;
    }
  }
  return found;
}

template <typename Ring>
__device__ __forceinline__ Parts parts_of_warps(const PartRows& parts, int row, int four) {
  return {reinterpret_cast<const float4*>(parts.values + row * Ring::kPitch) + four,
          Ring::kRows * Ring::kPitch / 4, parts.sums + row, Ring::kRows, Ring::kParts};
}

// ---- between the blocks of a cluster

__device__ __forceinline__ int rank_of(const DecodeShape& shape) {
  return shape.cluster == 1 ? 0 : rank_in_cluster();
}

// What this thread wrote can be read by the cluster's threads once they waited.
__device__ __forceinline__ void arrive_cluster() {
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
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

// What a block is sent: four columns each of its share [sender][share], sums [sender][row]; and room for what other
// splits found.
struct Inbox {
  float4* columns;
  float2* sums;
  uint64_t* barrier;
  unsigned char* met;
  int met_bytes;
};

// Results of a block's rows in fours of columns. Blocks of a cluster take turns at them.
struct Shares {
  int all;
  int log2;  // of the cluster's blocks
  int rank;  // this block's
  int share;
  int own;  // this block's

  __device__ __forceinline__ Shares(int all_fours, int cluster, int own_rank) {
    all = all_fours;
    log2 = 31 - __clz(cluster);
    rank = own_rank;
    share = (all + cluster - 1) >> log2;
    own = (all + cluster - 1 - rank) >> log2;
  }
  // Among all, the block's own four `slot`.
  __device__ __forceinline__ int index_of(int slot) const { return slot << log2 | rank; }
};

template <typename Ring>
__device__ __forceinline__ void send_found(const Place& place, const PartRows& parts,
                                           const Shares& shares, const Inbox& inbox, int cluster) {
  if (threadIdx.x == 0) {
    arrive_expecting(inbox.barrier, cluster * (shares.own * 16 + place.rows * 8));
  }
#pragma unroll 1
  for (int index = threadIdx.x; index < shares.all; index += Ring::kThreads) {
    const int row = index / Ring::kFours, four = index % Ring::kFours;
    const Found found = merge_found(parts_of_warps<Ring>(parts, row, four));
    const int to = index & (cluster - 1);
    send(address_of_rank(inbox.columns + shares.rank * shares.share + (index >> shares.log2), to),
         address_of_rank(inbox.barrier, to), found.values);
    if (four == 0) {
#pragma unroll 1
      for (int other = 0; other < cluster; ++other) {
        send(address_of_rank(inbox.sums + shares.rank * place.rows + row, other),
             address_of_rank(inbox.barrier, other), float2{found.largest, found.sum});
      }
    }
  }
}

// Where a result lies: the four `index` of the block's rows, counted over rows of Ring::kFours each.
template <typename T, typename Ring>
__device__ __forceinline__ T* result_at(const DecodeProblem& problem, const Place& place,
                                        int index) {
  return out_row<T>(problem, place.batch, view_row(problem, place, index / Ring::kFours)) +
         index % Ring::kFours * 4;
}

// That of the first four that this thread writes, which is looked for while the first tile is waited for.
template <typename T, typename Ring>
__device__ __forceinline__ T* first_result(const DecodeProblem& problem, const DecodeShape& shape,
                                           const Place& place) {
  return result_at<T, Ring>(problem, place,
                            static_cast<int>(threadIdx.x) * shape.cluster + rank_of(shape));
}

// Where the four `index` lies, this thread's `slot`; `first`: first_result(), or null.
template <typename T, typename Ring>
__device__ __forceinline__ T* own_result(const DecodeProblem& problem, const Place& place,
                                         int index, int slot, T* first) {
  return slot == static_cast<int>(threadIdx.x) && first != nullptr
             ? first
             : result_at<T, Ring>(problem, place, index);
}

template <typename T, typename Ring>
__device__ __forceinline__ void write_result(const DecodeProblem& problem, const Place& place,
                                             int index, const Found& found, T* out) {
  const int column = index % Ring::kFours * 4;
  if (column >= static_cast<int>(problem.base.head_dim)) {
    return;
  }
  float factor = found.sum == 0.0F ? 0.0F : __fdividef(1.0F, found.sum);
  if (problem.sinks.values != nullptr || problem.lse != nullptr) {
    const RowView view = view_row(problem, place, index / Ring::kFours);
    const RowResult result = finish_row<T>(problem, view.head, found.largest, found.sum);
    factor = result.factor;
    if (column == 0) {
      store_lse(problem, place.batch, view, result.lse);
    }
  }
  *reinterpret_cast<uint2*>(out) = {pack<T>(found.values.x * factor, found.values.y * factor),
                                    pack<T>(found.values.z * factor, found.values.w * factor)};
}

// What this block found of its share meets what the other splits found of it. `own(slot)`: the parts that are merged into
// the block's; `is_last`: of the splits, which merges.
template <typename T, typename Ring, typename Own>
__device__ __forceinline__ void merge_splits(const DecodeProblem& problem, const DecodeShape& shape,
                                             const Place& place, const Shares& shares,
                                             const Inbox& inbox, bool is_last, T* first,
                                             const Own& own) {
  const int splits = shape.splits;
  const Meeting<Ring> meeting(problem, shape, shares.rank);
  // Slots that are merged together: as many as there is room for what all splits found of them, a power of two.
  const int log2 =
      min(31 - __clz(inbox.met_bytes / (Ring::kMetBytes * splits)), 32 - __clz(shares.own - 1));
  float4* values = reinterpret_cast<float4*>(inbox.met);
  float2* sums = reinterpret_cast<float2*>(values + (splits << log2));
#pragma unroll 1
  for (int begin = 0; begin < shares.own; begin += 1 << log2) {
    const int count = min(1 << log2, shares.own - begin);
    const auto index_of = [&](int slot) { return shares.index_of(begin + slot); };
#pragma unroll 1
    for (int slot = threadIdx.x; slot < count; slot += Ring::kThreads) {
      const Found found = merge_found(own(begin + slot));
      if (is_last) {
        values[(place.split << log2) + slot] = found.values;
        sums[(place.split << log2) + slot] = {found.largest, found.sum};
      } else {
        meeting.leave(place.split, index_of(slot), found, shape.launch);
      }
    }
    if (!is_last) {
      continue;
    }
    meeting.take(shape, place.split, count, log2, values, sums, index_of);
    __syncthreads();
#pragma unroll 1
    for (int slot = threadIdx.x; slot < count; slot += Ring::kThreads) {
      const int index = index_of(slot);
      write_result<T, Ring>(problem, place, index,
                            merge_found({values + slot, 1 << log2, sums + slot, 1 << log2, splits}),
                            own_result<T, Ring>(problem, place, index, begin + slot, first));
    }
    __syncthreads();
  }
}

// The merge of what all warps of the cluster, and of all clusters with the same rows, found. By all threads. `first`:
// first_result(), or null.
template <typename T, typename Ring>
__device__ __forceinline__ void merge_parts(const DecodeProblem& problem, const DecodeShape& shape,
                                            const Place& place, const PartRows& parts,
                                            const Inbox& inbox, bool is_last, T* first) {
  const int cluster = shape.cluster;
  const Shares shares(place.rows * Ring::kFours, cluster, rank_of(shape));
  if (cluster > 1) {
    send_found<Ring>(place, parts, shares, inbox, cluster);
    wait_sent(inbox.barrier);
  }
  const auto own = [&](int slot) {
    const int index = shares.index_of(slot);
    const int row = index / Ring::kFours, four = index % Ring::kFours;
    return cluster == 1
               ? parts_of_warps<Ring>(parts, row, four)
               : Parts{inbox.columns + slot, shares.share, inbox.sums + row, place.rows, cluster};
  };
  if (shape.splits > 1) {
    return merge_splits<T, Ring>(problem, shape, place, shares, inbox, is_last, first, own);
  }
#pragma unroll 1
  for (int slot = threadIdx.x; slot < shares.own; slot += Ring::kThreads) {
    const int index = shares.index_of(slot);
    write_result<T, Ring>(problem, place, index, merge_found(own(slot)),
                          own_result<T, Ring>(problem, place, index, slot, first));
  }
}

}  // namespace graft_kernels::attention::sm90
