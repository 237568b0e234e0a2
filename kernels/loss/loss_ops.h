// The package's ops as functions on tensors; each device implements rows of logits and the chunked
// linear form.
#pragma once

#include <optional>
#include <tuple>

#include "kernels/common/registration.h"
#include "kernels/common/tensor_checks.h"
#include "kernels/loss/loss.h"

namespace graft_kernels::loss {

// A checked call of a linear form. Rows are tokens; the logits of `chunk_rows` of them exist at a
// time.
struct LinearProblem {
  Problem rows;  // without logits and grad
  int64_t depth = 0;
  int64_t chunk_rows = 0;
  Tensor hidden;               // [rows, depth]
  Tensor weight;               // [columns, depth]
  std::optional<Tensor> bias;  // [columns]
  std::optional<Tensor> grad_hidden, grad_weight, grad_bias;
};

// What the linear ops have in common, in the order of their schemas.
struct LinearArguments {
  const Tensor& hidden;
  const Tensor& weight;
  const std::optional<Tensor>& bias;
  const Tensor& labels;
  int64_t ignore_index;
  double softcap;
  double smoothing;
  int64_t chunk_rows;
};

struct LinearGradients {
  std::optional<Tensor> hidden, weight, bias;
  std::optional<Tensor> grad_loss;
};

// Check the arguments of `op` and describe the call.
Problem check_forward(const char* op, const Tensor& loss, const Tensor& lse, const Tensor& logits,
                      const Tensor& labels, const Options& options);
Problem check_backward(const char* op, const Tensor& grad_logits, const Tensor& grad_loss,
                       const Tensor& logits, const Tensor& labels, const Tensor& lse,
                       const Options& options);
LinearProblem check_linear(const char* op, Mode mode, const std::optional<Tensor>& loss,
                           const Tensor& lse, const LinearGradients& gradients,
                           const LinearArguments& arguments);
Options check_options(const char* op, int64_t ignore_index, double softcap, double smoothing);
// A new float32 tensor with one element per row of `rows` (all its dimensions but the last).
Tensor new_row_values(const char* op, NamedTensor rows);
// Gradients of a functional form; that of an absent bias has no elements.
LinearGradients new_gradients(const LinearArguments& arguments, const Tensor& grad_loss,
                              bool with_weight);

// The rows [begin, begin + count) of a linear problem's logits, to be filled in with the logits.
Problem chunk_of(const LinearProblem& linear, int64_t begin, int64_t count);
// Rows of a chunk whose logits take at most `bytes`, unless the caller says how many.
int64_t chunk_rows_for(const LinearProblem& linear, int64_t bytes, int64_t row_bytes);

// The ops for a device whose rows are computed by kRows and whose linear forms by kLinear.
template <void (*kRows)(const Problem&, const Tensor& like), void (*kLinear)(LinearProblem&)>
struct Ops {
  static void cross_entropy_out(Tensor loss, Tensor lse, const Tensor& logits, const Tensor& labels,
                                int64_t ignore_index, double softcap, double smoothing) {
    const char* op = "cross_entropy_out";
    const Options options = check_options(op, ignore_index, softcap, smoothing);
    kRows(check_forward(op, loss, lse, logits, labels, options), logits);
  }
  static std::tuple<Tensor, Tensor> cross_entropy(const Tensor& logits, const Tensor& labels,
                                                  int64_t ignore_index, double softcap,
                                                  double smoothing) {
    const char* op = "cross_entropy";
    const Options options = check_options(op, ignore_index, softcap, smoothing);
    Tensor loss = new_row_values(op, {"logits", logits});
    Tensor lse = new_row_values(op, {"logits", logits});
    kRows(check_forward(op, loss, lse, logits, labels, options), logits);
    return {loss, lse};
  }
  static void cross_entropy_backward_out(Tensor grad_logits, const Tensor& grad_loss,
                                         const Tensor& logits, const Tensor& labels,
                                         const Tensor& lse, int64_t ignore_index, double softcap,
                                         double smoothing) {
    const char* op = "cross_entropy_backward_out";
    const Options options = check_options(op, ignore_index, softcap, smoothing);
    kRows(check_backward(op, grad_logits, grad_loss, logits, labels, lse, options), logits);
  }
  static Tensor cross_entropy_backward(const Tensor& grad_loss, const Tensor& logits,
                                       const Tensor& labels, const Tensor& lse,
                                       int64_t ignore_index, double softcap, double smoothing) {
    const char* op = "cross_entropy_backward";
    const Options options = check_options(op, ignore_index, softcap, smoothing);
    Tensor grad_logits = torch::stable::new_empty(logits, logits.sizes());
    kRows(check_backward(op, grad_logits, grad_loss, logits, labels, lse, options), logits);
    return grad_logits;
  }
  static void run(const char* op, Mode mode, const std::optional<Tensor>& loss, const Tensor& lse,
                  const LinearGradients& gradients, const LinearArguments& arguments) {
    LinearProblem problem = check_linear(op, mode, loss, lse, gradients, arguments);
    kLinear(problem);
  }
  static void linear_cross_entropy_out(Tensor loss, Tensor lse, const Tensor& hidden,
                                       const Tensor& weight, const std::optional<Tensor>& bias,
                                       const Tensor& labels, int64_t ignore_index, double softcap,
                                       double smoothing, int64_t chunk_rows) {
    run("linear_cross_entropy_out", Mode::kForward, loss, lse, {},
        {hidden, weight, bias, labels, ignore_index, softcap, smoothing, chunk_rows});
  }
  static std::tuple<Tensor, Tensor> linear_cross_entropy(const Tensor& hidden, const Tensor& weight,
                                                         const std::optional<Tensor>& bias,
                                                         const Tensor& labels, int64_t ignore_index,
                                                         double softcap, double smoothing,
                                                         int64_t chunk_rows) {
    const char* op = "linear_cross_entropy";
    Tensor loss = new_row_values(op, {"hidden", hidden});
    Tensor lse = new_row_values(op, {"hidden", hidden});
    run(op, Mode::kForward, loss, lse, {},
        {hidden, weight, bias, labels, ignore_index, softcap, smoothing, chunk_rows});
    return {loss, lse};
  }
  static void linear_cross_entropy_backward_out(
      Tensor grad_hidden, const std::optional<Tensor>& grad_weight,
      const std::optional<Tensor>& grad_bias, const Tensor& grad_loss, const Tensor& hidden,
      const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& labels,
      const Tensor& lse, int64_t ignore_index, double softcap, double smoothing,
      int64_t chunk_rows) {
    run("linear_cross_entropy_backward_out", Mode::kBackward, std::nullopt, lse,
        {grad_hidden, grad_weight, grad_bias, grad_loss},
        {hidden, weight, bias, labels, ignore_index, softcap, smoothing, chunk_rows});
  }
  static std::tuple<Tensor, Tensor, Tensor> linear_cross_entropy_backward(
      const Tensor& grad_loss, const Tensor& hidden, const Tensor& weight,
      const std::optional<Tensor>& bias, const Tensor& labels, const Tensor& lse,
      int64_t ignore_index, double softcap, double smoothing, int64_t chunk_rows,
      bool with_weight) {
    const LinearArguments arguments{hidden,       weight,  bias,      labels,
                                    ignore_index, softcap, smoothing, chunk_rows};
    const LinearGradients made = new_gradients(arguments, grad_loss, with_weight);
    run("linear_cross_entropy_backward", Mode::kBackward, std::nullopt, lse, made, arguments);
    return {*made.hidden, or_nothing(made.weight, weight), or_nothing(made.bias, weight)};
  }
  static void linear_cross_entropy_train_out(
      Tensor loss, Tensor lse, Tensor grad_hidden, const std::optional<Tensor>& grad_weight,
      const std::optional<Tensor>& grad_bias, const Tensor& grad_loss, const Tensor& hidden,
      const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& labels,
      int64_t ignore_index, double softcap, double smoothing, int64_t chunk_rows) {
    run("linear_cross_entropy_train_out", Mode::kTrain, loss, lse,
        {grad_hidden, grad_weight, grad_bias, grad_loss},
        {hidden, weight, bias, labels, ignore_index, softcap, smoothing, chunk_rows});
  }
  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> linear_cross_entropy_train(
      const Tensor& grad_loss, const Tensor& hidden, const Tensor& weight,
      const std::optional<Tensor>& bias, const Tensor& labels, int64_t ignore_index, double softcap,
      double smoothing, int64_t chunk_rows, bool with_weight) {
    const char* op = "linear_cross_entropy_train";
    const LinearArguments arguments{hidden,       weight,  bias,      labels,
                                    ignore_index, softcap, smoothing, chunk_rows};
    Tensor loss = new_row_values(op, {"hidden", hidden});
    Tensor lse = new_row_values(op, {"hidden", hidden});
    const LinearGradients made = new_gradients(arguments, grad_loss, with_weight);
    run(op, Mode::kTrain, loss, lse, made, arguments);
    return {loss, lse, *made.hidden, or_nothing(made.weight, weight),
            or_nothing(made.bias, weight)};
  }
  static Tensor or_nothing(const std::optional<Tensor>& value, const Tensor& like) {
    return value ? *value : torch::stable::new_empty(like, {0});
  }
  static void implement(torch::stable::detail::StableLibrary& library) {
    library.impl("cross_entropy_out", TORCH_BOX(&cross_entropy_out));
    library.impl("cross_entropy", TORCH_BOX(&cross_entropy));
    library.impl("cross_entropy_backward_out", TORCH_BOX(&cross_entropy_backward_out));
    library.impl("cross_entropy_backward", TORCH_BOX(&cross_entropy_backward));
    library.impl("linear_cross_entropy_out", TORCH_BOX(&linear_cross_entropy_out));
    library.impl("linear_cross_entropy", TORCH_BOX(&linear_cross_entropy));
    library.impl("linear_cross_entropy_backward_out",
                 TORCH_BOX(&linear_cross_entropy_backward_out));
    library.impl("linear_cross_entropy_backward", TORCH_BOX(&linear_cross_entropy_backward));
    library.impl("linear_cross_entropy_train_out", TORCH_BOX(&linear_cross_entropy_train_out));
    library.impl("linear_cross_entropy_train", TORCH_BOX(&linear_cross_entropy_train));
  }
};

}  // namespace graft_kernels::loss
