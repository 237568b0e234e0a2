// The shared memory of the attention of few rows on Hopper, the keys that a block works on, and the warp that
// copies them. Device code, no Torch.
#pragma once

#include "kernels/attention/attention_append_kernel.cuh"
#include "kernels/attention/attention_decode_sm90.h"
#include "kernels/attention/attention_place.cuh"
#include "kernels/attention/sm90_wgmma.cuh"

namespace graft_kernels::attention::sm90 {

inline constexpr int kStageKeysLog2 = 6;
inline constexpr int kStageKeys = 1 << kStageKeysLog2;
inline constexpr int kKeyWarps = 4;  // share a stage's keys
inline constexpr int kMaxStages = 16;
// Numbers of the hardware's barriers: the ring is set up, the queries are there, a tile's 16 keys are mended.
inline constexpr int kReadyBarrier = 1;
inline constexpr int kQueriesBarrier = 2;
inline constexpr int kTileBarrier = 3;

struct alignas(16) RingBarriers {
  uint64_t full[kMaxStages];
  uint64_t free[kMaxStages];
  uint64_t sent;  // all of what the cluster's blocks send this one
  bool is_last;   // of the clusters that come to where theirs meet
};

// Shared memory: the barriers, the queries, the ring, and what the blocks of a cluster send one another. A stage
// holds keys, then values, each as boxes of 64 columns; rows are 128 bytes, swizzled. The merge takes the ring's place.
template <int kHead, int kRowTiles, int kSetCount>
struct DecodeRing {
  static constexpr int kD = kHead;
  static constexpr int kSets = kSetCount;
  static constexpr int kSetWarps = kKeyWarps * kRowTiles;
  static constexpr int kWarps = kSetWarps * kSets;  // that compute
  static constexpr int kThreads = 32 * (kWarps + 1);
  static constexpr int kBoxes = kD / 64;
  static constexpr int kBoxBytes = kStageKeys * 128;
  static constexpr int kStageBytes = 2 * kBoxes * kBoxBytes;
  static constexpr int kRows = kRowTiles * kBlockRows;
  static constexpr int kQueryPitch = kD + 8;  // elements
  static constexpr int kQueryBytes = kRows * kQueryPitch * 2;
  // Where the ring begins.
  static constexpr int kFixedBytes =
      (static_cast<int>(sizeof(RingBarriers)) + kQueryBytes + 1023) / 1024 * 1024;
  static constexpr int kFours = kD / 4;             // of a row's columns
  static constexpr int kParts = kKeyWarps * kSets;  // of a row's keys
  static constexpr int kPitch = kD + 8;  // floats of a row of the merge: rows in different banks
  static constexpr int kMergeBytes = kParts * kRows * (kPitch + 2) * 4;
  // Four columns each of the block's share, from every sender, then largest score and sum of every row.
  static constexpr int kSentColumns = (kRows * kD / 4 + kMostCluster) * 16;
  static constexpr int kSentBytes = kSentColumns + kMostCluster * kRows * 8;
  // Where it fits beside the ring, blocks need not wait for one another's rings to be used up.
  static constexpr bool kSentApart = kRows * kD <= 16 * 256;
  static constexpr int kMergeRing = kMergeBytes + (kSentApart ? 0 : kSentBytes);
  // Behind it, what other splits found: four columns, largest score and sum of at least one four.
  static constexpr int kMetBytes = 24;
  static constexpr int kLeastRing = kMergeRing + kMaxSplits * kMetBytes;
  static constexpr int bytes(int stages, bool clustered) {
    return kFixedBytes + stages * kStageBytes + (clustered && kSentApart ? kSentBytes : 0);
  }
};

// A block's part of the keys: every `step`-th tile of those that its rows see.
struct Tiles {
  int first;  // key
  int step;   // keys
  int count;
};

// The block's rows, and the keys that some of them see. The grid is parts, blocks of rows of all key heads, batch:
// divisions take as long as a tile.
__device__ __forceinline__ Place decode_place(const DecodeShape& shape, int rows_together) {
  const int part = static_cast<int>(blockIdx.x), rows = shape.rows;
  Place place;
  place.batch = blockIdx.z;
  place.head = blockIdx.y;
  place.row = 0;
  if (rows > rows_together) {
    const unsigned row_blocks = (static_cast<unsigned>(rows) + rows_together - 1) / rows_together;
    place.head = blockIdx.y / row_blocks;
    place.row = static_cast<int>(blockIdx.y % row_blocks) * rows_together;
  }
  place.rows = min(rows_together, rows - place.row);
  place.block = 0;  // nobody asks
  place.split = part >> (31 - __clz(shape.cluster));
  return place;
}

// Where the keys end is in the device's memory.
__device__ __forceinline__ Tiles find_keys(const DecodeProblem& problem, const DecodeShape& shape,
                                           int rows_together, int length, Place& place) {
  const Problem& base = problem.base;
  const unsigned groups = static_cast<unsigned>(base.groups);
  int first_query = 0, last_query = static_cast<int>(base.queries) - 1;
  if (shape.rows > rows_together) {
    first_query = static_cast<int>(place.row / groups);
    last_query = static_cast<int>((place.row + place.rows - 1) / groups);
  }
  place.length = min(max(length, 0), shape.room);
  place.end = row_end(problem, place.length, last_query);
  place.begin = min(row_begin(problem, place.length, first_query), place.end);
  const int first = place.begin / kStageKeys, parts = static_cast<int>(gridDim.x);
  const int tiles = place.begin < place.end ? (place.end + kStageKeys - 1) / kStageKeys - first : 0;
  const int own = tiles - static_cast<int>(blockIdx.x) + parts - 1;
  return {(first + static_cast<int>(blockIdx.x)) * kStageKeys, parts * kStageKeys,
          own < parts
              ? 0
              : static_cast<int>(static_cast<unsigned>(own) / static_cast<unsigned>(parts))};
}

// Brings a tensor's description near before the first copy asks for it.
__device__ __forceinline__ void prefetch_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// Barriers just set up become visible to bulk copies.
__device__ __forceinline__ void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// Without a word on memory, which would wait for the device's: enough after publish_barriers().
__device__ __forceinline__ void arrive_cluster_relaxed() {
  asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
}

// What a copy leaves in L2: what is read once is the first to go, so that the stream passes through few
// lines instead of driving out everything else. The words are those of createpolicy.
inline constexpr uint64_t kKeepNormal = 0x1000000000000000U;
inline constexpr uint64_t kKeepLeast = 0x12F0000000000000U;

// Rows of a box: `column` of the head's, or all of its columns box after box (joined).
__device__ __forceinline__ void copy_rows_keeping(void* to, const CUtensorMap* map,
                                                  uint64_t* barrier, int column, int row, int head,
                                                  int batch, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%3, %4, %5, %6, %7}], [%2], %8;" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(barrier)), "r"(column), "r"(row), "r"(0), "r"(head), "r"(batch),
      "l"(policy)
      : "memory");
}

