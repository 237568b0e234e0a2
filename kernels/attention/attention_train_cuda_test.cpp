// Attention for training on CUDA: results, log-sum-exp and gradients against float64, dense and packed.

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "kernels/common/test_support.h"

namespace graft_kernels::attention {
namespace {

using testing::is_same_bits;
using testing::Package;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

struct Shape {
  int64_t batch = 1, queries = 1, keys = 1, heads = 1, key_heads = 1, head_dim = 64;
};

struct Options {
  at::Tensor mask, sinks;
  double softcap = 0.0;
  int64_t window = 0;
  bool causal = true;
  bool deterministic = false;
};

// Of a call, ours or the formula's.
struct Results {
  at::Tensor out, lse, query, key, value;  // the last three are gradients
};

c10::IValue optional(const at::Tensor& tensor) {
  return tensor.defined() ? c10::IValue(tensor) : c10::IValue();
}

double scale_of(const at::Tensor& query) {
  return 1.0 / std::sqrt(static_cast<double>(query.size(-1)));
}

class CudaTraining : public ::testing::TestWithParam<at::ScalarType> {
 protected:
  void SetUp() override {
    if (!testing::why_no_cuda().empty()) {
      GTEST_SKIP() << testing::why_no_cuda();
    }
    at::manual_seed(7);
  }
  static const Package& package() { return Package::get("attention", testing::kCudaVariant); }

  static at::Tensor random(at::IntArrayRef sizes) {
    return at::randn(sizes).to(at::kCUDA, GetParam());
  }
  static at::Tensor starts(const std::vector<int64_t>& lengths) {
    std::vector<int32_t> values{0};
    for (const int64_t length : lengths) {
      values.push_back(values.back() + static_cast<int32_t>(length));
    }
    return at::tensor(values, at::kInt).to(at::kCUDA);
  }

  static Results dense(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                       const at::Tensor& grad, const Options& o) {
    const double scale = scale_of(query);
    const auto forward = package()("attention_forward_lse", query, key, value, optional(o.mask),
                                   optional(o.sinks), scale, o.softcap, o.window, o.causal);
    const at::Tensor out = forward[0].toTensor(), lse = forward[1].toTensor();
    const auto grads =
        package()("attention_backward", grad, query, key, value, out, lse, optional(o.mask), scale,
                  o.softcap, o.window, o.causal, o.deterministic);
    return {out, lse, grads[0].toTensor(), grads[1].toTensor(), grads[2].toTensor()};
  }

  static Results packed(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                        const at::Tensor& grad, const at::Tensor& query_starts,
                        const at::Tensor& key_starts, const Options& o) {
    const double scale = scale_of(query);
    const auto forward = package()("attention_varlen", query, key, value, query_starts, key_starts,
                                   optional(o.sinks), scale, o.softcap, o.window, o.causal);
    const at::Tensor out = forward[0].toTensor(), lse = forward[1].toTensor();
    const auto grads =
        package()("attention_varlen_backward", grad, query, key, value, out, lse, query_starts,
                  key_starts, scale, o.softcap, o.window, o.causal, o.deterministic);
    return {out, lse, grads[0].toTensor(), grads[1].toTensor(), grads[2].toTensor()};
  }

  // What no query of these lengths may see.
  static at::Tensor hidden(int64_t queries, int64_t keys, const Options& o) {
    const at::TensorOptions where = at::TensorOptions(at::kCUDA).dtype(at::kLong);
    const at::Tensor own = at::arange(queries, where).view({-1, 1}) + (keys - queries);
    const at::Tensor place = at::arange(keys, where);
    at::Tensor result = at::zeros({queries, keys}, where.dtype(at::kBool));
    if (o.causal) {
      result = result.logical_or(place > own);
    }
    if (o.window > 0) {
      result = result.logical_or(place <= own - o.window);
    }
    return result;
  }

