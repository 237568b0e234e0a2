#include "graft/io/dequantize.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include <fmt/format.h>

#include "graft/core/error.h"

namespace graft::io {

namespace {

constexpr int64_t kSuperBlock = 256;  // elements of a K block

float half_to_float(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000U) << 16;
  const uint32_t exponent = bits >> 10 & 0x1fU, mantissa = bits & 0x3ffU;
  if (exponent == 0) {  // zero and subnormal numbers
    const float value = static_cast<float>(mantissa) * 0x1p-24F;
    return sign != 0 ? -value : value;
  }
  const uint32_t wide = exponent == 31 ? 0x7f800000U : (exponent + 112) << 23;
  return std::bit_cast<float>(sign | wide | mantissa << 13);
}

uint16_t to_bfloat16(float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffU) > 0x7f800000U) {
    return static_cast<uint16_t>(bits >> 16 | 0x40U);
  }
  return static_cast<uint16_t>((bits + 0x7fffU + (bits >> 16 & 1U)) >> 16);
}

template <typename T>
T load(const uint8_t* data) {
  T value;
  std::memcpy(&value, data, sizeof(T));
  return value;
}

float load_half(const uint8_t* data) { return half_to_float(load<uint16_t>(data)); }

// Each unpack_* turns one block into floats. Layouts are ggml's: `d` is the scale, `m` the offset.

void unpack_q4_0(const uint8_t* block, float* out) {
  const float d = load_half(block);
  for (int i = 0; i < 16; ++i) {
    out[i] = d * static_cast<float>((block[2 + i] & 15) - 8);
    out[i + 16] = d * static_cast<float>((block[2 + i] >> 4) - 8);
  }
}

void unpack_q4_1(const uint8_t* block, float* out) {
  const float d = load_half(block), m = load_half(block + 2);
  for (int i = 0; i < 16; ++i) {
    out[i] = d * static_cast<float>(block[4 + i] & 15) + m;
    out[i + 16] = d * static_cast<float>(block[4 + i] >> 4) + m;
  }
}

void unpack_q5_0(const uint8_t* block, float* out) {
  const float d = load_half(block);
  const auto high = load<uint32_t>(block + 2);
  for (int i = 0; i < 16; ++i) {
    const int low_bit = static_cast<int>(high >> i & 1U) << 4,
              high_bit = static_cast<int>(high >> (i + 16) & 1U) << 4;
    out[i] = d * static_cast<float>(((block[6 + i] & 15) | low_bit) - 16);
    out[i + 16] = d * static_cast<float>(((block[6 + i] >> 4) | high_bit) - 16);
  }
}

void unpack_q5_1(const uint8_t* block, float* out) {
  const float d = load_half(block), m = load_half(block + 2);
  const auto high = load<uint32_t>(block + 4);
  for (int i = 0; i < 16; ++i) {
    const int low_bit = static_cast<int>(high >> i & 1U) << 4,
              high_bit = static_cast<int>(high >> (i + 16) & 1U) << 4;
    out[i] = d * static_cast<float>((block[8 + i] & 15) | low_bit) + m;
    out[i + 16] = d * static_cast<float>((block[8 + i] >> 4) | high_bit) + m;
  }
}

void unpack_q8_0(const uint8_t* block, float* out) {
  const float d = load_half(block);
  for (int i = 0; i < 32; ++i) {
    out[i] = d * static_cast<float>(static_cast<int8_t>(block[2 + i]));
  }
}

// Eight 6-bit scales and offsets in twelve bytes.
void unpack_k_scales(const uint8_t* packed, std::array<uint8_t, 8>& scales,
                     std::array<uint8_t, 8>& offsets) {
  for (int i = 0; i < 4; ++i) {
    scales[i] = packed[i] & 63;
    offsets[i] = packed[i + 4] & 63;
    scales[i + 4] = static_cast<uint8_t>((packed[i + 8] & 15) | (packed[i] >> 6 << 4));
    offsets[i + 4] = static_cast<uint8_t>((packed[i + 8] >> 4) | (packed[i + 4] >> 6 << 4));
  }
}

// Q4_K (high == nullptr) and Q5_K: pairs of 32 elements share 32 bytes, low nibbles first.
void unpack_k_pairs(const uint8_t* block, const uint8_t* high, const uint8_t* low, float* out) {
  const float d = load_half(block), dmin = load_half(block + 2);
  std::array<uint8_t, 8> scales, offsets;
  unpack_k_scales(block + 4, scales, offsets);
  for (int group = 0; group < 8; ++group) {
    const float scale = d * static_cast<float>(scales[group]),
                offset = dmin * static_cast<float>(offsets[group]);
    const uint8_t* bytes = low + group / 2 * 32;
    const int shift = group % 2 * 4;
    for (int i = 0; i < 32; ++i) {
      const int high_bit = high == nullptr ? 0 : (high[i] >> group & 1) << 4;
      out[group * 32 + i] =
          scale * static_cast<float>((bytes[i] >> shift & 15) | high_bit) - offset;
    }
  }
}

