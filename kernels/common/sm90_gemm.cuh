// Products of 16-bit matrices on Hopper, sums in float32: out[M, N] = epilogue(x[M, K] w[N, K]^T). Device code,
// no Torch.
//
// A block has a warpgroup whose one thread starts every copy, and two that compute 64 rows of a tile of 128x256
// each (wgmma m64n256k16). Two blocks, one tile above the other, form a cluster: each brings its own rows of x,
// and half of the columns' weights into both. Blocks stay and take one tile after the other, in groups of rows
// that share weights in L2. The 256 columns come as two boxes of 128, of one weight or of two, whose sums the
// same thread then has: gate and up of an MLP.
//
// An epilogue has a ResultMatrix `matrix` and, for a warp's 16 rows from `row` on and the tile's columns from `column`
// on, prepare(row, column, lane) before the sums and finish(sum, row, column, lane, results) after them, with 4 KiB
// of shared memory for the results: see sm90_gemm_tile.cuh.
#pragma once

#include "kernels/common/sm90_cluster.cuh"

namespace graft_kernels::sm90 {

inline constexpr int kGemmRows = 128;        // of a tile
inline constexpr int kGemmBoxColumns = 128;  // of a box of weights; two to a tile
inline constexpr int kGemmDepth = 64;        // of a step
inline constexpr int kGemmThreads = 384;
inline constexpr int kGemmCluster = 2;  // blocks
inline constexpr int kGemmStages = 4;
// Steps that the first computing warpgroup is ahead of the second: one's epilogue hides behind the other's products.
inline constexpr int kGemmHeadStart = 2;

// What one block holds in shared memory, in bytes.
struct GemmShared {
  static constexpr int kRows = kGemmRows * kGemmDepth * 2;
  static constexpr int kBox = kGemmBoxColumns * kGemmDepth * 2;
  static constexpr int kStage = kRows + 2 * kBox;
  static constexpr int kWarpResults = 16 * 128 * 2;  // on their way
  static constexpr int kResults = kGemmStages * kStage;
  static constexpr int kAll = kResults + 8 * kWarpResults + 1024;  // and alignment
};

// How the tiles of a product are counted.
struct GemmTiles {
  int steps = 0;         // of 64 along the depth
  int tile_columns = 0;  // of out: 256, or 128 of two weights
  int second_box = 0;    // rows from the first box's to the second one's
  int row_tiles = 0;     // for a whole cluster
  int column_tiles = 0;
  int group_rows = 0;  // row tiles that go along the columns together
  int count = 0;
};

struct GemmPlace {
  int row_tile, column_tile;
};

__device__ __forceinline__ GemmPlace place_of(const GemmTiles& tiles, int tile) {
  const int group_size = tiles.group_rows * tiles.column_tiles;
  const int group = tile / group_size, rest = tile - group * group_size;
  const int first = group * tiles.group_rows, rows = min(tiles.row_tiles - first, tiles.group_rows);
  const int column = rest / rows;
  return {first + rest - column * rows, column};
}

// A cluster's own tiles.
__device__ __forceinline__ int first_tile() { return static_cast<int>(blockIdx.x) / kGemmCluster; }
__device__ __forceinline__ int tile_step() { return static_cast<int>(gridDim.x) / kGemmCluster; }

template <int kStages = kGemmStages>
struct GemmBarriers {
  uint64_t ready[kStages];
  uint64_t free[kStages];

