// Launches the attention of few queries on Hopper: descriptions of the cache for the bulk copies, and how
// many blocks work on a head's keys.

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cstdint>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>

#include "kernels/attention/attention_decode_sm90.h"
#include "kernels/attention/attention_decode_sm90_kernel.cuh"
#include "kernels/attention/sm90_tensor_map.h"
#include "kernels/common/cuda_launch.h"

namespace graft_kernels::attention {

namespace {

using sm90::is_whole_vectors;
using sm90::kStageKeys;

// Swizzled tiles repeat every eight rows: a copy of fewer would begin inside one.
constexpr int kLeastBoxKeys = 8;
// A part of fewer keys costs more to merge through device memory than it saves.
constexpr int64_t kLeastTilesPerSplit = 8;
// Boxes of so few keys take longer to copy than memory to deliver, where a block has more than so many of them.
constexpr int kSmallBoxLog2 = 4;
constexpr int64_t kManyCopies = 320;
// Bytes of a ring that is soon worked through, and how many tiles that is.
constexpr int kShortRing = 128 << 10;
constexpr int64_t kFewTiles = 32;
// In units of L2.
constexpr int64_t kLongStream = 4;
// Longest head of which two blocks fit on a processor.
constexpr int64_t kMostShared = 128;
constexpr int kMostClusterLog2 = 4;
static_assert(kMostCluster == 1 << kMostClusterLog2);
// Of a launch's second and third dimension.
constexpr int64_t kMostGrid = 65535;

using DecodeKernel = void (*)(DecodeShape, CUtensorMap, CUtensorMap, DecodeProblem);

// What is asked of a device once: log2 of a cluster's blocks, then one or two blocks a processor.
struct Prepared {
  std::atomic<int> shared_bytes;                       // largest of a block
  std::atomic<int> clusters[kMostClusterLog2 + 1][2];  // that fit at a time, plus one
};

// One instance of the kernel, and what it needs.
struct Instance {
  DecodeKernel kernel;
  int threads;
  int stage_bytes;
  int other_bytes;                     // beside the stages
  int cluster_bytes;                   // and those of a cluster
  int least_stages;                    // that the merge fits into
  std::array<Prepared, 64>* prepared;  // by device
};

template <typename T, int kD, int kRowTiles, int kSets>
Instance instance() {
  using Ring = sm90::DecodeRing<kD, kRowTiles, kSets>;
  static std::array<Prepared, 64> prepared;
  return {sm90::attention_decode_sm90_kernel<T, kD, kRowTiles, kSets>,
          Ring::kThreads,
          Ring::kStageBytes,
          Ring::bytes(0, false),
          Ring::bytes(0, true) - Ring::bytes(0, false),
          std::max((Ring::kLeastRing + Ring::kStageBytes - 1) / Ring::kStageBytes, kSets),
          &prepared};
}

template <typename T, int kRowTiles, int kSets>
Instance instance(int64_t head_dim) {
  if (head_dim <= 128) {
    return head_dim <= 64 ? instance<T, 64, kRowTiles, kSets>()
                          : instance<T, 128, kRowTiles, kSets>();
  }
  return head_dim <= 192 ? instance<T, 192, kRowTiles, kSets>()
                         : instance<T, 256, kRowTiles, kSets>();
}

template <typename T>
Instance instance(int64_t head_dim, const DecodeShape& shape) {
  if (shape.row_tiles == 2) {
    return instance<T, 2, 1>(head_dim);
  }
  return shape.sets == 1 ? instance<T, 1, 1>(head_dim) : instance<T, 1, 2>(head_dim);
}

Instance instance(const Problem& base, const DecodeShape& shape) {
  return base.dtype == Dtype::kBfloat16 ? instance<Bf16>(base.head_dim, shape)
                                        : instance<Fp16>(base.head_dim, shape);
}

Prepared& prepare(const Instance& instance) {
  int device = 0;
  check_cuda(cudaGetDevice(&device), "cudaGetDevice");
  Prepared& prepared = (*instance.prepared)[static_cast<size_t>(device) % 64];
  if (prepared.shared_bytes.load(std::memory_order_acquire) == 0) {
    int most = 0;
    check_cuda(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
               "cudaDeviceGetAttribute");
    check_cuda(
        cudaFuncSetAttribute(instance.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most),
        "cudaFuncSetAttribute");
    check_cuda(
        cudaFuncSetAttribute(instance.kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
        "cudaFuncSetAttribute");
    prepared.shared_bytes.store(most, std::memory_order_release);
  }
  return prepared;
}

// Stages that fit with `per_processor` blocks on a processor; a block alone may be one of a cluster.
int stages_of(const Instance& instance, int per_processor) {
  const int most = prepare(instance).shared_bytes.load(std::memory_order_acquire);
  const int room = (most + 1024) / per_processor - 1024 - instance.other_bytes -
                   (per_processor == 1 ? instance.cluster_bytes : 0);
  return std::min(room / instance.stage_bytes, sm90::kMaxStages);
}

cudaLaunchConfig_t configure(const Instance& instance, int stages, dim3 grid,
                             cudaLaunchAttribute* attributes, int cluster) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(instance.threads));
  config.dynamicSmemBytes =
      static_cast<size_t>(instance.other_bytes + stages * instance.stage_bytes +
                          (cluster > 1 ? instance.cluster_bytes : 0));
  config.attrs = attributes;
  if (cluster > 1) {
    attributes[0].id = cudaLaunchAttributeClusterDimension;
    attributes[0].val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
    config.numAttrs = 1;
  }
  return config;
}

// Clusters that the device holds at a time: its processors come in groups of different sizes.
int clusters_together(const Instance& instance, int cluster, int per_processor) {
  const int log2 = std::countr_zero(static_cast<unsigned>(cluster));
  std::atomic<int>& known = prepare(instance).clusters[log2][per_processor - 1];
  int count = known.load(std::memory_order_acquire);
  if (count == 0) {
    cudaLaunchAttribute attributes[1] = {};
    const cudaLaunchConfig_t config =
        configure(instance, stages_of(instance, per_processor),
                  dim3(static_cast<unsigned>(cluster)), attributes, cluster);
    check_cuda(cudaOccupancyMaxActiveClusters(&count, instance.kernel, &config),
               "cudaOccupancyMaxActiveClusters");
    known.store(++count, std::memory_order_release);
  }
  return count - 1;
}

int box_keys(const DecodeProblem& problem) {
  return problem.table == nullptr
             ? kStageKeys
             : static_cast<int>(std::gcd(problem.page_keys, int32_t{kStageKeys}));
}

bool is_strided(const int64_t (&stride)[3], int64_t a, int64_t b, int64_t c) {
  return (stride[0] > 0 || a == 1) && (stride[1] > 0 || b == 1) && (stride[2] > 0 || c == 1);
}

// Columns of 64 elements become a dimension of their own where they fill the head: all of them are one copy.
bool is_joined(const Problem& base) { return base.head_dim % sm90::kBoxColumns == 0; }

CUtensorMap describe_cache(const DecodeProblem& problem, const DecodeShape& shape, const void* from,
                           const int64_t (&stride)[3]) {
  const Problem& base = problem.base;
  const auto size = [](int64_t count) { return static_cast<cuuint64_t>(count); };
  const auto bytes = [](int64_t count, int64_t of) {
    return static_cast<cuuint64_t>(count == 1 ? 16 : of * 2);
  };
  const int64_t columns = shape.joined ? base.head_dim / sm90::kBoxColumns : 1;
  const int64_t rows = shape.paged ? problem.page_keys : base.keys;
  const int64_t batch = shape.paged ? problem.pages : base.batch;
  const cuuint64_t sizes[5] = {size(base.head_dim / columns), size(rows), size(columns),
                               size(base.key_heads), size(batch)};
  const cuuint64_t strides[4] = {bytes(rows, stride[2]), bytes(columns, sm90::kBoxColumns),
                                 bytes(base.key_heads, stride[1]), bytes(batch, stride[0])};
  const cuuint32_t box[5] = {sm90::kBoxColumns, cuuint32_t{1} << shape.box_log2,
                             static_cast<cuuint32_t>(columns), 1, 1};
  const cuuint32_t steps[5] = {1, 1, 1, 1, 1};
  CUtensorMap map;
  const CUresult status = graft_kernels::sm90::encode_function()(
      &map,
      base.dtype == Dtype::kBfloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                     : CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
      5, const_cast<void*>(from), sizes, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      CU_TENSOR_MAP_SWIZZLE_128B,
      shape.wide ? CU_TENSOR_MAP_L2_PROMOTION_L2_256B : CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) {
    throw std::runtime_error("[cuda] cuTensorMapEncodeTiled: expected CUDA_SUCCESS, got " +
                             std::to_string(static_cast<int>(status)));
  }
  return map;
}

// Requests of 256 bytes are answered faster than those of 128 by memory of 3.35 TB/s (186 against 191 µs for 537 MB), and
// slower by that of 4.9 TB/s (139 against 132).
bool reads_wide() {
  int device = 0;
  check_cuda(cudaGetDevice(&device), "cudaGetDevice");
  return 2e3 / 8 * device_attribute(device, cudaDevAttrMemoryClockRate) *
             device_attribute(device, cudaDevAttrGlobalMemoryBusWidth) <
         4e12;
}

// Differs from those of all other launches of this process, and from what memory happens to hold.
uint64_t next_launch() {
  static std::atomic<uint64_t> next{std::random_device{}() | uint64_t{1} << 40};
  return next.fetch_add(1, std::memory_order_relaxed) & ((uint64_t{1} << 56) - 1);
}

}  // namespace

