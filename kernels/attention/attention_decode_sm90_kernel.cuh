// Attention for few rows on Hopper. One warp keeps a ring of key and value tiles filled by bulk copies;
// of the others, sets of four take turns at the tiles, each warp 16 keys for the rows that share them, with a
// running softmax of its own, and all of them merge in the end. Device code, no Torch.
#pragma once

#include "kernels/attention/attention_decode_sm90_merge.cuh"

namespace graft_kernels::attention::sm90 {

// What the end asks for of the parameters comes near while the first tile is on its way.
__device__ __forceinline__ void touch(const DecodeProblem& problem) {
  asm volatile("" ::"l"(problem.lse), "l"(problem.sinks.values), "l"(problem.parts));
}

template <typename T, typename Ring>
__device__ __forceinline__ void work_tiles(const DecodeProblem& problem, const DecodeShape& shape,
                                           const Place& place, const Tiles& tiles,
                                           const QueriesAhead<T, Ring>& ahead, unsigned char* ring,
                                           RingBarriers& barriers, T* queries,
                                           RowsState<Ring::kD>& state, T*& result) {
  constexpr int kD = Ring::kD;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int set = warp / Ring::kSetWarps, keys16 = warp % kKeyWarps * 16;
  const int row_tile = warp % Ring::kSetWarps / kKeyWarps;
  int first_new = INT_MAX;
  if (problem.append.key != nullptr) {
    first_new = first_new_key(problem, place.batch);
    if (place.row == 0 && blockIdx.x == 0) {
      problem.table == nullptr ? store_new<T, false>(problem, place, first_new, Ring::kThreads - 32)
                               : store_new<T, true>(problem, place, first_new, Ring::kThreads - 32);
    }
  }
  if (problem.append.cos != nullptr) {
    turn_queries<T, Ring>(problem, place, first_new, queries);
  } else {
    ahead.store(queries);
  }
  sync_named(kQueriesBarrier, Ring::kThreads - 32);
  touch(problem);
  result = first_result<T, Ring>(problem, shape, place);
  asm volatile("" : "+l"(result));  // here, and not where it is needed
  if (shape.cluster > 1) {
    wait_cluster();  // every block's barriers are set up: here, where the first tile is waited for anyway
  }
  const TileRows tile_rows = TileRows::of<Ring>(shape);
  QueryRows<T, kD> rows;
  rows.read(queries + row_tile * kBlockRows * Ring::kQueryPitch, Ring::kQueryPitch, lane);
  const int row = row_tile * kBlockRows + lane / 4;
  const RowView views[2] = {view_row(problem, place, row), view_row(problem, place, row + 8)};
  // Keys that every row sees.
  const int whole_end = min(view_row(problem, place, 0).end, place.end);
  const int whole_begin = max(view_row(problem, place, max(place.rows - 1, 0)).begin, place.begin);
  int first = tiles.first + set * tiles.step + keys16;
  for (int index = set, stage = set, phase = 0; index < tiles.count;
       index += Ring::kSets, first += Ring::kSets * tiles.step) {
    wait(&barriers.full[stage], phase);
    if (first < place.end && first + 16 > place.begin) {
      unsigned char* keys = ring + stage * Ring::kStageBytes + tile_rows.at<Ring>(keys16);
      unsigned char* values = keys + Ring::kStageBytes / 2;
      const bool whole = first >= whole_begin && first + 16 <= whole_end;
      // Keys that were not in the cache when it was copied, or that no row may see.
      if (first < place.begin || first + 16 > place.end || first + 16 > first_new) {
        if (row_tile == 0) {
          patch_new<T>(problem, place, first_new, first, tile_rows, keys, values);
          __syncwarp();
          clear_unseen<kD>(place, first, tile_rows, values);
          publish_shared();  // the ring may be filled again by a bulk copy
        }
        if constexpr (Ring::kSetWarps == kKeyWarps) {
          __syncwarp();
        } else {
          sync_named(kTileBarrier + keys16 / 16, Ring::kSetWarps / kKeyWarps * 32);
        }
      }
      work_keys16<T, kD>(problem, place, views, whole, rows, tile_rows, keys, values, first, state);
    }
    __syncwarp();
    if (lane == 0) {
      arrive(&barriers.free[stage]);
    }
    stage += Ring::kSets;
    if (stage >= shape.stages) {
      stage -= shape.stages;
      phase ^= 1;
    }
  }
}

// 16-bit heads of up to kD elements, a multiple of eight; up to 16 kRowTiles rows a block.
template <typename T, int kD, int kRowTiles, int kSets>
__global__ void __launch_bounds__(DecodeRing<kD, kRowTiles, kSets>::kThreads,
                                  kRowTiles* kSets == 1 && kD <= 128 ? 2 : 1)
    attention_decode_sm90_kernel(const __grid_constant__ DecodeShape shape,
                                 const __grid_constant__ CUtensorMap key_map,
                                 const __grid_constant__ CUtensorMap value_map,
                                 const __grid_constant__ DecodeProblem problem) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  using Ring = DecodeRing<kD, kRowTiles, kSets>;
  extern __shared__ __align__(1024) unsigned char shared[];
  RingBarriers& barriers = *reinterpret_cast<RingBarriers*>(shared);
  T* queries = reinterpret_cast<T*>(&barriers + 1);
  unsigned char* ring = shared + Ring::kFixedBytes;
  const int warp = threadIdx.x / 32;
  if (threadIdx.x == Ring::kWarps * 32) {
    prefetch_map(&key_map);
    prefetch_map(&value_map);
    init_barrier(&barriers.full[0], 1);  // the first tile waits for this one alone
    publish_barriers();
  } else if (threadIdx.x == 0) {
#pragma unroll 1
    for (int stage = 0; stage < shape.stages; ++stage) {
      init_barrier(&barriers.free[stage], Ring::kSetWarps);
      if (stage > 0) {
        init_barrier(&barriers.full[stage], 1);
      }
    }
    init_barrier(&barriers.sent, 1);
    publish_barriers();
  }
  if (shape.cluster > 1) {
    arrive_cluster_relaxed();
  }
  allow_next_kernel();
  wait_for_kernel_before();
  Place place = decode_place(shape, Ring::kRows);
  const int length = shape.lengths == nullptr ? shape.room : shape.lengths[place.batch];
  RowsState<kD> state;
  T* result = nullptr;
  if (warp == Ring::kWarps) {
    __syncwarp();
    Copier<Ring>(key_map, value_map, problem, shape, ring, barriers).run(place, length);
    if (shape.cluster > 1) {
      wait_cluster();
    }
    if (shape.splits > 1 && threadIdx.x % 32 == 0) {
      barriers.is_last = take_ticket(Meeting<Ring>(problem, shape, rank_of(shape)).word,
                                     shape.launch, shape.splits);
    }
  } else {
    QueriesAhead<T, Ring> ahead;
    if (problem.append.cos == nullptr) {
      ahead.ask(problem, place);
    }
    sync_named(kReadyBarrier, Ring::kThreads);
    const Tiles tiles = find_keys(problem, shape, Ring::kRows, length, place);
    work_tiles<T, Ring>(problem, shape, place, tiles, ahead, ring, barriers, queries, state,
                        result);
  }
  // The ring is used up. NOTE: racecheck reports reads of tiles beside the writes of share_rows(), and those beside the
  // reads of merge_parts(): this barrier and the one below lie between them, in the machine code too.
  __syncthreads();
  float* values = reinterpret_cast<float*>(ring);
  const PartRows parts{
      values, reinterpret_cast<float2*>(values + Ring::kParts * Ring::kRows * Ring::kPitch)};
  unsigned char* sent =
      ring + (Ring::kSentApart ? shape.stages * Ring::kStageBytes : Ring::kMergeBytes);
  const Inbox inbox{reinterpret_cast<float4*>(sent),
                    reinterpret_cast<float2*>(sent + Ring::kSentColumns), &barriers.sent,
                    ring + Ring::kMergeRing, shape.stages * Ring::kStageBytes - Ring::kMergeRing};
  if (warp < Ring::kWarps) {
    share_rows<Ring>(place, state, parts);
  }
  if (shape.cluster > 1) {
    if constexpr (!Ring::kSentApart) {
      arrive_cluster();
      wait_cluster();  // every block's ring is used up
    }
  }
  __syncthreads();
  merge_parts<T, Ring>(problem, shape, place, parts, inbox, barriers.is_last, result);
#endif
}

}  // namespace graft_kernels::attention::sm90
