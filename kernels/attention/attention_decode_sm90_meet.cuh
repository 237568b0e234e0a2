// Device memory in which clusters with the same rows meet. A cluster takes a ticket while its tiles are still on their
// way; the one with the last ticket merges. It waits for the others alone, who are at work already and wait for nobody.
// What they leave bears the launch's number, so that it is seen to be there without a fence or a flag. Device code, no
// Torch.
#pragma once

#include "kernels/attention/attention_decode_sm90_rows.cuh"

namespace graft_kernels::attention::sm90 {

// Four columns of a row, and what they are relative to.
struct Found {
  float largest;  // in units of log2
  float sum;
  float4 values;
};

// Takes one of `count` tickets at `word`, which holds the launch's number and how many were taken; says whether it was
// the last. Anything else in the word counts as none; the last leaves zero.
__device__ __forceinline__ bool take_ticket(unsigned long long* word, uint64_t launch, int count) {
  unsigned long long seen = 0, before = atomicCAS(word, seen, launch << 8);
  while (before != seen && before >> 8 != launch) {
    seen = before;
    before = atomicCAS(word, seen, launch << 8);
  }
  const bool last = static_cast<int>(atomicAdd(word, 1ULL) & 0xFFU) == count - 1;
  if (last) {
    *reinterpret_cast<volatile unsigned long long*>(word) = 0;
  }
  return last;
}

// Two floats beside the launch's number, which come and go together: 16 bytes.
struct alignas(16) Piece {
  float2 floats;
  unsigned long long launch;
};

__device__ __forceinline__ void leave_piece(Piece* to, float2 floats, unsigned long long launch) {
  asm volatile(
      "{\n"
      ".reg .b64 low;\n"
      ".reg .b128 all;\n"
      "mov.b64 low, {%1, %2};\n"
      "mov.b128 all, {low, %3};\n"
      "st.relaxed.gpu.global.b128 [%0], all;\n"
      "}\n" ::"l"(to),
      "f"(floats.x), "f"(floats.y), "l"(launch)
      : "memory");
}

__device__ __forceinline__ Piece look_at_piece(const Piece* from) {
  Piece piece;
  asm volatile(
      "{\n"
      ".reg .b64 low;\n"
      ".reg .b128 all;\n"
      "ld.relaxed.gpu.global.b128 all, [%3];\n"
      "mov.b128 {low, %2}, all;\n"
      "mov.b64 {%0, %1}, low;\n"
      "}\n"
      : "=f"(piece.floats.x), "=f"(piece.floats.y), "=l"(piece.launch)
      : "l"(from)
      : "memory");
  return piece;
}

// Memory that splits meet in: pieces [work][split][3][four of columns], words [work][rank].
template <typename Ring>
struct Meeting {
  static constexpr int kPitch = Ring::kRows * Ring::kFours;
  Piece* pieces;
  unsigned long long* word;

  __device__ __forceinline__ Meeting(const DecodeProblem& problem, const DecodeShape& shape,
                                     int rank) {
    const int64_t works = static_cast<int64_t>(gridDim.y) * gridDim.z;
    const int64_t work = static_cast<int64_t>(blockIdx.z) * gridDim.y + blockIdx.y;
    const int64_t size = static_cast<int64_t>(shape.splits) * 3 * kPitch;
    pieces = reinterpret_cast<Piece*>(problem.parts);
    word =
        reinterpret_cast<unsigned long long*>(pieces + works * size) + work * shape.cluster + rank;
    pieces += work * size;
  }
  __device__ __forceinline__ Piece* at(int split, int index) const {
    return pieces + split * (3 * kPitch) + index;
  }
  __device__ __forceinline__ void leave(int split, int index, const Found& found,
                                        uint64_t launch) const {
    Piece* to = at(split, index);
    leave_piece(to, {found.largest, found.sum}, launch);
    leave_piece(to + kPitch, {found.values.x, found.values.y}, launch);
    leave_piece(to + 2 * kPitch, {found.values.z, found.values.w}, launch);
  }
  // Waits for what the other splits leave of `count` fours, which is gone then: pairs of a split and a four, of
  // 2^log2 fours each, into values[pair] and sums[pair]. By all threads; index(four) says where it lies.
  template <typename Index>
  __device__ __forceinline__ void take(const DecodeShape& shape, int own_split, int count, int log2,
                                       float4* values, float2* sums, const Index& index) const {
    constexpr int kTogether = 2;
    const int pairs = shape.splits << log2;
#pragma unroll 1
    for (int begin = threadIdx.x; begin < pairs; begin += kTogether * Ring::kThreads) {
      Piece* from[kTogether];
      Piece found[kTogether][3];
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        const int pair = begin + i * Ring::kThreads;
        const int split = pair >> log2, four = pair & ((1 << log2) - 1);
        const bool wanted = pair < pairs && four < count && split != own_split;
        from[i] = wanted ? at(split, index(four)) : nullptr;
      }
      bool there;
      do {
        there = true;
#pragma unroll
        for (int i = 0; i < kTogether; ++i) {
#pragma unroll
          for (int piece = 0; piece < 3; ++piece) {
            if (from[i] != nullptr) {
              found[i][piece] = look_at_piece(from[i] + piece * kPitch);
            }
          }
        }
#pragma unroll
        for (int i = 0; i < kTogether; ++i) {
#pragma unroll
          for (int piece = 0; piece < 3; ++piece) {
            there = there && (from[i] == nullptr || found[i][piece].launch == shape.launch);
          }
        }
      } while (!there);
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        if (from[i] != nullptr) {
          const int pair = begin + i * Ring::kThreads;
          sums[pair] = found[i][0].floats;
          values[pair] = {found[i][1].floats.x, found[i][1].floats.y, found[i][2].floats.x,
                          found[i][2].floats.y};
#pragma unroll
          for (int piece = 0; piece < 3; ++piece) {
            *reinterpret_cast<volatile unsigned long long*>(&from[i][piece * kPitch].launch) = 0;
          }
        }
      }
    }
  }
};

}  // namespace graft_kernels::attention::sm90