// Rows of a tile as copies lay them down: those of a box, then its further columns', then the next box.
struct TileRows {
  int box_log2;
  int box_columns;  // bytes from 64 columns to the next
  int eight_rows;   // bytes from eight rows to the next, of 16 that begin at a multiple of 16

  template <typename Ring>
  static __device__ __forceinline__ TileRows of(const DecodeShape& shape) {
    return {shape.box_log2, 128 << shape.box_log2,
            shape.box_log2 == 3 ? Ring::kBoxes * 1024 : 1024};
  }
  // Where 16 rows begin.
  template <typename Ring>
  __device__ __forceinline__ int at(int row) const {
    return row * 128 + (row >> box_log2) * ((Ring::kBoxes - 1) * box_columns);
  }
  // An element of these 16.
  __device__ __forceinline__ int element(int row, int column) const {
    return column / 64 * box_columns + row / 8 * eight_rows + row % 8 * 128 +
           ((column % 64 / 8) ^ (row % 8)) * 16 + column % 8 * 2;
  }
};

// Pages and rows in them of the boxes of the next tiles, one a lane.
struct PageWindow {
  int page = 0;
  int row = 0;
};

// The warp that copies. Keys by even lanes, values by odd ones.
template <typename Ring>
struct Copier {
  const CUtensorMap *key_map, *value_map;
  const DecodeProblem& problem;
  const DecodeShape& shape;
  unsigned char* ring;
  RingBarriers& barriers;
  int lane;
  int boxes_log2, boxes;  // of a tile's keys
  int tiles_ahead;        // whose pages are read together

