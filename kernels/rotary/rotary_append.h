// One new token a row: rotated, and put where it belongs in a cache of keys and values.
#pragma once

#include <cstdint>

#include "kernels/rotary/rotary.h"

namespace graft_kernels::rotary {

// A checked call. In `base` the length is 1, the outputs of heads[1] begin at the cache's place 0, and
// the tables at position 0: where the token of batch entry b belongs is lengths[b] - 1 places and
// positions[b] rows further.
struct AppendProblem {
  Problem base;
  int64_t key_place_stride = 0;
  int64_t table_stride[2] = {};  // of cos and sin, from one position to the next
  const void* value = nullptr;   // [B, 1, Hk, D]
  int64_t value_stride[2] = {};  // batch, head
  void* values = nullptr;        // [B, Hk, T, D]
  int64_t values_stride[3] = {};  // batch, head, place
  const int32_t* lengths = nullptr;    // [B], dense
  const int32_t* positions = nullptr;  // [B], dense
  int64_t places = 0;                  // T
  int64_t table_rows = 0;              // P
};

}  // namespace graft_kernels::rotary
