// From GGUF's blocks to the layout of packed.h.

#include <algorithm>
#include <cstring>

#include "kernels/linear/packed.h"

namespace graft_kernels::linear {

namespace {

// 32 columns of one row, whatever the type.
struct Columns {
  int codes[kPackedColumns] = {};
  uint16_t scale_bits = 0;  // float16, copied as it is
  uint16_t offset_bits = 0;
  float scales[2] = {};  // where scales are wide
  float offset = 0;
};

uint16_t load16(const uint8_t* from) {
  uint16_t value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

float half_to_float(uint16_t half) {
  const auto of_bits = [](uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  };
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000U) << 16, magnitude = half & 0x7fffU;
  if (magnitude >= 0x7c00U) {
    return of_bits(sign | 0x7f800000U | (magnitude & 0x3ffU) << 13);
  }
  // Scaling by 2^112 moves the exponent's bias and makes denormals normal.
  const float scaled = of_bits(magnitude << 13) * 0x1p112F;
  return sign != 0 ? -scaled : scaled;
}

// Low nibbles are columns 0..15, high ones 16..31; `fifth` has one more bit for each column.
void read_nibbles(const uint8_t* bytes, uint32_t fifth, int bias, Columns& out) {
  for (int i = 0; i < 16; ++i) {
    out.codes[i] = ((bytes[i] & 15) | static_cast<int>(fifth >> i & 1U) << 4) - bias;
    out.codes[i + 16] = ((bytes[i] >> 4) | static_cast<int>(fifth >> (i + 16) & 1U) << 4) - bias;
  }
}

uint32_t load32(const uint8_t* from) {
  uint32_t value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

// Q4_K and Q5_K: pairs of 32 columns share 32 bytes; eight 6-bit scales and offsets in 12 bytes.
void read_k_pair(const uint8_t* block, int group, bool five_bits, Columns& out) {
  const uint8_t* packed = block + 4;
  const int scale =
      group < 4 ? packed[group] & 63 : (packed[group + 4] & 15) | packed[group - 4] >> 6 << 4;
  const int offset =
      group < 4 ? packed[group + 4] & 63 : (packed[group + 4] >> 4) | packed[group] >> 6 << 4;
  out.scales[0] = half_to_float(load16(block)) * static_cast<float>(scale);
  out.offset = -(half_to_float(load16(block + 2)) * static_cast<float>(offset));
  const uint8_t* high = block + 16;
  const uint8_t* low = block + (five_bits ? 48 : 16) + group / 2 * 32;
  for (int i = 0; i < 32; ++i) {
    const int fifth = five_bits ? (high[i] >> group & 1) << 4 : 0;
    out.codes[i] = (low[i] >> (group % 2 * 4) & 15) | fifth;
  }
}

void read_q6_k(const uint8_t* block, int group, Columns& out) {
  const int half = group / 4, quarter = group % 4;
  const uint8_t* low = block + half * 64 + quarter % 2 * 32;
  const uint8_t* high = block + 128 + half * 32;
  const float d = half_to_float(load16(block + 208));
  for (int i = 0; i < 2; ++i) {
    const auto scale = static_cast<int8_t>(block[192 + group * 2 + i]);
    out.scales[i] = d * static_cast<float>(scale);
  }
  for (int i = 0; i < 32; ++i) {
    out.codes[i] = ((low[i] >> (quarter / 2 * 4) & 15) | (high[i] >> (quarter * 2) & 3) << 4) - 32;
  }
}

// Columns [32 * index, 32 * index + 32) of a row.
Columns read_columns(const PackedFormat& format, const uint8_t* row, int64_t index) {
  const int per_block = format.block_columns / kPackedColumns;
  const uint8_t* block = row + index / per_block * format.block_bytes;
  const int group = static_cast<int>(index % per_block);
  Columns out;
  out.scale_bits = load16(block);
  switch (format.type) {
    case 2:
      read_nibbles(block + 2, 0, 0, out);
      break;
    case 3:
      out.offset_bits = load16(block + 2);
      read_nibbles(block + 4, 0, 0, out);
      break;
    case 6:
      read_nibbles(block + 6, load32(block + 2), 16, out);
      break;
    case 7:
      out.offset_bits = load16(block + 2);
      read_nibbles(block + 8, load32(block + 4), 0, out);
      break;
    case 8:
      std::transform(block + 2, block + 34, out.codes,
                     [](uint8_t byte) { return static_cast<int8_t>(byte); });
      break;
    case 12:
    case 13:
      read_k_pair(block, group, format.type == 13, out);
      break;
    default:
      read_q6_k(block, group, out);
  }
  return out;
}

void write_columns(const PackedFormat& format, const Columns& columns, int row, uint8_t* chunk) {
  uint8_t* offsets = chunk + format.scale_bytes();
  const bool stored = format.offset == Offset::kStored;
  if (format.wide_scales) {
    for (int i = 0; i < kPackedColumns / format.scale_columns; ++i) {
      std::memcpy(chunk + (i * kPackedRows + row) * 4, &columns.scales[i], 4);
    }
    if (stored) {
      std::memcpy(offsets + row * 4, &columns.offset, 4);
    }
  } else {
    std::memcpy(chunk + row * 2, &columns.scale_bits, 2);
    if (stored) {
      std::memcpy(offsets + row * 2, &columns.offset_bits, 2);
    }
  }
  uint8_t* codes = chunk + format.codes_at();
  for (int k = 0; k < kPackedColumns; ++k) {
    const int place = k / 4 * 32 + row * 4 + k % 4;
    const auto code = static_cast<uint8_t>(columns.codes[k]);
    if (!format.four_bits) {
      codes[place] = code;
    } else if (k < 16) {
      codes[place] = static_cast<uint8_t>((codes[place] & 0xf0) | code);
    } else {
      codes[place - 128] = static_cast<uint8_t>((codes[place - 128] & 0x0f) | code << 4);
    }
  }
}

}  // namespace

const PackedFormat* find_packed_format(int64_t type) {
  for (const PackedFormat& format : kPackedFormats) {
    if (format.type == type) {
      return &format;
    }
  }
  return nullptr;
}

int64_t packed_bytes(const PackedFormat& format, int64_t rows, int64_t columns) {
  return (rows + kPackedRows - 1) / kPackedRows * (columns / kPackedColumns) * format.chunk_bytes();
}

void pack_groups(const PackedFormat& format, const uint8_t* blocks, int64_t rows, int64_t columns,
                 uint8_t* packed, int64_t begin, int64_t end) {
  const int64_t row_bytes = columns / format.block_columns * format.block_bytes;
  const int64_t chunks = columns / kPackedColumns;
  for (int64_t group = begin; group < end; ++group) {
    for (int64_t index = 0; index < chunks; ++index) {
      uint8_t* chunk = packed + (group * chunks + index) * format.chunk_bytes();
      std::memset(chunk, 0, static_cast<size_t>(format.chunk_bytes()));
      for (int row = 0; row < kPackedRows && group * kPackedRows + row < rows; ++row) {
        const uint8_t* stored = blocks + (group * kPackedRows + row) * row_bytes;
        write_columns(format, read_columns(format, stored, index), row, chunk);
      }
    }
  }
}

}  // namespace graft_kernels::linear
