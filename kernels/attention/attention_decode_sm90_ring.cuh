// The shared memory of the attention of few rows on Hopper, the keys that a block works on, and the warp that
// copies them. Device code, no Torch.
#pragma once

#include "kernels/attention/attention_append_kernel.cuh"
#include "kernels/attention/attention_decode_sm90.h"
#include "kernels/attention/attention_place.cuh"
#include "kernels/attention/sm90_wgmma.cuh"

namespace graft_kernels::attention::sm90 {

inline constexpr int kStageKeys = 64;
inline constexpr int kKeyWarps = 4;  // share a stage's keys
inline constexpr int kMaxStages = 16;
// Numbers of the hardware's barriers: the ring is set up, the queries are there, a tile's 16 keys are mended.
inline constexpr int kReadyBarrier = 1;
inline constexpr int kQueriesBarrier = 2;
inline constexpr int kTileBarrier = 3;

// Shared memory: the ring, the queries, and the ring's barriers. A stage holds keys, then values, each as
// boxes of 64 columns; rows are 128 bytes, swizzled. The merge takes the ring's place.
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
  static constexpr int kParts = kKeyWarps * kSets;  // of a row's keys
  static constexpr int kPitch = kD + 8;  // floats of a row of the merge: rows in different banks
  static constexpr int kMergeBytes = kParts * kRows * (kPitch + 2) * 4;
  static constexpr int bytes(int stages) {
    return stages * kStageBytes + kQueryBytes + 2 * kMaxStages * 8;
  }
};

struct RingBarriers {
  uint64_t full[kMaxStages];
  uint64_t free[kMaxStages];
};

// The block's rows and its part of the keys, cut at whole tiles. The grid is parts, blocks of rows of all key
// heads, batch: divisions take as long as a tile.
__device__ __forceinline__ Place decode_place(const DecodeProblem& problem, int cluster,
                                              int rows_together) {
  const Problem& base = problem.base;
  const unsigned parts = gridDim.x, part = blockIdx.x;
  const unsigned groups = static_cast<unsigned>(base.groups);
  const int rows = static_cast<int>(base.rows());
  Place place;
  place.batch = blockIdx.z;
  place.head = blockIdx.y;
  place.row = 0;
  int first_query = 0, last_query = static_cast<int>(base.queries) - 1;
  if (rows > rows_together) {
    const unsigned row_blocks = (static_cast<unsigned>(rows) + rows_together - 1) / rows_together;
    place.head = blockIdx.y / row_blocks;
    place.row = static_cast<int>(blockIdx.y % row_blocks) * rows_together;
    first_query = static_cast<int>(place.row / groups);
    last_query = static_cast<int>((min(place.row + rows_together, rows) - 1) / groups);
  }
  place.rows = min(rows_together, rows - place.row);
  place.block =
      (place.batch * base.key_heads + place.head) * base.row_blocks() + place.row / kBlockRows;
  place.split = cluster == 1 ? static_cast<int>(part) : static_cast<int>(part) / cluster;
  const int keys = static_cast<int>(base.keys);
  place.length =
      problem.lengths == nullptr ? keys : min(max(problem.lengths[place.batch], 0), keys);
  const int end = row_end(problem, place.length, last_query);
  const int begin = min(row_begin(problem, place.length, first_query), end);
  const int first = begin / kStageKeys;
  const unsigned tiles =
      begin < end ? static_cast<unsigned>((end + kStageKeys - 1) / kStageKeys - first) : 0U;
  const unsigned share = tiles / parts, extra = tiles - share * parts;
  const int from = first + static_cast<int>(part * share + min(part, extra));
  const int count = static_cast<int>(share + (part < extra ? 1U : 0U));
  place.begin = count == 0 ? 0 : max(begin, from * kStageKeys);
  place.end = count == 0 ? 0 : min(end, (from + count) * kStageKeys);
  return place;
}