  // The formula and its derivatives in the dtype `compute`; softmax in float32 or wider.
  static Results formula(const Results& in, const at::Tensor& grad, const Options& o,
                         at::ScalarType compute) {
    const at::AutoGradMode enabled(true);
    const auto leaf = [&](const at::Tensor& x) {
      return x.detach().to(compute).set_requires_grad(true);
    };
    const at::Tensor query = leaf(in.query), key = leaf(in.key), value = leaf(in.value);
    const int64_t groups = query.size(2) / key.size(1), keys = key.size(2), queries = query.size(1);
    const auto wide = compute == at::kDouble ? at::kDouble : at::kFloat;
    at::Tensor scores =
        at::matmul(query.transpose(1, 2), key.repeat_interleave(groups, 1).transpose(2, 3)) *
        scale_of(query);
    if (o.softcap > 0.0) {
      scores = at::tanh(scores / o.softcap) * o.softcap;
    }
    scores = scores.to(wide);
    if (o.mask.defined()) {
      scores = scores + o.mask.to(wide);
    }
    const at::Tensor away = hidden(queries, keys, o).logical_or(scores.eq(-kInfinity)).detach();
    scores = scores.masked_fill(away, -kInfinity);
    if (o.sinks.defined()) {
      const at::Tensor sinks = o.sinks.to(wide).view({1, -1, 1, 1});
      scores = at::cat({scores, sinks.expand({scores.size(0), -1, queries, 1})}, -1);
    }
    const at::Tensor lse = at::logsumexp(scores.detach(), {-1});
    const at::Tensor finite = at::where(lse.isfinite(), lse, at::zeros_like(lse)).unsqueeze(-1);
    // exp(score - lse), so that rows that see nothing have zeros and zero gradients.
    const at::Tensor shifted = scores.narrow(-1, 0, keys).masked_fill(away, -kInfinity) - finite;
    const at::Tensor raw = at::exp(shifted);
    at::Tensor total = raw.sum(-1, true);
    if (o.sinks.defined()) {
      total = total + at::exp(scores.narrow(-1, keys, 1) - finite);
    }
    const at::Tensor weights = raw / at::where(total.eq(0), at::ones_like(total), total);
    const at::Tensor out =
        at::matmul(weights.to(compute), value.repeat_interleave(groups, 1)).transpose(1, 2);
    out.backward(grad.to(compute));
    const auto gradient = [](const at::Tensor& x) {
      return x.grad().defined() ? x.grad() : at::zeros_like(x);
    };
    return {out.detach(), lse, gradient(query), gradient(key), gradient(value)};
  }

  static double distance(const at::Tensor& x, const at::Tensor& exact) {
    return x.numel() == 0
               ? 0.0
               : (x.detach().to(at::kDouble) - exact).abs().nan_to_num(1e30).max().item<double>();
  }

  // `times` the error of the formula in the same dtype, and half a unit of the result's rounding. In
  // float32 the floor is that of sums of `terms` products in any order: gradients may vanish.
  static void expect_near(const at::Tensor& ours, const at::Tensor& theirs, const at::Tensor& exact,
                          double times, int64_t terms, const std::string& what) {
    ASSERT_EQ(ours.sizes(), exact.sizes()) << what;
    if (exact.numel() == 0) {
      return;
    }
    const double largest = exact.abs().max().item<double>();
    const double floor =
        GetParam() == at::kFloat
            ? 0x1p-20 * std::max(largest, std::sqrt(static_cast<double>(terms)))
            : (GetParam() == at::kHalf ? 0x1p-12 : 0x1p-9) * std::max(largest, 1.0);
    EXPECT_LE(distance(ours, exact), times * distance(theirs, exact) + floor) << what;
  }

  static void expect_close(const Results& ours, const Results& in, const at::Tensor& grad,
                           const Options& o, const std::string& what) {
    const Results exact = formula(in, grad, o, at::kDouble);
    const Results theirs = formula(in, grad, o, GetParam());
    expect_near(ours.out, theirs.out, exact.out, 2, 1, what + " out");
    const int64_t terms = std::max<int64_t>(in.query.size(-1), 64);
    expect_near(ours.query, theirs.query, exact.query, 3, terms, what + " grad_query");
    expect_near(ours.key, theirs.key, exact.key, 3, terms, what + " grad_key");
    expect_near(ours.value, theirs.value, exact.value, 3, terms, what + " grad_value");
    const at::Tensor finite = exact.lse.isfinite();
    EXPECT_TRUE(at::equal(ours.lse.isfinite(), finite)) << what;
    if (exact.lse.numel() > 0) {
      EXPECT_LE(distance(ours.lse.masked_fill(finite.logical_not(), 0),
                         exact.lse.masked_fill(finite.logical_not(), 0)),
                2e-5)
          << what << " lse";
    }
  }

  static std::string text(const Shape& s, const Options& o) {
    return "B" + std::to_string(s.batch) + " S" + std::to_string(s.queries) + " T" +
           std::to_string(s.keys) + " H" + std::to_string(s.heads) + "/" +
           std::to_string(s.key_heads) + " D" + std::to_string(s.head_dim) +
           (o.causal ? " causal" : " full") + " window " + std::to_string(o.window) +
           (o.deterministic ? " deterministic" : "");
  }

