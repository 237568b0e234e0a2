// Products on Hopper whose results want long work: out[M, N] = finish(x[M, K] w[K, N]), sums in float32, rounded to
// the dtype. Device code, no Torch.
//
// The tiles, the cluster and the ring of stages are those of sm90_gemm.cuh. But the computing warpgroups hand a whole
// tile of sums over in shared memory and go on; three warps beside the one that copies finish them meanwhile, for as long
// as the next tile takes. The sums' place costs a stage, so both computing warpgroups take the same stage at a time: one
// ahead of the other would leave the copies none to fill.
//
// `finish` has, for 16 rows x 64 columns from (row, column) on: prefetch(row, column, lane), early; fetch(fetched, row,
// column, lane) for what is read beside the sums; and finish_box(box, fetched, row, column, next_row, next_column, lane)
// where the sums lie in `box`, in pieces (piece_of() in sm90_gemm_tile.cuh), which fetches for the next ones. The whole
// warp calls them.
#pragma once

#include "kernels/common/sm90_gemm_tile.cuh"

namespace graft_kernels::sm90 {

inline constexpr int kHandoverThreads = 384;
inline constexpr int kHandoverStages = 3;
inline constexpr int kFinishers = 3;  // warps

// What one block holds in shared memory, in bytes.
struct HandoverShared {
  static constexpr int kRows = kGemmRows * kGemmDepth * 2;
  static constexpr int kBox = kGemmDepth * kBoxColumns * 2;  // of weights
  static constexpr int kBoxes = 2 * kGemmBoxColumns / kBoxColumns;
  static constexpr int kStage = kRows + kBoxes * kBox;
  static constexpr int kWarpSums = kBoxes * kResultBytes;
  static constexpr int kSums = kHandoverStages * kStage;
  static constexpr int kAll = kSums + 8 * kWarpSums + 1024;  // and alignment
};

struct HandoverBarriers {
  GemmBarriers<kHandoverStages> stages;
  uint64_t full[8];   // a computing warp's sums are there
  uint64_t taken[8];  // and finished

  __device__ __forceinline__ void init() {
    stages.init();
    for (int warp = 0; warp < 8; ++warp) {
      init_barrier(&full[warp], 1);
      init_barrier(&taken[warp], 1);
    }
  }
};

// Starts every copy, in one thread. `rank` is the block's in its cluster: it brings half of the columns' weights to both.
__device__ __forceinline__ void bring_turned_tiles(const CUtensorMap* x_map,
                                                   const CUtensorMap* w_map, const GemmTiles& tiles,
                                                   int rank, unsigned char* shared,
                                                   GemmBarriers<kHandoverStages>& barriers) {
  constexpr int kOwn = HandoverShared::kBoxes / kGemmCluster;
  RingSlot<kHandoverStages> slot;
  for (int tile = first_tile(); tile < tiles.count; tile += tile_step()) {
    const GemmPlace place = place_of(tiles, tile);
    const int row = (place.row_tile * kGemmCluster + rank) * kGemmRows;
    const int column = place.column_tile * tiles.tile_columns;
    for (int step = 0; step < tiles.steps; ++step, slot.step()) {
      unsigned char* rows = shared + slot.stage * HandoverShared::kStage;
      uint64_t* ready = &barriers.ready[slot.stage];
      wait(&barriers.free[slot.stage], slot.phase ^ 1);
      arrive_expecting(ready, HandoverShared::kStage);
      copy_matrix_box(rows, x_map, ready, step * kGemmDepth, row);
#pragma unroll
      for (int box = rank * kOwn; box < (rank + 1) * kOwn; ++box) {
        copy_matrix_box_to_all(rows + HandoverShared::kRows + box * HandoverShared::kBox, w_map,
                               ready, column + box * kBoxColumns, step * kGemmDepth,
                               (1 << kGemmCluster) - 1);
      }
    }
  }
}

// sum[64x256] of a warpgroup's rows over all steps.
template <typename T>
__device__ __forceinline__ void sum_turned_tile(float (&sum)[128], int steps, int group, int lane,
                                                unsigned char* shared,
                                                GemmBarriers<kHandoverStages>& barriers,
                                                RingSlot<kHandoverStages>& slot) {
  fence_registers(sum);
  for (int step = 0; step < steps; ++step, slot.step()) {
    const unsigned char* rows = shared + slot.stage * HandoverShared::kStage;
    const uint64_t a = describe_rows(rows + group * 64 * 128);
    const uint64_t b = describe_columns(rows + HandoverShared::kRows, HandoverShared::kBox);
    wait(&barriers.ready[slot.stage], slot.phase);
    fence_products();
#pragma unroll
    for (int part = 0; part < kGemmDepth / 16; ++part) {
      multiply_shared<T, true>(sum, a + part * 2, b + part * 16 * 128 / 16, step + part);
    }
    commit_products();
    // The other warpgroup's products fill the gap, and the stage is free a step earlier.
    wait_products<0>();
    if (lane < kGemmCluster) {
      arrive_at(&barriers.free[slot.stage], lane);
    }
  }
  fence_registers(sum);
}

// A warp's 16 rows of sums, rounded to T.
template <typename T>
__device__ __forceinline__ void store_sums(const float (&sum)[128], unsigned char* sums, int lane) {
#pragma unroll
  for (int box = 0; box < HandoverShared::kBoxes; ++box) {
    uint32_t pairs[kResultPairs];
#pragma unroll
    for (int index = 0; index < kResultPairs; ++index) {
      const int at = box * 32 + sum_of(index);
      pairs[index] = pack_pair<T>(sum[at], sum[at + 1]);
    }
    fill_box(sums + box * kResultBytes, lane, pairs);
  }
}

// Where the sums of one computing warp come from and go to.
struct GivenSums {
  int giver, phase, column;
  int64_t row;
  bool exists;

