// Attention of few queries on Hopper: bulk copies, and parts of the keys merged inside a cluster.
#pragma once

#include "kernels/attention/attention_decode.h"

struct CUstream_st;

namespace graft_kernels::attention {

// Empty when the Hopper kernel computes this problem, else the reason why not.
const char* why_not_decode_sm90(const DecodeProblem& problem, int compute_capability);

// How the work is laid over the device. Parts = splits * cluster, a block each.
// It is the kernel's first parameter: parameters come line by line, as they are first asked for, and the first tile
// waits for this line alone.
struct DecodeShape {
  int cluster;             // blocks of a cluster, a power of two: parts that meet in shared memory
  int splits;              // parts that meet in device memory
  int stages;              // of the ring of tiles
  int box_log2;            // of the keys of one bulk copy
  int room;                // keys that the cache has room for
  int rows;                // that share a key head
  bool paged;              // the cache is
  bool joined;             // which copies all columns of a head
  bool early;              // the first tile is copied before a sequence's length is known
  bool read_once;          // what is read does not stay in L2
  const int32_t* lengths;  // of the problem
  int row_tiles;           // of 16 rows, worked on by one block
  int sets;                // of warps that take turns at the tiles
  bool wide;               // memory is read 256 bytes at a time
  uint64_t launch;         // the launch's number among all, of 56 bits
};

// Most blocks of a cluster.
inline constexpr int kMostCluster = 16;

// Depends on shapes and device alone. The tensors' device must be current.
DecodeShape choose_decode_shape(const DecodeProblem& problem, int processors, int64_t l2_bytes);

// Device memory that parts meet in, in floats; nothing where splits is 1. May hold anything.
int64_t decode_part_floats(const DecodeProblem& problem, const DecodeShape& shape);

// Launches it; `problem.parts` has decode_part_floats(). Throws std::runtime_error when the driver refuses.
void run_decode_sm90(const DecodeProblem& problem, const DecodeShape& shape, bool may_overlap,
                     CUstream_st* stream);

}  // namespace graft_kernels::attention
