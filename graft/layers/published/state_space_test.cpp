// causal-conv1d and the scan of mamba-ssm, with packages of the published schemas.

#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd.h>

#include "graft/layers/published/selective_scan.h"
#include "graft/layers/published/test_package.h"

namespace graft::layers::published {
namespace {

using testing::HasSubstr;

at::Tensor leaf(at::IntArrayRef sizes) { return at::randn(sizes).requires_grad_(); }

// By at::conv1d in float64; `before` [B, C, W - 1] or undefined.
at::Tensor exact_conv(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                      const at::Tensor& before, bool silu) {
  const int64_t width = weight.size(1);
  const at::Tensor all =
      before.defined() ? at::cat({before, x}, 2) : at::constant_pad_nd(x, {width - 1, 0});
  const at::Tensor out =
      at::conv1d(all.to(at::kDouble), weight.to(at::kDouble).unsqueeze(1),
                 bias.defined() ? std::optional(bias.to(at::kDouble)) : std::nullopt,
                 at::IntArrayRef({1}), at::IntArrayRef({0}), at::IntArrayRef({1}), x.size(1));
  return silu ? at::silu(out) : out;
}

struct ConvCase {
  int64_t width;
  bool biased, silu, states, channels_last;
};

class Convolutions : public testing::TestWithParam<const char*> {};

TEST_P(Convolutions, AndTheirGradientsAreTheFormula) {
  at::manual_seed(4);
  const CausalConv1d conv(*load_package(GetParam()));
  for (const ConvCase& c :
       {ConvCase{4, true, true, false, false}, ConvCase{2, false, false, false, false},
        ConvCase{3, true, false, true, true}, ConvCase{4, true, true, true, false},
        ConvCase{3, false, true, false, true}}) {
    at::Tensor x = c.channels_last ? at::randn({2, 9, 8}).transpose(1, 2) : at::randn({2, 8, 9});
    x.requires_grad_();
    const at::Tensor weight = leaf({8, c.width}), bias = c.biased ? leaf({8}) : at::Tensor();
    const at::Tensor before = c.states ? leaf({2, 8, c.width - 1}) : at::Tensor();
    const auto got = conv.forward(
        x, weight, bias, {.silu = c.silu, .initial_states = before, .want_final_states = c.states});
    const at::Tensor want = exact_conv(x, weight, bias, before, c.silu);
    expect_close(got.out, want, 1e-5);
    Tensors own_outputs = {got.out}, right_outputs = {want}, leaves = {x, weight};
    Tensors grads = {at::randn({2, 8, 9})}, wide_grads = {grads[0].to(at::kDouble)};
    if (c.states) {
      const at::Tensor all = at::cat({before, x}, 2);
      const at::Tensor last = all.narrow(2, all.size(2) - (c.width - 1), c.width - 1);
      expect_close(got.final_states, last, 1e-6);
      own_outputs.push_back(got.final_states);
      right_outputs.push_back(last);
      grads.push_back(at::randn_like(last));
      wide_grads.push_back(grads[1]);
      leaves.push_back(before);
    }
    if (c.biased) {
      leaves.push_back(bias);
    }
    const auto own = torch::autograd::grad(own_outputs, leaves, grads),
               right = torch::autograd::grad(right_outputs, leaves, wide_grads);
    for (size_t i = 0; i < leaves.size(); ++i) {
      expect_close(own[i], right[i], 1e-4, "input " + std::to_string(i));
    }
  }
}

TEST_P(Convolutions, KeepPackedSequencesApart) {
  const at::NoGradGuard no_grad;
  const CausalConv1d conv(*load_package(GetParam()));
  const at::Tensor x = at::randn({1, 8, 10}), weight = at::randn({8, 4});
  const at::Tensor sequences = at::tensor({0, 0, 0, 0, 1, 1, 1, 2, 2, 2}, at::kInt).unsqueeze(0);
  const at::Tensor got = conv.forward(x, weight, {}, {.sequences = sequences}).out;
  const at::Tensor want = at::cat({exact_conv(x.narrow(2, 0, 4), weight, {}, {}, false),
                                   exact_conv(x.narrow(2, 4, 3), weight, {}, {}, false),
                                   exact_conv(x.narrow(2, 7, 3), weight, {}, {}, false)},
                                  2);
  expect_close(got, want, 1e-5);
}

TEST_P(Convolutions, GoOnStepByStep) {
  const at::NoGradGuard no_grad;
  const CausalConv1d conv(*load_package(GetParam()));
  const at::Tensor x = at::randn({2, 8, 9}), weight = at::randn({8, 4}), bias = at::randn({8});
  const at::Tensor want = exact_conv(x, weight, bias, {}, true);
  at::Tensor state = at::zeros({2, 8, 4}), ring = at::zeros({3, 8, 5});
  const at::Tensor rows = at::tensor({2, 0}, at::kInt);
  for (int64_t t = 0; t < 9; ++t) {
    expect_close(conv.update(x.select(2, t), state, weight, bias, true), want.select(2, t), 1e-5);
    const at::Tensor lengths = at::full({2}, t, at::kInt);
    expect_close(conv.update(x.select(2, t), ring, weight, bias, true, lengths, rows),
                 want.select(2, t), 1e-5, "ring");
  }
  expect_close(state, x.narrow(2, 5, 4), 1e-6);  // written, though the schema does not say so
}

TEST_P(Convolutions, RefuseByNameWhatTheyCannotDo) {
  const CausalConv1d conv(*load_package(GetParam()));
  const at::Tensor x = at::randn({2, 8, 9}), weight = at::randn({8, 4});
  const auto refused = [&](const auto& call, const char* text) {
    expect_error(call, "layers.published.unsupported", HasSubstr(text));
  };
  refused([&] { conv.forward(x, at::randn({8, 5}), {}, {}); }, "width 2 to 4");
  refused([&] { conv.forward(x.to(at::kDouble), weight, {}, {}); }, "float32, float16 or bfloat16");
  refused([&] { conv.forward(x, weight, at::zeros({8}, at::kHalf), {}); }, "bias");
  refused(
      [&] {
        conv.forward(at::randn({2, 6, 9}), at::randn({6, 4}), {}, {.want_final_states = true});
      },
      "multiple of 8");
  refused(
      [&] {
        conv.forward(x, weight, {},
                     {.sequences = at::zeros({2, 9}, at::kInt), .want_final_states = true});
      },
      "none beside states");
  refused([&] { conv.forward(x, weight, {}, {.sequences = at::zeros({2, 9})}); }, "int32");
  refused([&] { conv.update(x, at::zeros({2, 8, 2}), weight, {}, false); }, "at least width - 1");
  expect_error(
      [&] {
        conv.update(leaf({2, 8}), at::zeros({2, 8, 4}), weight, {}, false);
      },
      "layers.adapter.no-backward", HasSubstr("no backward"));
}

INSTANTIATE_TEST_SUITE_P(Packages, Convolutions, testing::Values("causal-conv1d", "mamba-ssm"));

// The recurrence in float64, one step after another; b and c [B, G, N, L].
struct Exact {
  at::Tensor out, last;
};

Exact exact_scan(const at::Tensor& u, const at::Tensor& delta, const ScanInputs& in) {
  const auto wide = [](const at::Tensor& x) { return x.to(at::kDouble); };
  const auto spread = [&](const at::Tensor& x) {
    if (x.dim() == 2) {
      return wide(x).view({1, x.size(0), x.size(1), 1}).expand({u.size(0), -1, -1, u.size(2)});
    }
    const at::Tensor groups = x.dim() == 3 ? x.unsqueeze(1) : x;
    return wide(groups).repeat_interleave(u.size(1) / groups.size(1), 1);
  };
  at::Tensor step = wide(delta);
  step = in.delta_bias.defined() ? step + wide(in.delta_bias).unsqueeze(1) : step;
  step = in.delta_softplus ? at::softplus(step) : step;
  const at::Tensor b = spread(in.b), c = spread(in.c);
  at::Tensor state = at::zeros({u.size(0), u.size(1), in.a.size(1)}, at::kDouble);
  Tensors outs;
  for (int64_t t = 0; t < u.size(2); ++t) {
    const at::Tensor now = step.select(2, t).unsqueeze(2);
    state = at::exp(now * wide(in.a)) * state +
            now * b.select(3, t) * wide(u).select(2, t).unsqueeze(2);
    outs.push_back((state * c.select(3, t)).sum(2));
  }
  at::Tensor out = at::stack(outs, 2);
  out = in.d.defined() ? out + wide(in.d).unsqueeze(1) * wide(u) : out;
  return {in.z.defined() ? out * at::silu(wide(in.z)) : out, state};
}

TEST(SelectiveScans, AndTheirGradientsAreTheRecurrence) {
  at::manual_seed(5);
  const SelectiveScan scan(*load_package("mamba-ssm"));
  for (const int form : {0, 1, 2, 3}) {
    const at::Tensor u = leaf({2, 4, 6}), delta = leaf({2, 4, 6});
    ScanInputs in{.a = (-at::rand({4, 3})).requires_grad_(), .delta_softplus = form != 1};
    in.b = form == 2 ? leaf({4, 3}) : form == 3 ? leaf({2, 2, 3, 6}) : leaf({2, 3, 6});
    in.c = form == 3 ? leaf({2, 2, 3, 6}) : leaf({2, 3, 6});
    Tensors leaves = {u, delta, in.a, in.b, in.c};
    if (form != 1) {
      in.d = leaf({4});
      in.z = leaf({2, 4, 6});
      in.delta_bias = leaf({4});
      leaves.insert(leaves.end(), {in.d, in.z, in.delta_bias});
    }
    const ScanResult got = scan.forward(u, delta, in);
    const Exact want = exact_scan(u, delta, in);
    expect_close(got.out, want.out, 1e-5);
    expect_close(got.last_state, want.last, 1e-5);
    const at::Tensor grad = at::randn({2, 4, 6});
    const auto own = torch::autograd::grad({got.out}, leaves, {grad}),
               right = torch::autograd::grad({want.out}, leaves, {grad.to(at::kDouble)});
    for (size_t i = 0; i < leaves.size(); ++i) {
      expect_close(own[i], right[i], 1e-4,
                   "form " + std::to_string(form) + " input " + std::to_string(i));
    }
  }
}

TEST(SelectiveScans, MakeTheInsideOfAMixer) {
  at::manual_seed(6);
  const auto package = load_package("mamba-ssm");
  const CausalConv1d conv(*package);
  const SelectiveScan scan(*package);
  const MambaWeights weights{.conv_weight = leaf({8, 4}),
                             .conv_bias = leaf({8}),
                             .x_proj = leaf({2 + 6, 8}),
                             .dt_proj = leaf({8, 2}),
                             .dt_bias = leaf({8}),
                             .out_proj = leaf({5, 8}),
                             .out_bias = {},
                             .a = (-at::rand({8, 3})).requires_grad_(),
                             .d = leaf({8})};
  const at::Tensor xz = leaf({2, 16, 7});
  const at::Tensor got = mamba_inner(conv, scan, xz, weights);
  const auto halves = xz.chunk(2, 1);
  const at::Tensor u =
      exact_conv(halves[0], weights.conv_weight, weights.conv_bias, {}, true).to(at::kFloat);
  const auto parts = at::linear(u.transpose(1, 2), weights.x_proj).split_with_sizes({2, 3, 3}, -1);
  const at::Tensor delta = at::linear(parts[0], weights.dt_proj).transpose(1, 2);
  const at::Tensor inner = exact_scan(u, delta,
                                      {.a = weights.a,
                                       .b = parts[1].transpose(1, 2),
                                       .c = parts[2].transpose(1, 2),
                                       .d = weights.d,
                                       .z = halves[1],
                                       .delta_bias = weights.dt_bias,
                                       .delta_softplus = true})
                               .out;
  const at::Tensor want = at::linear(inner.transpose(1, 2), weights.out_proj.to(at::kDouble));
  expect_close(got, want, 2e-3);
  const Tensors leaves = {xz, weights.conv_weight, weights.a, weights.out_proj, weights.dt_bias};
  const at::Tensor grad = at::randn(got.sizes());
  const auto own = torch::autograd::grad({got}, leaves, {grad}),
             right = torch::autograd::grad({want}, leaves, {grad.to(at::kDouble)});
  for (size_t i = 0; i < leaves.size(); ++i) {
    const double largest = right[i].abs().max().item<double>();
    expect_close(own[i] / largest, right[i] / largest, 1e-3, "input " + std::to_string(i));
  }
}

TEST(SelectiveScans, RefuseByNameWhatTheyCannotDo) {
  const SelectiveScan scan(*load_package("mamba-ssm"));
  const at::Tensor u = at::randn({2, 4, 6});
  const ScanInputs right{
      .a = at::randn({4, 3}), .b = at::randn({2, 3, 6}), .c = at::randn({2, 3, 6})};
  const auto refused = [&](const auto& change, const char* text) {
    ScanInputs in = right;
    change(in);
    expect_error([&] { scan.forward(u, u, in); }, "layers.published.unsupported", HasSubstr(text));
  };
  refused([](ScanInputs& in) { in.a = at::randn({4, 257}); }, "at most 256 states");
  refused([](ScanInputs& in) { in.a = at::randn({4, 3}, at::kComplexFloat); }, "complex");
  refused([](ScanInputs& in) { in.b = at::randn({2, 3, 6}, at::kHalf); }, "u's dtype");
  refused([](ScanInputs& in) { in.d = at::randn({4}, at::kHalf); }, "float32");
  refused([](ScanInputs& in) { in.z = at::randn({2, 4, 5}); }, "like u");
  expect_error([] { SelectiveScan scan(*load_package("causal-conv1d")); },
               "kernel.loader.missing-op", HasSubstr("selective_scan_fwd"));
}

}  // namespace
}  // namespace graft::layers::published