const char* why_not_decode_sm90(const DecodeProblem& problem, int compute_capability) {
  const Problem& base = problem.base;
  if (compute_capability != 90) {
    return "needs compute capability 9.0";
  }
  if (base.dtype == Dtype::kFloat32 || base.head_dim % 8 != 0) {
    return "16-bit heads of a multiple of 8 alone";
  }
  if (base.keys == 0 || (problem.table != nullptr && problem.pages == 0)) {
    return "no keys";
  }
  if (base.mask != nullptr) {
    return "takes no mask";
  }
  if (base.key_heads * ((base.rows() + kBlockRows - 1) / kBlockRows) > kMostGrid ||
      base.batch > kMostGrid || base.keys > INT32_MAX - 2 * kStageKeys) {
    return "too many heads, entries or keys";
  }
  if (box_keys(problem) < kLeastBoxKeys) {
    return "pages of a multiple of 8 keys alone";
  }
  const int64_t batch = problem.table == nullptr ? base.batch : problem.pages;
  const int64_t keys = problem.table == nullptr ? base.keys : problem.page_keys;
  const bool whole = is_whole_vectors(base.query, base.query_stride) &&
                     is_whole_vectors(base.key, base.key_stride) &&
                     is_whole_vectors(base.value, base.value_stride) &&
                     is_whole_vectors(base.out, base.out_stride);
  if (!whole) {
    return "rows off 16 bytes";
  }
  return is_strided(base.key_stride, batch, base.key_heads, keys) &&
                 is_strided(base.value_stride, batch, base.key_heads, keys)
             ? ""
             : "keys that lie on one another";
}

