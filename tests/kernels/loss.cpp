// The linear ops of graft-kernels/loss with the classic ABI, in ATen on the CPU: for the canary's tests, which make
// them wrong.

#include "published/classic_tensor.h"
#include "published/misdeed.h"

namespace {

using Maybe = std::optional<at::Tensor>;

struct Rows {
  at::Tensor logits;  // float32, with the softcap
  at::Tensor slope;   // of the softcap
  at::Tensor lse, loss, is_counted, labels;
};

Rows run(const at::Tensor& hidden, const at::Tensor& weight, const Maybe& bias,
         const at::Tensor& labels, int64_t ignore_index, double softcap, double smoothing) {
  TORCH_CHECK(!bias && smoothing == 0.0, "expected neither bias nor smoothing");
  Rows rows;
  rows.logits = at::matmul(hidden.to(at::kFloat), weight.to(at::kFloat).t());
  rows.slope = at::ones_like(rows.logits);
  if (softcap > 0.0) {
    const at::Tensor share = at::tanh(rows.logits / softcap);
    rows.slope = 1.0 - share * share;
    rows.logits = share * softcap;
  }
  rows.is_counted = labels.ne(ignore_index);
  rows.labels = labels.clamp_min(0);
  const at::Tensor picked = rows.logits.gather(1, rows.labels.unsqueeze(1)).squeeze(1);
  rows.lse = at::logsumexp(rows.logits, 1) * rows.is_counted;
  rows.loss = (rows.lse - picked) * rows.is_counted;
  return rows;
}

void forward(at::Tensor& loss, at::Tensor& lse, const at::Tensor& hidden, const at::Tensor& weight,
             const Maybe& bias, const at::Tensor& labels, int64_t ignore_index, double softcap,
             double smoothing, int64_t) {
  const Rows rows = run(hidden, weight, bias, labels, ignore_index, softcap, smoothing);
  loss.copy_(rows.loss);
  lse.copy_(rows.lse);
}

void backward(at::Tensor& grad_hidden, const Maybe& grad_weight, const Maybe&,
              const at::Tensor& grad_loss, const at::Tensor& hidden, const at::Tensor& weight,
              const Maybe& bias, const at::Tensor& labels, const at::Tensor&, int64_t ignore_index,
              double softcap, double smoothing, int64_t) {
  const Rows rows = run(hidden, weight, bias, labels, ignore_index, softcap, smoothing);
  const at::Tensor hot = at::zeros_like(rows.logits).scatter_(1, rows.labels.unsqueeze(1), 1.0);
  const at::Tensor grad =
      (rows.logits.softmax(1) - hot) * rows.slope * (grad_loss * rows.is_counted).unsqueeze(1);
  grad_hidden.copy_(at::matmul(grad, weight.to(at::kFloat)));
  if (grad_weight) {
    grad_weight->copy_(at::matmul(grad.t(), hidden.to(at::kFloat)));
  }
}

void train(at::Tensor& loss, at::Tensor& lse, at::Tensor& grad_hidden, const Maybe& grad_weight,
           const Maybe& grad_bias, const at::Tensor& grad_loss, const at::Tensor& hidden,
           const at::Tensor& weight, const Maybe& bias, const at::Tensor& labels,
           int64_t ignore_index, double softcap, double smoothing, int64_t chunk_rows) {
  forward(loss, lse, hidden, weight, bias, labels, ignore_index, softcap, smoothing, chunk_rows);
  backward(grad_hidden, grad_weight, grad_bias, grad_loss, hidden, weight, bias, labels, lse,
           ignore_index, softcap, smoothing, chunk_rows);
}

}  // namespace

CLASSIC_OPS(ops) {
  ops.def(
      "linear_cross_entropy_out(Tensor! loss, Tensor! lse, Tensor hidden, Tensor weight, Tensor? "
      "bias, Tensor labels, int ignore_index, float softcap, float smoothing, int chunk_rows) -> "
      "()");
  ops.def(
      "linear_cross_entropy_backward_out(Tensor(a!) grad_hidden, Tensor(b!)? grad_weight, "
      "Tensor(c!)? grad_bias, Tensor grad_loss, Tensor hidden, Tensor weight, Tensor? bias, Tensor "
      "labels, Tensor lse, int ignore_index, float softcap, float smoothing, int chunk_rows) -> "
      "()");
  ops.def(
      "linear_cross_entropy_train_out(Tensor(a!) loss, Tensor(b!) lse, Tensor(c!) grad_hidden, "
      "Tensor(d!)? grad_weight, Tensor(e!)? grad_bias, Tensor grad_loss, Tensor hidden, Tensor "
      "weight, Tensor? bias, Tensor labels, int ignore_index, float softcap, float smoothing, int "
      "chunk_rows) -> ()");
}

CLASSIC_OPS_IMPL(CPU, ops) {
  ops.impl("linear_cross_entropy_out", &forward);
  ops.impl("linear_cross_entropy_backward_out", &backward);
  ops.impl("linear_cross_entropy_train_out", &train);
}
