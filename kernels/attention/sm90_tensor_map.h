// Descriptions of tensors [batch, head, row, column] for Hopper's bulk copies.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include <cuda.h>

#include "kernels/attention/attention.h"
#include "kernels/common/cuda_launch.h"
#include "kernels/common/sm90_tensor_map.h"

namespace graft_kernels::attention::sm90 {

// Where 16 bytes of a row can be read together.
inline bool is_whole_vectors(const void* pointer, const int64_t (&stride)[3]) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0 && stride[0] % 8 == 0 &&
         stride[1] % 8 == 0 && stride[2] % 8 == 0;
}

struct Extents {
  int64_t rows, heads, batch;                     // sizes
  int64_t row_stride, head_stride, batch_stride;  // elements
};

// Boxes of 64 columns and `tile_rows` rows of 16-bit heads.
inline CUtensorMap describe(const Problem& base, const void* from, const Extents& extents,
                            int tile_rows) {
  CUtensorMap map;
  const auto bytes = [](int64_t size, int64_t stride) {
    return static_cast<cuuint64_t>(size == 1 ? 16 : stride * 2);
  };
  const cuuint64_t sizes[4] = {
      static_cast<cuuint64_t>(base.head_dim), static_cast<cuuint64_t>(extents.rows),
      static_cast<cuuint64_t>(extents.heads), static_cast<cuuint64_t>(extents.batch)};
  const cuuint64_t strides[3] = {bytes(extents.rows, extents.row_stride),
                                 bytes(extents.heads, extents.head_stride),
                                 bytes(extents.batch, extents.batch_stride)};
  const cuuint32_t box[4] = {64, static_cast<cuuint32_t>(tile_rows), 1, 1};
  const cuuint32_t steps[4] = {1, 1, 1, 1};
  const CUtensorMapDataType dtype = base.dtype == Dtype::kBfloat16
                                        ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                        : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  const CUresult status = graft_kernels::sm90::encode_function()(
      &map, dtype, 4, const_cast<void*>(from), sizes, strides, box, steps,
      CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) {
    throw std::runtime_error("[cuda] cuTensorMapEncodeTiled: expected CUDA_SUCCESS, got " +
                             std::to_string(static_cast<int>(status)));
  }
  return map;
}

// A tensor of queries (strides: batch, row, head).
inline CUtensorMap describe_queries(const Problem& base, const void* from,
                                    const int64_t (&stride)[3], int tile_rows) {
  return describe(
      base, from,
      {base.queries, base.key_heads * base.groups, base.batch, stride[1], stride[2], stride[0]},
      tile_rows);
}

// A tensor of keys (strides: batch, head, row).
inline CUtensorMap describe_keys(const Problem& base, const void* from, const int64_t (&stride)[3],
                                 int tile_rows) {
  return describe(base, from,
                  {base.keys, base.key_heads, base.batch, stride[2], stride[1], stride[0]},
                  tile_rows);
}

}  // namespace graft_kernels::attention::sm90