namespace {

int64_t row_blocks(const Problem& base, const DecodeShape& shape) {
  const int64_t rows = kBlockRows * shape.row_tiles;
  return (base.rows() + rows - 1) / rows;
}

// Two sets of warps hide more of one another's latency. A wait tells odd rounds of a stage from even ones alone, so a
// set must wait for every round of the stages it comes to: their number is even, or there is one set.
Instance choose_sets(const Problem& base, bool shared, DecodeShape& shape) {
  if (shape.row_tiles == 1 && !shared) {
    shape.sets = 2;
    const Instance two = instance(base, shape);
    shape.stages = stages_of(two, 1) / 2 * 2;
    if (shape.stages >= two.least_stages) {
      return two;
    }
    shape.sets = 1;
  }
  const Instance one = instance(base, shape);
  shape.stages = stages_of(one, shared ? 2 : 1);
  return one;
}

// The largest cluster with which all of `works` run at once.
int choose_cluster(const Instance& instance, int64_t works, int64_t tiles) {
  int cluster = 1;
  for (int next = 2; next <= kMostCluster && next <= tiles; next *= 2) {
    if (works <= clusters_together(instance, next, 1)) {
      cluster = next;
    }
  }
  return cluster;
}

// Clusters that one another's parts meet between, of those that run at once.
int choose_splits(const Instance& instance, int64_t works, int64_t tiles, int cluster) {
  const int64_t together = clusters_together(instance, cluster, 1);
  return static_cast<int>(std::clamp<int64_t>(
      std::min(together / works, tiles / (kLeastTilesPerSplit * cluster)), 1, kMaxSplits));
}

// Parts meet in shared memory as far as they can: in the device's it takes 2 µs longer, and half of the processors read
// as much as memory gives. But a processor copies small boxes no faster than one in 60 to 80 ns: many of them are spread
// over all processors, in clusters that fit anywhere.
void divide_keys(const Instance& instance, int64_t works, int64_t tiles, DecodeShape& shape) {
  shape.cluster = choose_cluster(instance, works, tiles);
  shape.splits = choose_splits(instance, works, tiles, shape.cluster);
  const int64_t parts = shape.cluster * shape.splits;
  const int64_t copies = tiles / parts * (2 * kStageKeys >> shape.box_log2);
  if (shape.box_log2 > kSmallBoxLog2 || copies <= kManyCopies || shape.cluster <= 2) {
    return;
  }
  if (const int splits = choose_splits(instance, works, tiles, 2); 2 * splits > parts) {
    shape.cluster = 2;
    shape.splits = splits;
  }
}

// Where tiles are few, fewer of them under way let every block's first come sooner (2 % at 32 tiles, 3 % the other way at
// 256). The number of stages stays even.
void shorten_ring(const Instance& instance, int64_t tiles, DecodeShape& shape) {
  const int stages = kShortRing / instance.stage_bytes / 2 * 2;
  if (tiles <= kFewTiles * shape.cluster * shape.splits && stages >= instance.least_stages) {
    shape.stages = std::min(shape.stages, stages);
  }
}

}  // namespace

