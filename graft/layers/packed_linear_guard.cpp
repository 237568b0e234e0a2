#include <cstring>
#include <limits>

#include <ATen/CPUGeneratorImpl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "graft/layers/guard.h"
#include "graft/layers/guard_check.h"
#include "graft/layers/packed_weight.h"

namespace graft::layers {

namespace {

// Bytes of a block where a float16 factor begins; the rest of a block is whole numbers of any value.
std::vector<size_t> factor_places(io::GgmlType type) {
  switch (type) {
    case io::GgmlType::kQ4_1:
    case io::GgmlType::kQ5_1:
    case io::GgmlType::kQ4_K:
    case io::GgmlType::kQ5_K:
      return {0, 2};
    case io::GgmlType::kQ6_K:
      return {208};
    default:
      return {0};
  }
}

// A weight of random blocks with factors around 0.01.
PackedWeight random_weight(io::GgmlType type, int64_t rows, int64_t columns, at::Device device) {
  const io::GgmlTypeInfo& facts = io::info(type);
  const int64_t num_blocks = rows * columns / facts.block_elements;
  at::Generator generator = at::detail::createCPUGenerator(20261);
  const at::Tensor bytes = at::randint(256, {num_blocks, static_cast<int64_t>(facts.block_bytes)},
                                       generator, at::TensorOptions().dtype(at::kByte));
  for (const size_t place : factor_places(type)) {
    const at::Tensor factors = at::randn({num_blocks}, generator).mul_(0.01).to(at::kHalf);
    for (int64_t block = 0; block < num_blocks; ++block) {
      std::memcpy(bytes[block].data_ptr<uint8_t>() + place,
                  factors.const_data_ptr<at::Half>() + block, sizeof(at::Half));
    }
  }
  return PackedWeight({.type = type,
                       .rows = rows,
                       .columns = columns,
                       .bytes = {static_cast<const std::byte*>(bytes.const_data_ptr()),
                                 static_cast<size_t>(bytes.numel())},
                       .owner = std::make_shared<at::Tensor>(bytes),
                       .release = {},
                       .device = device,
                       .interleaved_heads = 0});
}

// The largest error that the contract allows, for every result: what rounding of x may do, sums in
// float32, and the rounding of the result.
at::Tensor allowed_error(const at::Tensor& x, const at::Tensor& values, const at::Tensor& exact,
                         at::ScalarType dtype) {
  const int64_t rows = x.size(0), columns = x.size(1);
  const at::Tensor largest_of_32 = x.view({rows, columns / 32, 32}).abs().amax(-1, true);
  const at::Tensor step =
      largest_of_32.div(127.0 * 2).expand({rows, columns / 32, 32}).reshape({rows, columns});
  // Scale and offset may be summed apart, and each be larger than the weights that they make.
  const at::Tensor sums = at::matmul(x.abs(), values.abs().add(values.abs().amax()).t());
  return at::matmul(step, values.abs().t()) +
         sums * (static_cast<double>(columns + 8) * rounding_unit(at::kFloat)) +
         exact.abs() * (2.0 * rounding_unit(dtype));
}

class PackedGuard {
 public:
  PackedGuard(const PackedLinear::Kernel& candidate, at::ScalarType dtype, at::Device device)
      : candidate_(candidate), dtype_(dtype), device_(device), inputs_(dtype, device) {}

  std::string check(const PackedWeight& weight, int64_t num_rows, bool has_bias, bool has_nan) {
    const std::string what =
        fmt::format("forward [{}, {}] x [{}, {}]{}", num_rows, weight.columns(), weight.rows(),
                    weight.columns(), has_nan ? ", NaN" : "");
    return attempt(what, [&]() -> std::string {
      at::Tensor x = inputs_.normal({num_rows, weight.columns()});
      const at::Tensor bias = has_bias ? inputs_.normal({weight.rows()}) : at::Tensor();
      if (has_nan) {
        x[1][5] = std::numeric_limits<double>::quiet_NaN();
      }
      const at::Tensor out = candidate_.forward(x, weight, bias);
      const at::Tensor wide = to_exact(x), values = weight.unpacked(at::kFloat).to(at::kDouble);
      at::Tensor exact = at::matmul(wide, values.t());
      if (has_bias) {
        exact = exact + to_exact(bias);
      }
      if (out.scalar_type() != dtype_ || out.device() != device_ || out.sizes() != exact.sizes()) {
        return fmt::format("{}: expected {} of {} on {}, got {} of {} on {}", what, exact.sizes(),
                           c10::toString(dtype_), device_.str(), out.sizes(),
                           c10::toString(out.scalar_type()), out.device().str());
      }
      const at::Tensor got = to_exact(out);
      if (!at::equal(got.isnan(), exact.isnan())) {
        return what + ": NaN where the reference has none, or none where it has one";
      }
      const at::Tensor error = (got - exact).abs(),
                       allowed = allowed_error(wide, values, exact, dtype_);
      const at::Tensor wrong = error.gt(allowed);
      if (wrong.any().item<bool>()) {
        return fmt::format("{}: error {:.3g} above what the contract allows, {:.3g}", what,
                           error.masked_select(wrong).max().item<double>(),
                           allowed.masked_select(wrong).max().item<double>());
      }
      return {};
    });
  }

  // A model joins products; each must be what it would be alone.
  std::string check_joined(const PackedWeight& first, const PackedWeight& second) {
    return attempt("join_forward", [&]() -> std::string {
      const at::Tensor x = inputs_.normal({2, first.columns()});
      const at::Tensor bias = inputs_.normal({second.rows()});
      const PackedLinear::Factors factors = {
          {&first, at::Tensor()}, {&second, bias}, {&first, at::Tensor()}};
      const PackedLinear::Products products = candidate_.join_forward(x, factors);
      for (size_t i = 0; i < factors.size(); ++i) {
        if (products.size() != factors.size() ||
            !at::equal(products[i], candidate_.forward(x, *factors[i].first, factors[i].second))) {
          return "join_forward: expected the bits of separate calls, got others";
        }
      }
      return {};
    });
  }

 private:
  const PackedLinear::Kernel& candidate_;
  at::ScalarType dtype_;
  at::Device device_;
  GuardInputs inputs_;
};

}  // namespace

std::string guard(const PackedLinear::Spec& spec, const PackedLinear::Kernel& candidate,
                  const PackedLinear::Kernel&, at::ScalarType dtype, at::Device device) {
  // The error is held against the contract's own bound: the reference does not round x.
  PackedGuard guard(candidate, dtype, device);
  const PackedWeight even = random_weight(spec.type, 48, 256, device);
  const PackedWeight odd = random_weight(spec.type, 19, 256, device);
  return first_refusal({[&] { return guard.check_joined(even, odd); },
                        [&] { return guard.check(even, 1, false, false); },
                        [&] { return guard.check(odd, 5, true, false); },
                        [&] { return guard.check(odd, 40, true, false); },
                        [&] { return guard.check(even, 3, false, true); },
                        [&] { return guard.check(even, 0, false, false); }});
}

}  // namespace graft::layers
