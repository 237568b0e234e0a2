// Packed GGUF blocks into plain numbers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "graft/io/gguf.h"

namespace graft::io {

// Unpacks whole blocks.
//
// packed  whole blocks of `type`, e.g. one or more rows of a tensor
// out     as many elements as the blocks hold; float32, or bfloat16 bits rounded to nearest even
// Throws   InvalidArgument when the sizes do not match.
// float32 results are those of gguf-py's gguf.quants.dequantize, bit for bit. Thread-safe: split
// rows over threads freely.
// Source   ggml's block formats.
void dequantize(GgmlType type, std::span<const std::byte> packed, std::span<float> out);
void dequantize(GgmlType type, std::span<const std::byte> packed, std::span<uint16_t> out_bfloat16);

}  // namespace graft::io
