// Host side of sm90_gemm.cuh: which matrices it takes, and the launch.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

#include "kernels/common/dtype.h"
#include "kernels/common/sm90_gemm_handover.cuh"
#include "kernels/common/sm90_tensor_map.h"

namespace graft_kernels::sm90 {

// A matrix of a 16-bit dtype whose rows the copy engine can read.
struct GemmMatrix {
  const void* first = nullptr;
  int64_t rows = 0;
  int64_t depth = 0;
  int64_t row_stride = 0;  // elements
};

// Empty where the copy engine takes the matrix, else why not.
inline const char* why_not_gemm(const GemmMatrix& matrix) {
  if (reinterpret_cast<uintptr_t>(matrix.first) % 16 != 0 || matrix.row_stride % 8 != 0) {
    return "rows off 16 bytes";
  }
  if (matrix.rows > 1 && matrix.row_stride < matrix.depth) {
    return "rows that overlap";
  }
  if (matrix.depth % 8 != 0) {
    return "rows of a length that is no multiple of 8";
  }
  return matrix.rows > INT32_MAX - 4096 || matrix.depth > INT32_MAX - 4096
             ? "more than 2^31 rows or columns"
             : "";
}

// Boxes of `box_rows` rows and 64 columns.
inline CUtensorMap describe_matrix(Dtype dtype, const GemmMatrix& matrix, int box_rows) {
  CUtensorMap map;
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(matrix.depth),
                               static_cast<cuuint64_t>(matrix.rows)};
  // What a row's distance is does not matter where there is one.
  const cuuint64_t strides[1] = {
      static_cast<cuuint64_t>((matrix.rows == 1 ? matrix.depth : matrix.row_stride) * 2)};
  const cuuint32_t box[2] = {kGemmDepth, static_cast<cuuint32_t>(box_rows)}, steps[2] = {1, 1};
  const CUresult status =
      encode_function()(&map,
                        dtype == Dtype::kBfloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                                  : CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
                        2, const_cast<void*>(matrix.first), sizes, strides, box, steps,
                        CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                        CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) {
    throw std::runtime_error("[cuda] cuTensorMapEncodeTiled: expected CUDA_SUCCESS, got " +
                             std::to_string(static_cast<int>(status)));
  }
  return map;
}

// Where results go: contiguous rows, through the copy engine where it can write them.
inline ResultMatrix describe_results(Dtype dtype, void* out, int64_t rows, int64_t columns) {
  ResultMatrix matrix{};
  const GemmMatrix whole{out, rows, columns, columns};
  matrix.mapped = *why_not_gemm(whole) == '\0';
  if (matrix.mapped) {
    matrix.map = describe_matrix(dtype, whole, 16);
  }
  matrix.rows = rows;
  matrix.columns = static_cast<int>(columns);
  return matrix;
}

// Row tiles of a cluster that share weights in L2: 2,048 rows.
inline constexpr int kGroupRows = 8;

// Tiles of out[x.rows, columns]; `weights` are 1, or 2 whose columns meet in a tile.
inline GemmTiles count_tiles(const GemmMatrix& x, int64_t columns, int weights) {
  GemmTiles tiles;
  tiles.steps = static_cast<int>((x.depth + kGemmDepth - 1) / kGemmDepth);
  tiles.tile_columns = 2 * kGemmBoxColumns / weights;
  tiles.second_box = weights == 1 ? kGemmBoxColumns : 0;
  const int64_t cluster_rows = kGemmRows * kGemmCluster;
  tiles.row_tiles = static_cast<int>((x.rows + cluster_rows - 1) / cluster_rows);
  tiles.column_tiles = static_cast<int>((columns + tiles.tile_columns - 1) / tiles.tile_columns);
  tiles.group_rows = kGroupRows;
  tiles.count = tiles.row_tiles * tiles.column_tiles;
  return tiles;
}

// A kernel of tiles on as many clusters as there are tiles, or as run at once.
template <typename... Parameters, typename... Arguments>
void launch_tiles(cudaStream_t stream, int processors, int threads, int shared_bytes,
                  const GemmTiles& tiles, void (*kernel)(Parameters...),
                  const Arguments&... arguments) {
  check_cuda(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes),
      "cudaFuncSetAttribute");
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {kGemmCluster, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim =
      static_cast<unsigned>(std::min(tiles.count, processors / kGemmCluster) * kGemmCluster);
  config.blockDim = static_cast<unsigned>(threads);
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  check_cuda(cudaLaunchKernelEx(&config, kernel, arguments...), "cudaLaunchKernelEx");
}

// out = epilogue(x first^T and x second^T); `second` is `first` where there is one weight.
template <typename T, class Epilogue>
void launch_gemm(cudaStream_t stream, int processors, Dtype dtype, const GemmMatrix& x,
                 const GemmMatrix& first, const GemmMatrix& second, const GemmTiles& tiles,
                 const Epilogue& epilogue) {
  launch_tiles(stream, processors, kGemmThreads, GemmShared::kAll, tiles,
               gemm_sm90_kernel<T, Epilogue>, describe_matrix(dtype, x, kGemmRows),
               describe_matrix(dtype, first, kGemmBoxColumns),
               describe_matrix(dtype, second, kGemmBoxColumns), tiles, epilogue);
}

// finish(x w), where w's rows are what x's columns meet.
template <typename T, class Finish>
void launch_handover_gemm(cudaStream_t stream, int processors, Dtype dtype, const GemmMatrix& x,
                          const GemmMatrix& w, const Finish& finish) {
  const GemmTiles tiles = count_tiles(x, w.depth, 1);
  launch_tiles(stream, processors, kHandoverThreads, HandoverShared::kAll, tiles,
               gemm_handover_sm90_kernel<T, Finish>, describe_matrix(dtype, x, kGemmRows),
               describe_matrix(dtype, w, kGemmDepth), tiles, finish);
}

}  // namespace graft_kernels::sm90
