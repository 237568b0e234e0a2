// Cross-entropy of logits, and the linear form: forward alone, and a training step's loss with all
// gradients. Beside ATen's own over whole logits, and over chunks of them.

#include "kernels/common/bench_harness.h"

namespace {

using graft_kernels::testing::Harness;
using graft_kernels::testing::largest_error;
using graft_kernels::testing::Package;
using graft_kernels::testing::Row;

constexpr int64_t kIgnore = -100;

struct Shape {
  int64_t rows, depth, columns;
};

at::Tensor exact_loss(const at::Tensor& logits, const at::Tensor& labels) {
  return at::cross_entropy_loss(logits.to(at::kDouble), labels, {}, at::Reduction::None, kIgnore);
}

// Loss and gradient of the logits with ATen's operations, as autograd calls them.
at::Tensor eager_gradient(const at::Tensor& logits, const at::Tensor& labels) {
  const at::Tensor wide = logits.to(at::kFloat);
  const at::Tensor log_shares = at::log_softmax(wide, -1);
  const auto [loss, weight] =
      at::nll_loss_forward(log_shares, labels, {}, at::Reduction::Sum, kIgnore);
  const at::Tensor grad = at::nll_loss_backward(at::ones_like(loss), log_shares, labels, {},
                                                at::Reduction::Sum, kIgnore, weight);
  return at::_log_softmax_backward_data(grad, log_shares, -1, at::kFloat).to(logits.scalar_type());
}

void eager_forward(const at::Tensor& logits, const at::Tensor& labels) {
  at::cross_entropy_loss(logits.to(at::kFloat), labels, {}, at::Reduction::None, kIgnore);
}

struct Inputs {
  at::Tensor hidden, weight, labels, factor;
  at::Tensor loss, lse, grad_hidden, grad_weight;
};

Inputs make_inputs(const Shape& shape, const at::TensorOptions& options) {
  Inputs made;
  made.hidden = at::randn({shape.rows, shape.depth}, options);
  made.weight = at::randn({shape.columns, shape.depth}, options).mul_(0.02);
  made.labels = at::randint(shape.columns, {shape.rows}, options.dtype(at::kLong));
  made.factor = at::ones({1}, options.dtype(at::kFloat)).expand({shape.rows});
  made.loss = at::empty({shape.rows}, options.dtype(at::kFloat));
  made.lse = at::empty_like(made.loss);
  made.grad_hidden = at::empty_like(made.hidden);
  made.grad_weight = at::empty_like(made.weight);
  return made;
}

// A step in chunks of tokens with ATen's operations: what a careful user writes without a kernel.
void chunked_step(const Inputs& inputs, int64_t chunk_rows) {
  at::Tensor grad_weight = inputs.grad_weight, grad_hidden = inputs.grad_hidden;
  for (int64_t begin = 0; begin < inputs.hidden.size(0); begin += chunk_rows) {
    const int64_t end = std::min(begin + chunk_rows, inputs.hidden.size(0));
    const at::Tensor hidden = inputs.hidden.slice(0, begin, end);
    const at::Tensor grad =
        eager_gradient(at::matmul(hidden, inputs.weight.t()), inputs.labels.slice(0, begin, end));
    at::Tensor own = grad_hidden.slice(0, begin, end);
    at::mm_out(own, grad, inputs.weight);
    begin == 0 ? at::mm_out(grad_weight, grad.t(), hidden)
               : at::addmm_out(grad_weight, grad_weight, grad.t(), hidden);
  }
}

void bench_logits(Harness& harness, at::ScalarType dtype, int64_t rows, int64_t columns) {
  const Package& package = Package::for_device("loss", harness.device());
  const at::TensorOptions options = at::TensorOptions(harness.device()).dtype(dtype);
  const at::Tensor logits = at::randn({rows, columns}, options);
  const Inputs inputs = make_inputs({rows, 1, columns}, options);
  at::Tensor grad = at::empty_like(logits);
  const int64_t bytes = rows * columns * static_cast<int64_t>(logits.element_size());
  Row row;
  row.op = "cross_entropy";
  row.dtype = c10::toString(dtype);
  row.shape = std::to_string(rows) + "x" + std::to_string(columns);
  row.bytes = bytes;
  row.work = [&] {
    package("cross_entropy_out", inputs.loss, inputs.lse, logits, inputs.labels, kIgnore, 0.0, 0.0);
  };
  row.peers = {{"float, at::cross_entropy_loss", [&] { eager_forward(logits, inputs.labels); }}};
  row.difference = [&] {
    row.work();
    const int64_t checked = std::min<int64_t>(rows, 16);
    return largest_error(
        inputs.loss.slice(0, 0, checked),
        exact_loss(logits.slice(0, 0, checked), inputs.labels.slice(0, 0, checked)));
  };
  row.tolerance = 1e-4;
  harness.run(row);

  row.op = "cross_entropy_backward";
  row.bytes = 2 * bytes;
  row.work = [&] {
    package("cross_entropy_backward_out", grad, inputs.factor, logits, inputs.labels, inputs.lse,
            kIgnore, 0.0, 0.0);
  };
  row.peers = {{"forward and backward of at::", [&] { eager_gradient(logits, inputs.labels); }}};
  row.difference = [&] {
    row.work();
    const int64_t checked = std::min<int64_t>(rows, 16);
    return largest_error(
        grad.slice(0, 0, checked),
        eager_gradient(logits.slice(0, 0, checked), inputs.labels.slice(0, 0, checked))
            .to(at::kDouble));
  };
  row.tolerance = 1e-2;
  harness.run(row);
}

void bench_linear(Harness& harness, at::ScalarType dtype, const Shape& shape) {
  const Package& package = Package::for_device("loss", harness.device());
  const at::TensorOptions options = at::TensorOptions(harness.device()).dtype(dtype);
  const Inputs inputs = make_inputs(shape, options);
  const std::optional<at::Tensor> none;
  const double flops = 2.0 * static_cast<double>(shape.rows * shape.depth) * shape.columns;
  Row row;
  row.op = "linear_cross_entropy";
  row.dtype = c10::toString(dtype);
  row.shape = std::to_string(shape.rows) + "x" + std::to_string(shape.depth) + "x" +
              std::to_string(shape.columns);
  row.bytes = static_cast<int64_t>(inputs.hidden.nbytes() + inputs.weight.nbytes());
  row.flops = flops;
  row.work = [&] {
    package("linear_cross_entropy_out", inputs.loss, inputs.lse, inputs.hidden, inputs.weight, none,
            inputs.labels, kIgnore, 0.0, 0.0, int64_t{0});
  };
  row.peers = {{"at::matmul, float, at::cross_entropy_loss", [&] {
                  eager_forward(at::matmul(inputs.hidden, inputs.weight.t()), inputs.labels);
                }}};
  row.difference = [&] {
    row.work();
    const int64_t first = std::max<int64_t>(shape.rows - 16, 0);
    const at::Tensor logits =
        at::matmul(inputs.hidden.slice(0, first).to(at::kFloat), inputs.weight.to(at::kFloat).t());
    return largest_error(inputs.loss.slice(0, first),
                         exact_loss(logits, inputs.labels.slice(0, first)));
  };
  row.tolerance = dtype == at::kFloat ? 1e-4 : 3e-2;
  harness.run(row);

  row.op = "linear_cross_entropy_train";
  row.bytes *= 2;
  row.flops = 3 * flops;
  const std::optional<at::Tensor> grad_weight = inputs.grad_weight;
  row.work = [&] {
    package("linear_cross_entropy_train_out", inputs.loss, inputs.lse, inputs.grad_hidden,
            grad_weight, none, inputs.factor, inputs.hidden, inputs.weight, none, inputs.labels,
            kIgnore, 0.0, 0.0, int64_t{0});
  };
  row.peers = {{"the same in chunks of 4096 with at::", [&] { chunked_step(inputs, 4096); }}};
  row.difference = [&] {
    chunked_step(inputs, 4096);
    const at::Tensor expected = inputs.grad_weight.to(at::kFloat);
    row.work();
    const at::Tensor error =
        (inputs.grad_weight.to(at::kFloat) - expected).norm() / expected.norm();
    return error.item<double>();
  };
  row.tolerance = dtype == at::kFloat ? 1e-4 : 1e-2;
  harness.run(row);
}

}  // namespace

int main() {
  return graft_kernels::testing::run_benchmarks([](Harness& harness) {
    at::NoGradGuard no_grad;
    at::manual_seed(0);
    if (!harness.device().is_cuda()) {
      bench_logits(harness, at::kFloat, 256, 49152);
      bench_logits(harness, at::kBFloat16, 256, 49152);
      bench_linear(harness, at::kFloat, {256, 576, 49152});
      bench_linear(harness, at::kBFloat16, {256, 576, 49152});
      return;
    }
    for (const int64_t columns : {1024, 8192, 32768, 131072, 262144}) {
      bench_logits(harness, at::kBFloat16, columns > 131072 ? 4096 : 8192, columns);
    }
    bench_logits(harness, at::kFloat, 8192, 32768);
    bench_linear(harness, at::kBFloat16, {2048, 4096, 131072});
    bench_linear(harness, at::kBFloat16, {8192, 4096, 131072});
    bench_linear(harness, at::kHalf, {8192, 2048, 128256});
  });
}
