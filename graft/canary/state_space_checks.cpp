// The causal convolution and the selective scan, as published, against their recurrences.

#include "graft/canary/op_checks.h"
#include "graft/layers/published/causal_conv1d.h"
#include "graft/layers/published/selective_scan.h"

namespace graft::canary {

namespace {

namespace published = layers::published;
using layers::to_exact;

// x [B, C, L], weight [C, W], bias [C], before [B, C, W - 1] (what lies before the first place; undefined: zero), all
// float64.
at::Tensor convolve(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                    const at::Tensor& before = {}) {
  const at::Tensor padded =
      before.defined() ? at::cat({before, x}, 2) : at::constant_pad_nd(x, {weight.size(1) - 1, 0});
  return at::convolution(padded, weight.unsqueeze(1), bias, {1}, {0}, {1}, /*transposed=*/false,
                         {0}, /*groups=*/x.size(1));
}

struct Convolved {
  at::Tensor x, weight, bias;
};

Convolved make_convolved(OpChecks& checks) {
  return {checks.normal({2, 8, 21}), checks.normal({8, 4}, 0.5), checks.normal({8}, 0.3)};
}

void check_convolution_forward(OpChecks& checks, const published::CausalConv1d& convolution) {
  for (const bool silu : {true, false}) {
    checks.check("causal_conv1d_fwd", silu ? "silu" : "", {at::kFloat, at::kHalf, at::kBFloat16},
                 [&]() -> Answers {
                   const auto [x, weight, bias] = make_convolved(checks);
                   const at::Tensor sum = convolve(to_exact(x), to_exact(weight), to_exact(bias));
                   return {{convolution.forward(x, weight, bias, {.silu = silu}).out,
                            silu ? at::silu(sum) : sum,
                            {}}};
                 });
  }
  checks.check("causal_conv1d_fwd", "states", {at::kFloat, at::kBFloat16}, [&]() -> Answers {
    const auto [x, weight, bias] = make_convolved(checks);
    const at::Tensor before = checks.normal({2, 8, 3});
    const auto result = convolution.forward(
        x, weight, bias, {.silu = true, .initial_states = before, .want_final_states = true});
    return {{result.out,
             at::silu(convolve(to_exact(x), to_exact(weight), to_exact(bias), to_exact(before))),
             {}},
            {result.final_states, to_exact(x).narrow(2, x.size(2) - 3, 3), {}}};
  });
}

void check_convolution(OpChecks& checks) {
  const published::CausalConv1d convolution(checks.kernel());
  check_convolution_forward(checks, convolution);
  checks.check_gradients(
      "causal_conv1d_bwd", "", {at::kFloat, at::kBFloat16}, [&]() -> Differentiable {
        const auto [x, weight, bias] = make_convolved(checks);
        return {{x, weight, bias},
                [&](const auto& in) -> std::vector<at::Tensor> {
                  return {convolution.forward(in[0], in[1], in[2], {.silu = true}).out};
                },
                [](const auto& in) -> std::vector<at::Tensor> {
                  return {at::silu(convolve(in[0], in[1], in[2]))};
                }};
      });
  checks.check("causal_conv1d_update", "", {at::kFloat, at::kBFloat16}, [&]() -> Answers {
    const at::Tensor x = checks.normal({2, 8}), weight = checks.normal({8, 4}, 0.5),
                     bias = checks.normal({8}, 0.3), state = checks.normal({2, 8, 3});
    const at::Tensor seen = at::cat({state, x.unsqueeze(2)}, 2).narrow(2, 1, 3);
    const at::Tensor sum =
        convolve(to_exact(x).unsqueeze(2), to_exact(weight), to_exact(bias), to_exact(state));
    const at::Tensor got = convolution.update(x, state, weight, bias, /*silu=*/true);
    return {{got, at::silu(sum).squeeze(2), {}}, same(state, seen)};
  });
}

// In float64: u and delta [B, C, L], a [C, N], b and c [B, N, L], d [C]; z, like u, and bias [C] may be undefined.
struct Scanned {
  at::Tensor out, last_state;
};

Scanned scan_exactly(const std::vector<at::Tensor>& in, bool gated) {
  const at::Tensor &u = in[0], &a = in[2], &b = in[3], &c = in[4];
  const at::Tensor delta = gated ? at::softplus(in[1] + in[7].unsqueeze(-1)) : in[1];
  at::Tensor state = at::zeros({u.size(0), u.size(1), a.size(1)}, u.options());
  std::vector<at::Tensor> out;
  for (int64_t t = 0; t < u.size(2); ++t) {
    const at::Tensor now = delta.select(2, t).unsqueeze(-1);
    state =
        state * (now * a).exp() + now * b.select(2, t).unsqueeze(1) * u.select(2, t).unsqueeze(-1);
    out.push_back((state * c.select(2, t).unsqueeze(1)).sum(-1));
  }
  const at::Tensor sum = at::stack(out, 2) + in[5].unsqueeze(-1) * u;
  return {gated ? sum * at::silu(in[6]) : sum, state};
}

// The tensors of a scan in the order of scan_exactly().
std::vector<at::Tensor> make_scanned(OpChecks& checks, bool gated) {
  const at::Tensor u = checks.normal({2, 8, 19}), delta = checks.normal({2, 8, 19}, 0.2).abs(),
                   a = -checks.wide({8, 4}).abs(), b = checks.normal({2, 4, 19}, 0.6),
                   c = checks.normal({2, 4, 19}, 0.8), d = checks.wide({8}, 0.4);
  std::vector<at::Tensor> all = {u, delta, a, b, c, d};
  if (gated) {
    all.push_back(checks.normal({2, 8, 19}));
    all.push_back(checks.wide({8}, 0.3));
  }
  return all;
}

published::ScanInputs scan_inputs(const std::vector<at::Tensor>& in, bool gated) {
  published::ScanInputs inputs{.a = in[2], .b = in[3], .c = in[4], .d = in[5]};
  if (gated) {
    inputs.z = in[6];
    inputs.delta_bias = in[7];
    inputs.delta_softplus = true;
  }
  return inputs;
}

void check_scan(OpChecks& checks) {
  const published::SelectiveScan scan(checks.kernel());
  for (const bool gated : {false, true}) {
    const char* form = gated ? "gate, bias, softplus" : "";
    checks.check("selective_scan_fwd", form, {at::kFloat, at::kBFloat16}, [&]() -> Answers {
      const auto in = make_scanned(checks, gated);
      std::vector<at::Tensor> wide;
      for (const at::Tensor& x : in) {
        wide.push_back(to_exact(x));
      }
      const auto got = scan.forward(in[0], in[1], scan_inputs(in, gated));
      const auto [out, last] = scan_exactly(wide, gated);
      return {{got.out, out, {}}, {got.last_state, last, last.to(at::kFloat)}};
    });
    checks.check_gradients(
        "selective_scan_bwd", form, {at::kFloat, at::kBFloat16}, [&, gated]() -> Differentiable {
          return {make_scanned(checks, gated),
                  [&scan, gated](const auto& in) -> std::vector<at::Tensor> {
                    return {scan.forward(in[0], in[1], scan_inputs(in, gated)).out};
                  },
                  [gated](const auto& in) -> std::vector<at::Tensor> {
                    return {scan_exactly(in, gated).out};
                  }};
        });
  }
}

}  // namespace

void check_state_space(OpChecks& checks) {
  OpChecks::run_group([&] {
    if (checks.has("causal_conv1d_fwd")) {
      check_convolution(checks);
    }
  });
  if (checks.has("selective_scan_fwd")) {
    check_scan(checks);
  }
}

}  // namespace graft::canary