  // By one thread, before the cluster meets.
  __device__ __forceinline__ void init() {
    for (int stage = 0; stage < kStages; ++stage) {
      init_barrier(&ready[stage], 1);
      init_barrier(&free[stage], 8 * kGemmCluster);  // computing warps
    }
  }
};

// Starts every copy, in one thread. `rank` is the block's in its cluster.
__device__ __forceinline__ void bring_tiles(const CUtensorMap* x_map, const CUtensorMap* first_map,
                                            const CUtensorMap* second_map, const GemmTiles& tiles,
                                            int rank, unsigned char* shared,
                                            GemmBarriers<>& barriers) {
  RingSlot<kGemmStages> slot;
  const CUtensorMap* own_map = rank == 0 ? first_map : second_map;
  for (int tile = first_tile(); tile < tiles.count; tile += tile_step()) {
    const GemmPlace place = place_of(tiles, tile);
    const int row = (place.row_tile * kGemmCluster + rank) * kGemmRows;
    const int column = place.column_tile * tiles.tile_columns + rank * tiles.second_box;
    for (int step = 0; step < tiles.steps; ++step, slot.step()) {
      unsigned char* rows = shared + slot.stage * GemmShared::kStage;
      uint64_t* ready = &barriers.ready[slot.stage];
      wait(&barriers.free[slot.stage], slot.phase ^ 1);
      arrive_expecting(ready, GemmShared::kStage);
      copy_matrix_box(rows, x_map, ready, step * kGemmDepth, row);
      copy_matrix_box_to_all(rows + GemmShared::kRows + rank * GemmShared::kBox, own_map, ready,
                             step * kGemmDepth, column, (1 << kGemmCluster) - 1);
    }
  }
}

// Barrier of the hardware between the computing warpgroups.
inline constexpr int kGemmTurn = 1;

// sum[64x256] of a warpgroup's rows over all steps.
template <typename T>
__device__ __forceinline__ void sum_tile(float (&sum)[128], int steps, int group, int lane,
                                         unsigned char* shared, GemmBarriers<>& barriers,
                                         RingSlot<kGemmStages>& slot) {
  // With fewer steps than stages the first could be a whole tile ahead, and meet the barrier twice.
  const bool in_turn = steps >= kGemmStages;
  if (in_turn && group == 1) {
    sync_named(kGemmTurn, 256);
  }
  fence_registers(sum);
  for (int step = 0; step < steps; ++step, slot.step()) {
    const unsigned char* rows = shared + slot.stage * GemmShared::kStage;
    const uint64_t a = describe_rows(rows + group * 64 * 128);
    const uint64_t b = describe_rows(rows + GemmShared::kRows);
    wait(&barriers.ready[slot.stage], slot.phase);
    fence_products();
#pragma unroll
    for (int part = 0; part < kGemmDepth / 16; ++part) {
      multiply_shared<T>(sum, a + part * 2, b + part * 2, step + part);
    }
    commit_products();
    if (in_turn && group == 0 && step == kGemmHeadStart - 1) {
      arrive_named(kGemmTurn, 256);
    }
    // The other warpgroup's products fill the gap, and the stage is free a step earlier.
    wait_products<0>();
    if (lane < kGemmCluster) {
      arrive_at(&barriers.free[slot.stage], lane);
    }
  }
  fence_registers(sum);
}

// Where a thread is.
struct GemmThread {
  int rank;  // of its block in the cluster
  int warp, lane;
  unsigned char* shared;
};

// Every thread of a block begins with this; `unaligned` is the block's shared memory.
template <class Barriers>
__device__ __forceinline__ GemmThread begin_gemm(Barriers& barriers, unsigned char* unaligned) {
  if (threadIdx.x == 0) {
    barriers.init();
    fence_barrier_inits();
  }
  sync_cluster();
  // The warp is the same in all of its threads, which the compiler must know where products are started; swizzled
  // tiles start at multiples of 1024 bytes.
  return {rank_in_cluster(), __shfl_sync(0xFFFFFFFFU, static_cast<int>(threadIdx.x) / 32, 0),
          static_cast<int>(threadIdx.x) % 32,
          unaligned + (1024 - shared_address(unaligned) % 1024) % 1024};
}

template <typename T, class Epilogue>
__global__ void __launch_bounds__(kGemmThreads, 1)
    gemm_sm90_kernel(const __grid_constant__ CUtensorMap x_map,
                     const __grid_constant__ CUtensorMap first_map,
                     const __grid_constant__ CUtensorMap second_map,
                     const __grid_constant__ GemmTiles tiles,
                     const __grid_constant__ Epilogue epilogue) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ unsigned char unaligned[];
  __shared__ GemmBarriers<> barriers;
  const auto [rank, warp, lane, shared] = begin_gemm(barriers, unaligned);
  if (warp < 4) {
    give_registers<40>();
    if (threadIdx.x == 0) {
      bring_tiles(&x_map, &first_map, &second_map, tiles, rank, shared, barriers);
    }
  } else {
    take_registers<232>();
    unsigned char* results = shared + GemmShared::kResults + (warp - 4) * GemmShared::kWarpResults;
    RingSlot<kGemmStages> slot;
    for (int tile = first_tile(); tile < tiles.count; tile += tile_step()) {
      const GemmPlace place = place_of(tiles, tile);
      const int64_t row =
          int64_t{place.row_tile * kGemmCluster + rank} * kGemmRows + (warp - 4) * 16;
      const int column = place.column_tile * tiles.tile_columns;
      float sum[128];
      epilogue.prepare(row, column, lane);
      sum_tile<T>(sum, tiles.steps, warp / 4 - 1, lane, shared, barriers, slot);
      epilogue.finish(sum, row, column, lane, results);
    }
    epilogue.matrix.wait_sent(lane);  // shared memory ends with the block
  }
  sync_cluster();  // the other block still frees stages here
#endif
}

}  // namespace graft_kernels::sm90
