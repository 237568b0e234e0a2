// The gated MLP in one call, with the schemas of graft-kernels/mlp (kernels/mlp/mlp.cpp).

#include <functional>

#include <ATen/core/grad_mode.h>
#include <c10/core/InferenceMode.h>
#include <fmt/format.h>
#include <torch/csrc/autograd/autograd.h>

#include "graft/canary/op_checks.h"
#include "graft/layers/published/published_op.h"

namespace graft::canary {

namespace {

using layers::to_exact;
using layers::published::maybe;
using layers::published::PublishedOp;

constexpr char kOut[] =
    "mlp_out(Tensor! out, Tensor x, Tensor gate_weight, Tensor up_weight, Tensor down_weight, int "
    "act, Tensor? gate_bias, Tensor? up_bias, Tensor? down_bias) -> ()";
constexpr char kMlp[] =
    "mlp(Tensor x, Tensor gate_weight, Tensor up_weight, Tensor down_weight, int act, Tensor? "
    "gate_bias, Tensor? up_bias, Tensor? down_bias) -> Tensor";
constexpr char kBackward[] =
    "mlp_backward(Tensor grad_out, Tensor x, Tensor gate_weight, Tensor up_weight, Tensor "
    "down_weight, int act, Tensor? gate_bias, Tensor? up_bias, Tensor? down_bias, bool weights) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)";

constexpr char kTrain[] =
    "mlp_train(Tensor x, Tensor gate_weight, Tensor up_weight, Tensor down_weight, int act, "
    "Tensor? "
    "gate_bias, Tensor? up_bias, Tensor? down_bias) -> (Tensor, Tensor, Tensor)";
constexpr char kTrainBackward[] =
    "mlp_train_backward(Tensor grad_out, Tensor x, Tensor gate, Tensor up, Tensor gate_weight, "
    "Tensor up_weight, Tensor down_weight, int act, Tensor? gate_bias, Tensor? up_bias, Tensor? "
    "down_bias, bool weights) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)";

constexpr OpChecks::Dtypes kAll = {at::kFloat, at::kBFloat16, at::kHalf};
constexpr const char* kFunctions[] = {"silu", "gelu", "gelu_tanh"};  // by the op's numbers

at::Tensor activate(const at::Tensor& x, int64_t act) {
  return act == 0 ? at::silu(x) : at::gelu(x, act == 1 ? "none" : "tanh");
}

// x, gate, up and down weight, and their biases or nothing.
using Arguments = std::vector<at::Tensor>;

Arguments make_arguments(OpChecks& checks, int64_t rows, bool biased) {
  constexpr int64_t kHidden = 40, kInner = 72;
  Arguments in = {checks.normal({rows, kHidden}), checks.normal({kInner, kHidden}, 0.2),
                  checks.normal({kInner, kHidden}, 0.2), checks.normal({kHidden, kInner}, 0.2)};
  for (const int64_t size : {kInner, kInner, kHidden}) {
    in.push_back(biased ? checks.normal({size}, 0.3) : at::Tensor());
  }
  return in;
}

at::Tensor product(const Arguments& in, const at::Tensor& x, size_t i) {
  return at::linear(x, in[i], maybe(in[i + 3]));
}

// In float64, or step by step in the dtype of the arguments.
at::Tensor run_mlp(const Arguments& in, int64_t act) {
  return product(in, activate(product(in, in[0], 1), act) * product(in, in[0], 2), 3);
}

Arguments widened(const Arguments& in) {
  Arguments wide;
  for (const at::Tensor& x : in) {
    wide.push_back(x.defined() ? to_exact(x) : x);
  }
  return wide;
}

// Gradients of everything that is there, by autograd.
std::vector<at::Tensor> gradients(const Arguments& in, const at::Tensor& grad, int64_t act) {
  const c10::InferenceMode no_inference(false);
  const at::AutoGradMode records(true);
  Arguments leaves;
  std::vector<at::Tensor> wanted;
  for (const at::Tensor& x : in) {
    leaves.push_back(x.defined() ? x.clone().requires_grad_() : x);
    if (x.defined()) {
      wanted.push_back(leaves.back());
    }
  }
  return torch::autograd::grad({run_mlp(leaves, act)}, wanted, {grad.clone()});
}

// Few rows are served by other code than many.
struct Form {
  int64_t rows;
  int64_t act;
  bool biased;
  std::string name() const {
    return fmt::format("{} of {} {}{}", kFunctions[act], rows, rows == 1 ? "row" : "rows",
                       biased ? ", biases" : "");
  }
};
const Form kForms[] = {{1, 0, false}, {5, 1, true}, {40, 2, false}, {40, 0, true}};

void check_forward(OpChecks& checks, const Form& form) {
  const PublishedOp mlp(checks.kernel(), {kMlp}), mlp_out(checks.kernel(), {kOut});
  const auto answer = [&](const auto& call) {
    return [&checks, &form, call]() -> Answers {
      const Arguments in = make_arguments(checks, form.rows, form.biased);
      return {{call(in), run_mlp(widened(in), form.act), run_mlp(in, form.act)}};
    };
  };
  checks.check("mlp", form.name(), kAll, answer([&](const Arguments& in) {
                 return mlp(in[0], in[1], in[2], in[3], form.act, maybe(in[4]), maybe(in[5]),
                            maybe(in[6]))[0];
               }));
  checks.check("mlp_out", form.name(), kAll, answer([&](const Arguments& in) {
                 const at::Tensor out = at::full_like(in[0], 7.0);
                 mlp_out(out, in[0], in[1], in[2], in[3], form.act, maybe(in[4]), maybe(in[5]),
                         maybe(in[6]));
                 return out;
               }));
}

// Both forms of the backward: make_all(arguments, grad) gives the gradients, empty where there is nothing to differentiate.
void check_gradients(
    OpChecks& checks, const char* op, const Form& form,
    const std::function<std::vector<at::Tensor>(const Arguments&, const at::Tensor&)>& make_all) {
  checks.check(op, form.name(), kAll, [&]() -> Answers {
    const Arguments in = make_arguments(checks, form.rows, form.biased);
    const at::Tensor grad = checks.normal(in[0].sizes());
    const auto all = make_all(in, grad);
    const auto exact = gradients(widened(in), to_exact(grad), form.act),
               eager = gradients(in, grad, form.act);
    Answers answers;
    for (size_t i = 0; i < in.size(); ++i) {
      if (in[i].defined()) {
        answers.push_back({all.at(i), exact.at(answers.size()), eager.at(answers.size())});
      }
    }
    return answers;
  });
}

void check_backward(OpChecks& checks, const Form& form) {
  const PublishedOp backward(checks.kernel(), {kBackward});
  check_gradients(checks, "mlp_backward", form, [&](const Arguments& in, const at::Tensor& grad) {
    return backward(grad, in[0], in[1], in[2], in[3], form.act, maybe(in[4]), maybe(in[5]),
                    maybe(in[6]), /*weights=*/true);
  });
}

void check_train(OpChecks& checks, const Form& form) {
  const PublishedOp train(checks.kernel(), {kTrain}), backward(checks.kernel(), {kTrainBackward});
  const auto run_train = [&](const Arguments& in) {
    return train(in[0], in[1], in[2], in[3], form.act, maybe(in[4]), maybe(in[5]), maybe(in[6]));
  };
  checks.check("mlp_train", form.name(), kAll, [&]() -> Answers {
    const Arguments in = make_arguments(checks, form.rows, form.biased), wide = widened(in);
    const auto own = run_train(in);
    return {{own.at(0), run_mlp(wide, form.act), run_mlp(in, form.act)},
            {own.at(1), product(wide, wide[0], 1), product(in, in[0], 1)},
            {own.at(2), product(wide, wide[0], 2), product(in, in[0], 2)}};
  });
  check_gradients(checks, "mlp_train_backward", form,
                  [&](const Arguments& in, const at::Tensor& grad) {
                    const auto kept = run_train(in);
                    return backward(grad, in[0], kept.at(1), kept.at(2), in[1], in[2], in[3],
                                    form.act, maybe(in[4]), maybe(in[5]), maybe(in[6]),
                                    /*weights=*/true);
                  });
}

}  // namespace

void check_mlp(OpChecks& checks) {
  if (!checks.has("mlp") || !checks.has("mlp_out")) {
    return;
  }
  for (const Form& form : kForms) {
    check_forward(checks, form);
    if (checks.has("mlp_backward")) {
      check_backward(checks, form);
    }
    if (checks.has("mlp_train") && checks.has("mlp_train_backward")) {
      check_train(checks, form);
    }
  }
}

}  // namespace graft::canary
