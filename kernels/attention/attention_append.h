// New tokens that join a cache in the call that attends to it.
#pragma once

#include <cstdint>

namespace graft_kernels::attention {

// Of the S queries' own tokens. Token s of a batch entry goes to place length - S + s of the cache; an
// entry whose length is beyond the room takes none, nor does a place before the first.
struct Append {
  const void* key = nullptr;   // [B, S, Hk, D], query's dtype; absent: no new tokens
  int64_t key_stride[3] = {};  // batch, position, head
  const void* value = nullptr;
  int64_t value_stride[3] = {};
  void* keys = nullptr;  // the cache, where DecodeProblem reads it
  void* values = nullptr;
  const void* cos = nullptr;  // [P, R] of every position; absent: nothing is turned
  const void* sin = nullptr;
  int64_t table_stride[2] = {};  // of cos and sin
  int64_t table_rows = 0;
  int32_t rotary_dim = 0;
  bool float_tables = false;  // float32 beside 16-bit heads
  bool interleaved = false;
  const int32_t* positions = nullptr;  // [B] of the newest token; absent: its place
};

}  // namespace graft_kernels::attention