// Brings a tensor's description near before the first copy asks for it.
__device__ __forceinline__ void prefetch_map(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// Barriers just set up become visible to bulk copies.
__device__ __forceinline__ void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

// What a copy leaves in L2: what is read once is the first to go, so that the stream passes through few
// lines instead of driving out everything else. The words are those of createpolicy.
inline constexpr uint64_t kKeepNormal = 0x1000000000000000U;
inline constexpr uint64_t kKeepLeast = 0x12F0000000000000U;

// copy_box() with a policy.
__device__ __forceinline__ void copy_box_keeping(void* to, const CUtensorMap* map,
                                                 uint64_t* barrier, int column, int row, int head,
                                                 int batch, uint64_t policy) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint "
      "[%0], [%1, {%3, %4, %5, %6}], [%2], %7;" ::"r"(shared_address(to)),
      "l"(map), "r"(shared_address(barrier)), "r"(column), "r"(row), "r"(head), "r"(batch),
      "l"(policy)
      : "memory");
}

// Places of the next 32 boxes, one a lane: page and row in it.
struct PageWindow {
  int first = 0;  // box
  int page = 0;
  int row = 0;
};

__device__ __forceinline__ PageWindow read_pages(const DecodeProblem& problem, const Place& place,
                                                 int box_keys, int first) {
  PageWindow window;
  window.first = first;
  const int key = (first + static_cast<int>(threadIdx.x) % 32) * box_keys;
  if (key + box_keys > place.begin && key < place.end) {
    const unsigned index = static_cast<unsigned>(key) / static_cast<unsigned>(problem.page_keys);
    window.page = problem.table[place.batch * problem.table_stride + index];
    window.row = key - static_cast<int>(index) * problem.page_keys;
  }
  return window;
}

// Boxes of keys by the even lanes, of values by the odd ones.
template <typename Ring>
__device__ __forceinline__ void copy_tiles(const CUtensorMap& key_map, const CUtensorMap& value_map,
                                           const DecodeProblem& problem, const DecodeShape& shape,
                                           const Place& place, unsigned char* ring,
                                           RingBarriers& barriers) {
  const int lane = threadIdx.x % 32;
  const CUtensorMap* map = lane % 2 == 0 ? &key_map : &value_map;
  const int box = lane / 2;
  const bool copies = box < Ring::kBoxes;
  const int boxes = kStageKeys / shape.box_keys;  // of a tile's keys
  const bool paged = problem.table != nullptr;
  const uint64_t policy = shape.read_once ? kKeepLeast : kKeepNormal;
  int first = place.begin / kStageKeys * kStageKeys;
  PageWindow pages, ahead;
  if (paged) {
    pages = read_pages(problem, place, shape.box_keys, first / shape.box_keys);
    ahead = read_pages(problem, place, shape.box_keys, pages.first + 32);
  }
  for (int stage = 0, phase = 1; first < place.end; first += kStageKeys) {
    unsigned char* to =
        ring + stage * Ring::kStageBytes + (lane % 2 * Ring::kBoxes + box) * Ring::kBoxBytes;
    wait(&barriers.free[stage], phase);
    // Boxes that hold a key some row sees.
    const int skip = max(place.begin - first, 0) / shape.box_keys;
    const int last = min(boxes, (place.end - first + shape.box_keys - 1) / shape.box_keys);
    if (lane == 0) {
      arrive_expecting(&barriers.full[stage],
                       (last - skip) * 2 * Ring::kBoxes * shape.box_keys * 128);
    }
    __syncwarp();
    if (!paged) {
      if (copies) {
        copy_box_keeping(to, map, &barriers.full[stage], box * kBoxColumns, first,
                         static_cast<int>(place.head), static_cast<int>(place.batch), policy);
      }
    } else {
      const int at = first / shape.box_keys;
      if (at >= pages.first + 32) {
        pages = ahead;
        ahead = read_pages(problem, place, shape.box_keys, pages.first + 32);
      }
      for (int index = skip; index < last; ++index) {
        const int page = __shfl_sync(0xFFFFFFFFU, pages.page, at + index - pages.first);
        const int row = __shfl_sync(0xFFFFFFFFU, pages.row, at + index - pages.first);
        if (copies) {
          copy_box_keeping(to + index * shape.box_keys * 128, map, &barriers.full[stage],
                           box * kBoxColumns, row, static_cast<int>(place.head), page, policy);
        }
      }
    }
    if (++stage == shape.stages) {
      stage = 0;
      phase ^= 1;
    }
  }
}

}  // namespace graft_kernels::attention::sm90