void unpack_q4_k(const uint8_t* block, float* out) {
  unpack_k_pairs(block, nullptr, block + 16, out);
}

void unpack_q5_k(const uint8_t* block, float* out) {
  unpack_k_pairs(block, block + 16, block + 48, out);
}

void unpack_q6_k(const uint8_t* block, float* out) {
  const uint8_t* low = block;
  const uint8_t* high = block + 128;
  const auto* scales = reinterpret_cast<const int8_t*>(block + 192);
  const float d = load_half(block + 208);
  for (int half = 0; half < 2; ++half, low += 64, high += 32, scales += 8, out += 128) {
    for (int quarter = 0; quarter < 4; ++quarter) {
      const uint8_t* bytes = low + quarter % 2 * 32;
      for (int i = 0; i < 32; ++i) {
        const int value = (bytes[i] >> (quarter / 2 * 4) & 15) | (high[i] >> (quarter * 2) & 3)
                                                                     << 4;
        out[quarter * 32 + i] =
            d * static_cast<float>(scales[quarter * 2 + i / 16]) * static_cast<float>(value - 32);
      }
    }
  }
}

void store(std::span<const float> values, float* out) {
  std::copy(values.begin(), values.end(), out);
}

void store(std::span<const float> values, uint16_t* out) {
  std::transform(values.begin(), values.end(), out, to_bfloat16);
}

template <int kElements, int kBytes, typename Unpack, typename Out>
void unpack_blocks(const uint8_t* packed, size_t num_blocks, Unpack unpack, Out* out) {
  std::array<float, kElements> values;
  for (size_t i = 0; i < num_blocks; ++i) {
    unpack(packed + i * kBytes, values.data());
    store(values, out + i * kElements);
  }
}

template <typename Out>
void unpack_type(GgmlType type, const uint8_t* packed, size_t num_blocks, Out* out) {
  switch (type) {
    case GgmlType::kF32:
      return unpack_blocks<1, 4>(
          packed, num_blocks, [](const uint8_t* b, float* o) { *o = load<float>(b); }, out);
    case GgmlType::kF16:
      return unpack_blocks<1, 2>(
          packed, num_blocks, [](const uint8_t* b, float* o) { *o = load_half(b); }, out);
    case GgmlType::kBF16:
      return unpack_blocks<1, 2>(
          packed, num_blocks,
          [](const uint8_t* b, float* o) {
            *o = std::bit_cast<float>(static_cast<uint32_t>(load<uint16_t>(b)) << 16);
          },
          out);
    case GgmlType::kQ4_0:
      return unpack_blocks<32, 18>(packed, num_blocks, unpack_q4_0, out);
    case GgmlType::kQ4_1:
      return unpack_blocks<32, 20>(packed, num_blocks, unpack_q4_1, out);
    case GgmlType::kQ5_0:
      return unpack_blocks<32, 22>(packed, num_blocks, unpack_q5_0, out);
    case GgmlType::kQ5_1:
      return unpack_blocks<32, 24>(packed, num_blocks, unpack_q5_1, out);
    case GgmlType::kQ8_0:
      return unpack_blocks<32, 34>(packed, num_blocks, unpack_q8_0, out);
    case GgmlType::kQ4_K:
      return unpack_blocks<kSuperBlock, 144>(packed, num_blocks, unpack_q4_k, out);
    case GgmlType::kQ5_K:
      return unpack_blocks<kSuperBlock, 176>(packed, num_blocks, unpack_q5_k, out);
    case GgmlType::kQ6_K:
      return unpack_blocks<kSuperBlock, 210>(packed, num_blocks, unpack_q6_k, out);
  }
}

template <typename Out>
void dequantize_checked(GgmlType type, std::span<const std::byte> packed, std::span<Out> out) {
  const auto& facts = info(type);
  const size_t num_blocks = packed.size() / facts.block_bytes;
  if (packed.size() % facts.block_bytes != 0 ||
      num_blocks * static_cast<size_t>(facts.block_elements) != out.size()) {
    throw InvalidArgument(
        "io.dequantize", "size",
        fmt::format("packed: expected whole {} blocks for {} elements, got {} bytes", facts.name,
                    out.size(), packed.size()));
  }
  unpack_type(type, reinterpret_cast<const uint8_t*>(packed.data()), num_blocks, out.data());
}

}  // namespace

void dequantize(GgmlType type, std::span<const std::byte> packed, std::span<float> out) {
  dequantize_checked(type, packed, out);
}

void dequantize(GgmlType type, std::span<const std::byte> packed,
                std::span<uint16_t> out_bfloat16) {
  dequantize_checked(type, packed, out_bfloat16);
}

}  // namespace graft::io