  static Results inputs(const Shape& s) {
    return {{},
            {},
            random({s.batch, s.queries, s.heads, s.head_dim}),
            random({s.batch, s.key_heads, s.keys, s.head_dim}),
            random({s.batch, s.key_heads, s.keys, s.head_dim})};
  }

  static void expect_right(const Shape& s, const Options& o = {}) {
    const Results in = inputs(s);
    const at::Tensor grad = random(in.query.sizes());
    expect_close(dense(in.query, in.key, in.value, grad, o), in, grad, o, text(s, o));
  }

  // Sequences of these lengths one after another, each against the formula.
  static void expect_packed_right(const std::vector<int64_t>& queries,
                                  const std::vector<int64_t>& keys, int64_t heads,
                                  int64_t key_heads, int64_t head_dim, const Options& o) {
    const auto sum = [](const std::vector<int64_t>& lengths) {
      return std::accumulate(lengths.begin(), lengths.end(), int64_t{0});
    };
    const at::Tensor query = random({sum(queries), heads, head_dim});
    const at::Tensor key = random({sum(keys), key_heads, head_dim});
    const at::Tensor value = random({sum(keys), key_heads, head_dim});
    const at::Tensor grad = random(query.sizes());
    const Results all = packed(query, key, value, grad, starts(queries), starts(keys), o);
    int64_t q = 0, k = 0;
    for (size_t i = 0; i < queries.size(); ++i) {
      const auto rows = [&](const at::Tensor& x) {
        return x.narrow(0, q, queries[i]).unsqueeze(0);
      };
      const auto columns = [&](const at::Tensor& x) {
        return x.narrow(0, k, keys[i]).unsqueeze(0).transpose(1, 2);
      };
      const Results ours{rows(all.out), all.lse.narrow(1, q, queries[i]).unsqueeze(0),
                         rows(all.query), columns(all.key), columns(all.value)};
      const Results in{{}, {}, rows(query), columns(key), columns(value)};
      const Shape shape{1, queries[i], keys[i], heads, key_heads, head_dim};
      expect_close(ours, in, rows(grad), o, "sequence " + std::to_string(i) + " " + text(shape, o));
      q += queries[i];
      k += keys[i];
    }
  }
};

TEST_P(CudaTraining, IsRightForEveryHeadSizeAndOddLengths) {
  for (const int64_t head_dim : {1, 7, 40, 64, 80, 96, 128, 192, 256}) {
    for (const auto& [queries, keys] :
         {std::pair<int64_t, int64_t>{1, 1}, {7, 7}, {127, 129}, {129, 127}, {1000, 1000}}) {
      if (testing::is_small_run() && queries > 200) {
        continue;
      }
      expect_right({2, queries, keys, 4, 2, head_dim});
      expect_right({1, queries, keys, 2, 2, head_dim}, {.causal = false});
    }
  }
}

TEST_P(CudaTraining, IsRightForWindowsCapsSinksAndSharedKeys) {
  for (const int64_t head_dim : {64, 128, 72}) {
    for (const auto& [heads, key_heads] : {std::pair<int64_t, int64_t>{3, 3}, {8, 2}, {5, 1}}) {
      expect_right({2, 200, 300, heads, key_heads, head_dim}, {.window = 50});
      expect_right({1, 300, 200, heads, key_heads, head_dim}, {.window = 130});
      expect_right({1, 300, 310, heads, key_heads, head_dim}, {.window = 40, .causal = false});
      expect_right({1, 150, 170, heads, key_heads, head_dim}, {.sinks = random({heads})});
      expect_right({1, 150, 170, heads, key_heads, head_dim},
                   {.sinks = random({heads}).to(at::kFloat), .softcap = 3.0, .window = 64});
      expect_right({1, 400, 130, heads, key_heads, head_dim});
      if (testing::is_small_run()) {
        break;
      }
    }
  }
}

TEST_P(CudaTraining, AddsMasks) {
  for (const auto& sizes :
       std::vector<std::vector<int64_t>>{{2, 4, 70, 170}, {1, 1, 70, 170}, {2, 1, 1, 170}}) {
    at::Tensor mask = at::randn(sizes).to(GetParam());
    mask.masked_fill_(at::rand(sizes) < 0.3, -kInfinity);
    expect_right({2, 70, 170, 4, 2, 64}, {.mask = mask.to(at::kCUDA), .causal = false});
    expect_right({2, 70, 170, 4, 2, 128}, {.mask = mask.to(at::kCUDA, at::kFloat), .softcap = 2.0});
  }
}

TEST_P(CudaTraining, IsRightForPackedSequences) {
  const std::vector<int64_t> queries{0, 1, 130, 7, 0, 64, 128, 0, 300, 1},
      keys{3, 1, 130, 70, 0, 0, 129, 0, 120, 200};
  for (const int64_t head_dim : {64, 128, 96, 24}) {
    for (const bool causal : {true, false}) {
      expect_packed_right(queries, keys, 4, 2, head_dim, {.causal = causal});
    }
    expect_packed_right(queries, queries, 3, 3, head_dim, {.window = 20});
    expect_packed_right(queries, keys, 4, 1, head_dim,
                        {.sinks = random({4}), .softcap = 2.0, .causal = true});
    if (testing::is_small_run() && head_dim == 128) {
      break;
    }
  }
  // More sequences than a warp looks at together.
  std::vector<int64_t> many;
  for (int64_t i = 0; i < 70; ++i) {
    many.push_back(i * 37 % 90);
  }
  expect_packed_right(many, many, 2, 1, 64, {});
  expect_packed_right({}, {}, 2, 1, 64, {});
}

TEST_P(CudaTraining, EmptyTensorsAreAllowed) {
  for (const Shape& shape : {Shape{2, 0, 5, 4, 2, 64},
                             {2, 5, 0, 4, 2, 64},
                             {0, 5, 5, 4, 2, 64},
                             {0, 100, 100, 4, 2, 64},
                             {2, 100, 100, 0, 2, 128}}) {
    const Results in = inputs(shape);
    const Results ours = dense(in.query, in.key, in.value, at::ones_like(in.query), {});
    for (const at::Tensor& x : {ours.out, ours.query, ours.key, ours.value}) {
      EXPECT_EQ(x.numel() == 0 ? 0.0 : x.abs().max().item<double>(), 0.0);
    }
    EXPECT_EQ(ours.lse.eq(-kInfinity).sum().item<int64_t>(), ours.lse.numel());
  }
}

TEST_P(CudaTraining, ReadsViewsWhereTheyLie) {
  for (const int64_t shift : {0, 8, 3}) {
    const at::Tensor keys = random({2, 328, 3, 80}), fused = random({2, 304, 15, 80});
    const Results in{{},
                     {},
                     fused.narrow(1, 2, 300).narrow(2, 2, 9).narrow(3, shift, 64),
                     keys.narrow(1, 5, 310).transpose(1, 2).narrow(3, shift, 64),
                     keys.narrow(1, 2, 310).transpose(1, 2).narrow(3, 8, 64)};
    const at::Tensor grad = random({2, 9, 300, 64}).transpose(1, 2);
    expect_close(dense(in.query, in.key, in.value, grad, {}), in, grad, {},
                 "shift " + std::to_string(shift));
  }
}

TEST_P(CudaTraining, NothingOfAnotherSequenceLeaks) {
  const std::vector<int64_t> lengths{100, 70, 200, 1, 130};
  const at::Tensor at_starts = starts(lengths);
  for (const int64_t head_dim : {64, 128}) {
    for (const bool causal : {true, false}) {
      const Options o{.causal = causal, .deterministic = true};
      at::Tensor x[4];
      for (at::Tensor& tensor : x) {
        tensor = random({501, 2, head_dim});
      }
      const Results clean = packed(x[0], x[1], x[2], x[3], at_starts, at_starts, o);
      for (at::Tensor& tensor : x) {
        tensor.narrow(0, 100, 70).fill_(kNan);
        tensor.narrow(0, 370, 1).fill_(kInfinity);
      }
      const Results dirty = packed(x[0], x[1], x[2], x[3], at_starts, at_starts, o);
      for (const auto& [first, count] :
           {std::pair<int64_t, int64_t>{0, 100}, {170, 200}, {371, 130}}) {
        const auto same = [&, first = first, count = count](const at::Tensor& a,
                                                            const at::Tensor& b, int64_t dim) {
          return is_same_bits(a.narrow(dim, first, count), b.narrow(dim, first, count));
        };
        EXPECT_TRUE(same(clean.out, dirty.out, 0)) << head_dim << " " << first;
        EXPECT_TRUE(same(clean.lse, dirty.lse, 1)) << head_dim << " " << first;
        EXPECT_TRUE(same(clean.query, dirty.query, 0)) << head_dim << " " << first;
        EXPECT_TRUE(same(clean.key, dirty.key, 0)) << head_dim << " " << first;
        EXPECT_TRUE(same(clean.value, dirty.value, 0)) << head_dim << " " << first;
      }
    }
  }
}

TEST_P(CudaTraining, NothingThatAMaskHidesLeaks) {
  const Shape shape{2, 90, 90, 4, 2, 64};
  Results in = inputs(shape);
  at::Tensor grad = random(in.query.sizes());
  at::Tensor mask = at::zeros({2, 1, 90, 90}, in.query.options());
  mask.slice(-1, 0, 21).fill_(-kInfinity);
  mask.slice(2, 80).fill_(-kInfinity);  // rows that see nothing
  const Options o{.mask = mask, .causal = false, .deterministic = true};
  const Results clean = dense(in.query, in.key, in.value, grad, o);
  EXPECT_EQ(clean.out.slice(1, 80).abs().max().item<double>(), 0.0);
  EXPECT_EQ(clean.query.slice(1, 80).abs().max().item<double>(), 0.0);
  EXPECT_EQ(clean.key.slice(2, 0, 21).abs().max().item<double>(), 0.0);
  in.key.slice(2, 0, 21).fill_(kNan);
  in.value.slice(2, 0, 21).fill_(kNan);
  in.query.slice(1, 80).fill_(kNan);
  grad.slice(1, 80).fill_(kNan);
  const Results dirty = dense(in.query, in.key, in.value, grad, o);
  EXPECT_TRUE(is_same_bits(clean.out, dirty.out));
  EXPECT_TRUE(is_same_bits(clean.lse, dirty.lse));
  EXPECT_TRUE(is_same_bits(clean.query, dirty.query));
  EXPECT_TRUE(is_same_bits(clean.key, dirty.key));
  EXPECT_TRUE(is_same_bits(clean.value, dirty.value));
}

TEST_P(CudaTraining, GivesTheSameBitsWhereAsked) {
  for (const int64_t head_dim : {64, 128}) {
    const Results in = inputs({2, 700, 700, 4, 2, head_dim});
    const at::Tensor grad = random(in.query.sizes());
    const Options o{.deterministic = true};
    const Results first = dense(in.query, in.key, in.value, grad, o);
    for (int run = 0; run < (testing::is_small_run() ? 3 : 100); ++run) {
      const Results again = dense(in.query, in.key, in.value, grad, o);
      ASSERT_TRUE(is_same_bits(again.out, first.out)) << run;
      ASSERT_TRUE(is_same_bits(again.query, first.query)) << run;
      ASSERT_TRUE(is_same_bits(again.key, first.key)) << run;
      ASSERT_TRUE(is_same_bits(again.value, first.value)) << run;
    }
  }
}

TEST_P(CudaTraining, CanBeCapturedAndFollowsTheLengths) {
#ifdef GRAFT_WITH_CUDA
  const at::Tensor query = random({400, 4, 64}), key = random({400, 2, 64});
  const at::Tensor grad = random({400, 4, 64});
  const Options o{.deterministic = true};
  at::Tensor begins = starts({100, 200, 100});
  packed(query, key, key, grad, begins, begins, o);  // loads what is loaded once
  const testing::CurrentStream stream;
  Results captured;
  const testing::CapturedGraph graph(
      stream, [&] { captured = packed(query, key, key, grad, begins, begins, o); });
  begins.copy_(starts({20, 0, 380}));
  stream.synchronize();
  graph.launch();
  stream.synchronize();
  const Results expected = packed(query, key, key, grad, begins, begins, o);
  EXPECT_TRUE(is_same_bits(captured.out, expected.out));
  EXPECT_TRUE(is_same_bits(captured.query, expected.query));
  EXPECT_TRUE(is_same_bits(captured.key, expected.key));
  EXPECT_TRUE(is_same_bits(captured.value, expected.value));
  stream.synchronize();
#endif
}

TEST_P(CudaTraining, NamesTheArgumentThatIsWrong) {
  const at::Tensor query = random({5, 4, 16}), key = random({5, 2, 16});
  const auto message = [&](const at::Tensor& query_starts, const at::Tensor& key_starts) {
    try {
      packed(query, key, key, query, query_starts, key_starts, {});
    } catch (const std::exception& error) {
      return std::string(error.what());
    }
    return std::string("accepted");
  };
  using ::testing::HasSubstr;
  EXPECT_THAT(message(starts({5}).to(at::kLong), starts({5})),
              HasSubstr("cu_seqlens_q: expected int32"));
  EXPECT_THAT(message(starts({5}), starts({5}).cpu()), HasSubstr("cu_seqlens_k: expected"));
  EXPECT_THAT(message(starts({5}), starts({2, 3})), HasSubstr("cu_seqlens_k: expected shape"));
}

INSTANTIATE_TEST_SUITE_P(Dtypes, CudaTraining,
                         ::testing::Values(at::kFloat, at::kBFloat16, at::kHalf),
                         [](const auto& instance) {
                           return std::string(c10::toString(instance.param));
                         });

}  // namespace
}  // namespace graft_kernels::attention
