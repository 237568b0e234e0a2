#include "graft/io/dequantize.h"

#include <bit>
#include <cstring>
#include <vector>

#include <gtest/gtest.h>

#include "graft/core/error.h"
#include "graft/io/safetensors.h"

namespace graft::io {
namespace {

constexpr GgmlType kTypes[] = {GgmlType::kQ4_0, GgmlType::kQ4_1, GgmlType::kQ5_0, GgmlType::kQ5_1,
                               GgmlType::kQ8_0, GgmlType::kQ4_K, GgmlType::kQ5_K, GgmlType::kQ6_K,
                               GgmlType::kF16,  GgmlType::kBF16};

class Dequantize : public testing::TestWithParam<GgmlType> {
 protected:
  SafetensorsFile data_ = SafetensorsFile::open(GRAFT_TEST_DATA "/io/dequantize.safetensors");
  std::span<const std::byte> bytes(const char* suffix) {
    return data_.find(std::string(info(GetParam()).name) + suffix)->bytes;
  }
};

TEST_P(Dequantize, GivesTheBitsOfGgufPy) {
  const auto expected = bytes(".float32");
  std::vector<float> out(expected.size() / sizeof(float));
  dequantize(GetParam(), bytes(".packed"), out);
  EXPECT_EQ(std::memcmp(out.data(), expected.data(), expected.size()), 0);
}

TEST_P(Dequantize, RoundsBfloat16ToNearestEven) {
  const auto expected = bytes(".float32");
  std::vector<float> wide(expected.size() / sizeof(float));
  dequantize(GetParam(), bytes(".packed"), wide);
  std::vector<uint16_t> out(wide.size());
  dequantize(GetParam(), bytes(".packed"), out);
  for (size_t i = 0; i < out.size(); ++i) {
    const float rounded = std::bit_cast<float>(static_cast<uint32_t>(out[i]) << 16);
    const float below = std::bit_cast<float>(std::bit_cast<uint32_t>(wide[i]) & 0xffff0000U);
    const float above =
        std::bit_cast<float>((std::bit_cast<uint32_t>(wide[i]) & 0xffff0000U) + 0x10000U);
    EXPECT_LE(std::abs(rounded - wide[i]),
              std::min(std::abs(below - wide[i]), std::abs(above - wide[i])))
        << i;
  }
}

TEST_P(Dequantize, RefusesSizesThatDoNotMatch) {
  const auto packed = bytes(".packed");
  std::vector<float> out(bytes(".float32").size() / sizeof(float) - 1);
  EXPECT_THROW(dequantize(GetParam(), packed, out), InvalidArgument);
  EXPECT_THROW(dequantize(GetParam(), packed.first(packed.size() - 1), out), InvalidArgument);
}

INSTANTIATE_TEST_SUITE_P(Types, Dequantize, testing::ValuesIn(kTypes), [](const auto& instance) {
  return std::string(graft::io::info(instance.param).name);
});

}  // namespace
}  // namespace graft::io