DecodeShape choose_decode_shape(const DecodeProblem& problem, int processors, int64_t l2_bytes) {
  const Problem& base = problem.base;
  DecodeShape shape = {};
  shape.splits = shape.cluster = shape.sets = 1;
  shape.row_tiles = base.rows() > kBlockRows ? 2 : 1;
  shape.box_log2 = std::countr_zero(static_cast<unsigned>(box_keys(problem)));
  shape.lengths = problem.lengths;
  shape.wide = reads_wide();
  shape.joined = is_joined(base);
  shape.paged = problem.table != nullptr;
  shape.room = static_cast<int>(base.keys);
  shape.rows = static_cast<int>(base.rows());
  shape.launch = next_launch();
  const int64_t blocks = row_blocks(base, shape), works = base.batch * base.key_heads * blocks;
  const int64_t seen =
      problem.window > 0 ? std::min(base.keys, problem.window + base.queries) : base.keys;
  const int64_t tiles = (seen + kStageKeys - 1) / kStageKeys;
  // A stream of several times L2 was slower so, a shorter one faster.
  shape.read_once = blocks == 1 && works * seen * base.head_dim * 4 < kLongStream * l2_bytes;
  const bool crowded = works > processors;
  shape.early = problem.window == 0;
  // Two blocks a processor where there is work for them: one computes while the other waits.
  const bool shared = crowded && shape.row_tiles == 1 && base.head_dim <= kMostShared;
  const Instance chosen = choose_sets(base, shared, shape);
  if (problem.splits > 0) {
    const bool clustered = problem.splits <= kMostCluster &&
                           std::has_single_bit(static_cast<unsigned>(problem.splits)) &&
                           clusters_together(chosen, problem.splits, 1) > 0;
    (clustered ? shape.cluster : shape.splits) = problem.splits;
  } else if (!crowded) {
    divide_keys(chosen, works, tiles, shape);
    shorten_ring(chosen, tiles, shape);
  }
  if (shape.stages < chosen.least_stages) {
    shape.stages = stages_of(chosen, 1);
  }
  return shape;
}

int64_t decode_part_floats(const DecodeProblem& problem, const DecodeShape& shape) {
  const Problem& base = problem.base;
  const int64_t works = base.batch * base.key_heads * row_blocks(base, shape);
  const int64_t fours = (base.head_dim + 63) / 64 * 16 * kBlockRows * shape.row_tiles;
  return shape.splits == 1 ? 0 : works * (shape.splits * fours * 12 + shape.cluster * 2);
}

void run_decode_sm90(const DecodeProblem& problem, const DecodeShape& shape, bool may_overlap,
                     CUstream_st* stream) {
  const Problem& base = problem.base;
  const Instance chosen = instance(base, shape);
  prepare(chosen);
  const CUtensorMap key_map = describe_cache(problem, shape, base.key, base.key_stride);
  const CUtensorMap value_map = describe_cache(problem, shape, base.value, base.value_stride);
  const dim3 grid(static_cast<unsigned>(shape.splits * shape.cluster),
                  static_cast<unsigned>(base.key_heads * row_blocks(base, shape)),
                  static_cast<unsigned>(base.batch));
  cudaLaunchAttribute attributes[2] = {};
  cudaLaunchConfig_t config = configure(chosen, shape.stages, grid, attributes, shape.cluster);
  config.stream = stream;
  if (may_overlap) {
    attributes[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[config.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
  }
  check_cuda(cudaLaunchKernelEx(&config, chosen.kernel, shape, key_map, value_map, problem),
             "attention_decode_sm90_kernel");
}

}  // namespace graft_kernels::attention
