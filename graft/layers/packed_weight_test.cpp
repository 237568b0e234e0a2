#include "graft/layers/packed_weight.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "graft/core/error.h"
#include "graft/layers/contract.h"
#include "graft/layers/guard.h"

namespace graft::layers {
namespace {

constexpr io::GgmlType kTypes[] = {io::GgmlType::kQ4_0, io::GgmlType::kQ4_1, io::GgmlType::kQ5_0,
                                   io::GgmlType::kQ5_1, io::GgmlType::kQ8_0, io::GgmlType::kQ4_K,
                                   io::GgmlType::kQ5_K, io::GgmlType::kQ6_K};

// Rows of Q8_0 whose codes are their number and column, scale one.
PackedWeight::Source numbered_rows(int64_t rows, int64_t heads = 0) {
  at::Tensor bytes = at::zeros({rows, 34}, at::kByte);
  for (int64_t row = 0; row < rows; ++row) {
    bytes[row][1] = 0x3c;  // 1.0 in float16
    for (int64_t column = 0; column < 32; ++column) {
      bytes[row][2 + column] = row + column;
    }
  }
  return {.type = io::GgmlType::kQ8_0,
          .rows = rows,
          .columns = 32,
          .bytes = {static_cast<const std::byte*>(bytes.const_data_ptr()),
                    static_cast<size_t>(bytes.numel())},
          .owner = std::make_shared<at::Tensor>(bytes),
          .release = {},
          .device = at::kCPU,
          .interleaved_heads = heads};
}

TEST(PackedWeight, UnpacksAllRowsAndSomeOfThem) {
  const PackedWeight weight(numbered_rows(10));
  const at::Tensor all = weight.unpacked(at::kFloat);
  EXPECT_EQ(all.sizes(), at::IntArrayRef({10, 32}));
  EXPECT_EQ(all[3][4].item<float>(), 7.0F);
  const at::Tensor ids = at::tensor({9, 0, 3, 3}, at::kLong).view({2, 2});
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    const at::Tensor some = weight.unpacked_rows(ids, dtype);
    EXPECT_EQ(some.scalar_type(), dtype);
    EXPECT_TRUE(at::equal(some, at::embedding(all, ids).to(dtype)));
  }
  EXPECT_EQ(weight.unpacked_rows(at::empty({0, 3}, at::kLong), at::kFloat).sizes(),
            at::IntArrayRef({0, 3, 32}));
  for (const int64_t id : {-1, 10}) {
    EXPECT_THROW(weight.unpacked_rows(at::tensor({id}, at::kLong), at::kFloat), InvalidArgument);
  }
}

TEST(PackedWeight, PutsInterleavedHalvesOfAHeadOneAfterTheOther) {
  const PackedWeight weight(numbered_rows(12, 2));
  const at::Tensor order = weight.unpacked(at::kFloat).select(1, 0);
  EXPECT_TRUE(at::equal(
      order, at::tensor({0., 2., 4., 1., 3., 5., 6., 8., 10., 7., 9., 11.}).to(at::kFloat)));
  const at::Tensor blocks = weight.blocks().view({12, 34});
  EXPECT_TRUE(at::equal(blocks.select(1, 2).to(at::kFloat), order));
}

TEST(PackedWeight, SharesTheStoredBytesWhereTheirOrderIsTheModels) {
  const auto source = numbered_rows(4);
  EXPECT_EQ(PackedWeight(source).blocks().const_data_ptr(), source.bytes.data());
}

TEST(PackedWeight, MakesALayoutOnceAndThenReleasesThePages) {
  auto source = numbered_rows(4);
  int released = 0, made = 0;
  source.release = [&] { ++released; };
  const PackedWeight weight(source);
  const auto make = [&] {
    EXPECT_EQ(released, 0);
    ++made;
    return at::ones({1});
  };
  const at::Tensor first = weight.layout("a", make);
  EXPECT_TRUE(weight.layout("a", make).is_same(first));
  EXPECT_EQ(made, 1);
  EXPECT_EQ(released, 1);
}

TEST(PackedWeight, RefusesBytesThatAreNotItsShape) {
  auto source = numbered_rows(4);
  source.rows = 5;
  EXPECT_THROW(PackedWeight{source}, InternalError);
  source = numbered_rows(4);
  source.columns = 31;
  EXPECT_THROW(PackedWeight{source}, InternalError);
}

// A kernel that is right but for a factor.
class ScaledKernel final : public PackedLinear::Kernel {
 public:
  explicit ScaledKernel(double factor) : factor_(factor) {}
  at::Tensor forward(const at::Tensor& x, const PackedWeight& weight,
                     const at::Tensor& bias) const override {
    return at::linear(x, weight.unpacked(x.scalar_type()) * factor_,
                      bias.defined() ? std::optional<at::Tensor>(bias) : std::nullopt);
  }

 private:
  double factor_;
};

TEST(PackedLinearGuard, AcceptsTheReferenceAndRefusesWhatIsWrong) {
  for (const io::GgmlType type : kTypes) {
    const PackedLinear::Spec spec{type};
    const auto reference = PackedLinear::reference(spec);
    EXPECT_EQ(PackedLinear::variant_name(spec), io::info(type).name);
    EXPECT_EQ(guard(spec, *reference, *reference, at::kFloat, at::kCPU), "")
        << PackedLinear::variant_name(spec);
    EXPECT_THAT(guard(spec, ScaledKernel(1.5), *reference, at::kFloat, at::kCPU),
                ::testing::HasSubstr("above what the contract allows"))
        << PackedLinear::variant_name(spec);
  }
}

}  // namespace
}  // namespace graft::layers
