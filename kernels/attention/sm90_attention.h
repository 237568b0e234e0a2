// Attention of many queries on Hopper's tensor cores.
#pragma once

#include "kernels/attention/attention_decode.h"
#include "kernels/attention/attention_train_cuda.h"

struct CUstream_st;

namespace graft_kernels::attention {

// Empty when the Hopper kernel computes this problem, else the reason why not.
const char* why_not_sm90(const DecodeProblem& problem, int compute_capability);

// Queries of a tile: 64 of each computing warpgroup. Short heads need three of them to hide exponentials.
constexpr int sm90_query_tile(int64_t head_dim) { return head_dim == 64 ? 192 : 128; }

// Tiles of queries of all heads.
int64_t sm90_tasks(const DecodeProblem& problem);

// A tile of queries of a packed sequence; one that does not exist has no queries.
struct PackedTile {
  int32_t query, queries;  // the sequence's first, and how many
  int32_t key, keys;
  int32_t tile;
};

struct Sm90Device {
  int processors;
  int64_t l2_bytes;
  CUstream_st* stream;
};

// Launches it; `problem` is one that why_not_sm90 has no objection to. `taken` is device memory for one
// number, of use where there are more tasks than processors. Throws std::runtime_error when the
// driver refuses.
void run_sm90(const DecodeProblem& problem, const Sm90Device& device, int* taken);

// Rows of the table that run_sm90_packed fills.
int64_t sm90_packed_tiles(const TrainProblem& problem, const Packing& packing);

// The forward pass of packed sequences: why_not_sm90 has no objection to `problem`, which describes one
// sequence of all tokens; `tiles` is device memory for the table.
void run_sm90_packed(const DecodeProblem& problem, const TrainProblem& packed,
                     const Packing& packing, const Sm90Device& device, PackedTile* tiles,
                     int* taken);

}  // namespace graft_kernels::attention