  __device__ __forceinline__ Copier(const CUtensorMap& keys, const CUtensorMap& values,
                                    const DecodeProblem& of, const DecodeShape& as,
                                    unsigned char* to, RingBarriers& ready)
      : key_map(&keys),
        value_map(&values),
        problem(of),
        shape(as),
        ring(to),
        barriers(ready),
        lane(static_cast<int>(threadIdx.x) % 32),
        boxes_log2(kStageKeysLog2 - as.box_log2),
        boxes(1 << boxes_log2),
        tiles_ahead(32 >> boxes_log2) {}

  // From the tile that begins at key `first`; `end`: of the keys that may be asked for.
  __device__ __forceinline__ PageWindow read_pages(const Place& place, int first, int step,
                                                   int end) const {
    PageWindow window;
    const int key = first + (lane >> boxes_log2) * step + ((lane & (boxes - 1)) << shape.box_log2);
    if (shape.paged && key < end) {
      const unsigned index = static_cast<unsigned>(key) / static_cast<unsigned>(problem.page_keys);
      window.page = problem.table[place.batch * problem.table_stride + index];
      window.row = key - static_cast<int>(index) * problem.page_keys;
    }
    return window;
  }

  // Keys [max(first, begin), min(first + kStageKeys, end)) into a free stage, in whole boxes; `from`: of the window's
  // lanes, where the tile's boxes begin.
  __device__ __forceinline__ void copy_tile(const Place& place, int first, int begin, int end,
                                            const PageWindow& window, int from, int stage) const {
    const uint64_t policy = shape.read_once ? kKeepLeast : kKeepNormal;
    const int skip = max(begin - first, 0) >> shape.box_log2;
    const int last = min(boxes, (end - first + (1 << shape.box_log2) - 1) >> shape.box_log2);
    const int box_bytes = 128 << shape.box_log2;  // of 64 columns
    if (lane == 0) {
      arrive_expecting(&barriers.full[stage], (last - skip) * (2 * Ring::kBoxes) * box_bytes);
    }
    __syncwarp();
    const int index = lane / 2;
    int row = first + (index << shape.box_log2), page = static_cast<int>(place.batch);
    if (shape.paged) {
      page = __shfl_sync(0xFFFFFFFFU, window.page, from + index);
      row = __shfl_sync(0xFFFFFFFFU, window.row, from + index);
    }
    if (index >= skip && index < last) {
      const CUtensorMap* map = lane % 2 == 0 ? key_map : value_map;
      unsigned char* to = ring + stage * Ring::kStageBytes + lane % 2 * (Ring::kStageBytes / 2) +
                          index * Ring::kBoxes * box_bytes;
      const int pieces = shape.joined ? 1 : Ring::kBoxes;
#pragma unroll 1
      for (int piece = 0; piece < pieces; ++piece) {
        copy_rows_keeping(to + piece * box_bytes, map, &barriers.full[stage], piece * kBoxColumns,
                          row, static_cast<int>(place.head), page, policy);
      }
    }
  }

  // All of a part's tiles. Early: the first is asked for before it is known whether the keys reach it, and before the
  // barriers of the others are set up.
  __device__ __forceinline__ void run(Place& place, int length) const {
    const int step = static_cast<int>(gridDim.x) * kStageKeys;
    int first = static_cast<int>(blockIdx.x) * kStageKeys;
    const bool early = shape.early && first < shape.room;
    PageWindow pages;
    if (early) {
      pages = read_pages(place, first, step, shape.room);
      copy_tile(place, first, 0, shape.room, pages, 0, 0);
    }
    sync_named(kReadyBarrier, Ring::kThreads);
    const Tiles tiles = find_keys(problem, shape, Ring::kRows, length, place);
    if (early && tiles.count == 0) {
      wait(&barriers.full[0], 0);  // the merge takes the ring's place
    }
    if (!early) {
      first = tiles.first;
      pages = read_pages(place, first, step, place.end);
    }
    PageWindow ahead = read_pages(place, first + tiles_ahead * step, step, place.end);
    int index = early ? 1 : 0, stage = index, phase = 1, from = index * boxes;
    first += index * step;
#pragma unroll 1
    for (; index < tiles.count; ++index, first += step) {
      if (from == tiles_ahead * boxes) {
        from = 0;
        pages = ahead;
        ahead = read_pages(place, first + tiles_ahead * step, step, place.end);
      }
      wait(&barriers.free[stage], phase);
      copy_tile(place, first, place.begin, place.end, pages, from, stage);
      from += boxes;
      if (++stage == shape.stages) {
        stage = 0;
        phase ^= 1;
      }
    }
  }
};

}  // namespace graft_kernels::attention::sm90