  // Number `turn` of a block, of eight givers to a tile.
  static __device__ __forceinline__ GivenSums of(const GemmTiles& tiles, int turn, int rank) {
    const int count = turn / 8, giver = turn % 8, tile = first_tile() + count * tile_step();
    const GemmPlace place = place_of(tiles, min(tile, tiles.count - 1));
    return {giver, count % 2, place.column_tile * tiles.tile_columns,
            int64_t{place.row_tile * kGemmCluster + rank} * kGemmRows + giver * 16,
            tile < tiles.count};
  }
};

// One of kFinishers warps finishes every kFinishers-th computing warp's sums.
template <class Finish>
__device__ __forceinline__ void finish_sums(const Finish& finish, const GemmTiles& tiles,
                                            int finisher, int rank, int lane,
                                            const unsigned char* sums, HandoverBarriers& barriers) {
  GivenSums given = GivenSums::of(tiles, finisher, rank);
  typename Finish::Fetched fetched;
  finish.fetch(fetched, given.row, given.column, lane);
  for (int turn = finisher; given.exists; turn += kFinishers) {
    const GivenSums next = GivenSums::of(tiles, turn + kFinishers, rank);
    for (int box = 0; box < HandoverShared::kBoxes; ++box) {
      finish.prefetch(next.row, next.column + box * kBoxColumns, lane);
    }
    wait(&barriers.full[given.giver], given.phase);
    const unsigned char* own = sums + given.giver * HandoverShared::kWarpSums;
#pragma unroll 1
    for (int box = 0; box < HandoverShared::kBoxes; ++box) {
      const bool is_last = box + 1 == HandoverShared::kBoxes;
      const int column = given.column + box * kBoxColumns;
      finish.finish_box(own + box * kResultBytes, fetched, given.row, column,
                        is_last ? next.row : given.row,
                        is_last ? next.column : column + kBoxColumns, lane);
    }
    __syncwarp();
    if (lane == 0) {
      arrive(&barriers.taken[given.giver]);
    }
    given = next;
  }
}

template <typename T, class Finish>
__global__ void __launch_bounds__(kHandoverThreads, 1)
    gemm_handover_sm90_kernel(const __grid_constant__ CUtensorMap x_map,
                              const __grid_constant__ CUtensorMap w_map,
                              const __grid_constant__ GemmTiles tiles,
                              const __grid_constant__ Finish finish) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ unsigned char unaligned[];
  __shared__ HandoverBarriers barriers;
  const auto [rank, warp, lane, shared] = begin_gemm(barriers, unaligned);
  unsigned char* sums = shared + HandoverShared::kSums;
  if (warp < 4) {
    give_registers<136>();
    if (threadIdx.x == 0) {
      bring_turned_tiles(&x_map, &w_map, tiles, rank, shared, barriers.stages);
    } else if (warp > 0) {
      finish_sums(finish, tiles, warp - 1, rank, lane, sums, barriers);
    }
  } else {
    take_registers<184>();
    const int own = warp - 4;
    RingSlot<kHandoverStages> slot;
    int phase = 0;
    for (int tile = first_tile(); tile < tiles.count; tile += tile_step(), phase ^= 1) {
      float sum[128];
      sum_turned_tile<T>(sum, tiles.steps, own / 4, lane, shared, barriers.stages, slot);
      wait(&barriers.taken[own], phase ^ 1);
      store_sums<T>(sum, sums + own * HandoverShared::kWarpSums, lane);
      __syncwarp();
      if (lane == 0) {
        arrive(&barriers.full[own]);
      }
    }
  }
  sync_cluster();  // the other block still frees stages here
#endif
}

}  // namespace graft_kernels::sm90
