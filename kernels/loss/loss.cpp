// Cross-entropy of rows of logits with integer labels, and of the logits of a linear layer without
// keeping them: forward, backward, and both in one pass for training.
//
//   z    = logits, or softcap * tanh(logits / softcap);  logits = hidden weight^T + bias
//   lse  = log(sum(exp(z)))
//   loss = lse - (1 - smoothing) * z[label] - smoothing * mean(z);  0 where label is ignore_index
//
// loss, lse    [...]      float32                      contiguous; lse is 0 for an ignored row
// logits       [..., V]   float32, bfloat16, float16   last dimension contiguous, rows strided
// labels       [...]      int64                        strided; elsewhere than in [0, V) and not
//                         ignore_index: an error on the CPU, a loss and gradients of NaN on CUDA,
//                         where nothing may wait for the device
// grad_loss    [...]      float32                      strided, a stride of zero included
// grad_logits  [..., V]   logits' dtype                may be logits itself
// hidden       [T, H]     float32, bfloat16, float16   last dimension contiguous
// weight       [V, H]     hidden's dtype               last dimension contiguous
// bias         [V]        hidden's dtype               may be absent
// grad_*       like what they are the gradient of; grad_weight absent: not asked for
//
// The linear forms make the logits of chunk_rows tokens at a time (0: as many as fit into 1 GiB on
// CUDA, 64 MiB on the CPU). `train` writes the gradients while the logits are there: 6 T H V
// operations for a step, where forward and backward apart take 8 and need what lies above them not.
// Its grad_loss must be known beforehand; gradients are linear in it, so that a common factor may
// follow (scale_gradient_: in place, by one float32, on CUDA). Products sum in float32; grad_weight
// is kept in weight's dtype on CUDA, rounded once per chunk, and in float32 on the CPU.
// Throws   std::runtime_error `[op] argument: expected …, got …`
// Devices  cpu, cuda sm_80+   graph-capturable yes, deterministic yes, thread-safe yes
// Source   torch.nn.functional.cross_entropy; transformers' ForCausalLMLoss; Hsu et al. 2024 (Liger
//          Kernel), section 3.2, for the chunks

#include <algorithm>

#include "kernels/loss/loss_ops.h"
#include "kernels/loss/loss_rows.h"
#include "kernels/loss/loss_scale.h"

namespace graft_kernels::loss {

namespace {

// Strides of a tensor whose every element is a row's value.
RowLayout value_layout(const char* op, NamedTensor value) {
  Tensor elements = value.tensor;
  return row_layout(op, {value.name, torch::stable::unsqueeze(elements, -1)});
}

// One value per row of `rows`: the shape of its leading dimensions.
void check_row_values(const char* op, NamedTensor value, NamedTensor rows, ScalarType dtype) {
  const int64_t dims = rows.tensor.dim() - 1;
  bool same = value.tensor.dim() == dims;
  std::string wanted = "[";
  for (int64_t dim = 0; dim < dims; ++dim) {
    same = same && value.tensor.size(dim) == rows.tensor.size(dim);
    wanted.append(dim == 0 ? "" : ", ").append(std::to_string(rows.tensor.size(dim)));
  }
  if (!same) {
    fail(op, value.name, "shape " + wanted + "] (one value per row of " + rows.name + ")",
         shape_text(value.tensor));
  }
  if (value.tensor.scalar_type() != dtype) {
    fail(op, value.name, to_text(dtype), to_text(value.tensor.scalar_type()));
  }
  check_same_device(op, value, rows);
}

void check_results(const char* op, NamedTensor value, NamedTensor rows) {
  check_row_values(op, value, rows, ScalarType::Float);
  if (!value.tensor.is_contiguous()) {
    fail(op, value.name, "contiguous memory", "strides");
  }
}

// A gradient has the shape of what it is the gradient of, too.
void check_gradient(const char* op, NamedTensor value, NamedTensor of) {
  check_same_shape(op, value, of);
  check_like(op, value, of);
}

void set_row_values(const char* op, Problem& problem, const std::optional<Tensor>& loss,
                    const Tensor& lse, const Tensor& labels, NamedTensor rows) {
  if (loss) {
    check_results(op, {"loss", *loss}, rows);
    problem.loss = static_cast<float*>(write_pointer(*loss));
    problem.lse = static_cast<float*>(write_pointer(lse));
  } else {
    problem.lse = const_cast<float*>(static_cast<const float*>(read_pointer(lse)));
  }
  check_results(op, {"lse", lse}, rows);
  check_row_values(op, {"labels", labels}, rows, ScalarType::Long);
  problem.labels = static_cast<const int64_t*>(read_pointer(labels));
  problem.label_rows = value_layout(op, {"labels", labels});
}

void set_grad_loss(const char* op, Problem& problem, const Tensor& grad_loss, NamedTensor rows) {
  check_row_values(op, {"grad_loss", grad_loss}, rows, ScalarType::Float);
  problem.grad_loss = static_cast<const float*>(read_pointer(grad_loss));
  problem.grad_loss_rows = value_layout(op, {"grad_loss", grad_loss});
}

Problem check_logits(const char* op, Mode mode, const Tensor& logits, const Options& options) {
  check_floating(op, {"logits", logits});
  check_has_rows(op, {"logits", logits});
  check_rows(op, {"logits", logits});
  Problem problem;
  problem.dtype = dtype_of(logits);
  problem.mode = mode;
  problem.options = options;
  problem.rows = count_rows(logits);
  problem.columns = logits.size(logits.dim() - 1);
  if (problem.columns == 0 && problem.rows > 0) {
    fail(op, "logits", "at least one column", "none");
  }
  problem.logits = read_pointer(logits);
  problem.logits_rows = row_layout(op, {"logits", logits});
  return problem;
}

void check_weights(const char* op, const LinearArguments& arguments) {
  const Tensor &hidden = arguments.hidden, &weight = arguments.weight;
  check_floating(op, {"hidden", hidden});
  if (hidden.dim() != 2) {
    fail(op, "hidden", "two dimensions [T, H]", shape_text(hidden));
  }
  check_rows(op, {"hidden", hidden});
  if (weight.dim() != 2 || weight.size(1) != hidden.size(1)) {
    fail(op, "weight",
         "shape [V, " + std::to_string(hidden.size(1)) + "] (last dimension of hidden)",
         shape_text(weight));
  }
  if (weight.size(0) == 0) {
    fail(op, "weight", "at least one row", "none");
  }
  check_rows(op, {"weight", weight});
  check_dtype(op, {"weight", weight}, hidden.scalar_type(), "that of hidden");
  check_same_device(op, {"weight", weight}, {"hidden", hidden});
  if (arguments.bias) {
    check_vector(op, {"bias", *arguments.bias}, weight.size(0), "rows of weight",
                 {"hidden", hidden});
  }
  if (arguments.chunk_rows < 0) {
    fail(op, "chunk_rows", "0 (chosen by memory) or more", std::to_string(arguments.chunk_rows));
  }
}

void check_gradients(const char* op, const LinearGradients& gradients,
                     const LinearArguments& arguments) {
  check_gradient(op, {"grad_hidden", *gradients.hidden}, {"hidden", arguments.hidden});
  if (gradients.weight) {
    check_gradient(op, {"grad_weight", *gradients.weight}, {"weight", arguments.weight});
  }
  if (gradients.bias && !arguments.bias) {
    fail(op, "grad_bias", "none (there is no bias)", shape_text(*gradients.bias));
  }
  if (gradients.bias) {
    check_gradient(op, {"grad_bias", *gradients.bias}, {"bias", *arguments.bias});
  }
}

// Meta tensors have no memory: the checks are all there is to do.
void rows_meta(const Problem&, const Tensor&) {}
void linear_meta(LinearProblem&) {}

void scale_meta(Tensor gradient, const Tensor& factor) { check_scale(gradient, factor); }
void add_rows_meta(Tensor sums, const Tensor& rows, const Tensor& ids, const Tensor& order,
                   int64_t) {
  check_added_rows(sums, rows, ids, order);
}

}  // namespace

Options check_options(const char* op, int64_t ignore_index, double softcap, double smoothing) {
  if (!(softcap >= 0 && softcap < 3e38)) {
    fail(op, "softcap", "0 (none) or a positive number", std::to_string(softcap));
  }
  if (!(smoothing >= 0 && smoothing <= 1)) {
    fail(op, "smoothing", "a share between 0 and 1", std::to_string(smoothing));
  }
  return {ignore_index, static_cast<float>(softcap), static_cast<float>(smoothing)};
}

Problem check_forward(const char* op, const Tensor& loss, const Tensor& lse, const Tensor& logits,
                      const Tensor& labels, const Options& options) {
  Problem problem = check_logits(op, Mode::kForward, logits, options);
  set_row_values(op, problem, loss, lse, labels, {"logits", logits});
  return problem;
}

Problem check_backward(const char* op, const Tensor& grad_logits, const Tensor& grad_loss,
                       const Tensor& logits, const Tensor& labels, const Tensor& lse,
                       const Options& options) {
  Problem problem = check_logits(op, Mode::kBackward, logits, options);
  set_row_values(op, problem, std::nullopt, lse, labels, {"logits", logits});
  set_grad_loss(op, problem, grad_loss, {"logits", logits});
  check_gradient(op, {"grad_logits", grad_logits}, {"logits", logits});
  problem.grad = write_pointer(grad_logits);
  problem.grad_rows = row_layout(op, {"grad_logits", grad_logits});
  return problem;
}

LinearProblem check_linear(const char* op, Mode mode, const std::optional<Tensor>& loss,
                           const Tensor& lse, const LinearGradients& gradients,
                           const LinearArguments& arguments) {
  check_weights(op, arguments);
  LinearProblem linear;
  linear.rows.mode = mode;
  linear.rows.dtype = dtype_of(arguments.hidden);
  linear.rows.options =
      check_options(op, arguments.ignore_index, arguments.softcap, arguments.smoothing);
  linear.rows.rows = arguments.hidden.size(0);
  linear.rows.columns = arguments.weight.size(0);
  linear.depth = arguments.hidden.size(1);
  linear.chunk_rows = arguments.chunk_rows;
  const NamedTensor hidden{"hidden", arguments.hidden};
  set_row_values(op, linear.rows, loss, lse, arguments.labels, hidden);
  if (mode != Mode::kForward) {
    set_grad_loss(op, linear.rows, *gradients.grad_loss, hidden);
    check_gradients(op, gradients, arguments);
  }
  linear.hidden = arguments.hidden;
  linear.weight = arguments.weight;
  linear.bias = arguments.bias;
  linear.grad_hidden = gradients.hidden;
  linear.grad_weight = gradients.weight;
  linear.grad_bias = gradients.bias;
  return linear;
}

Tensor new_row_values(const char* op, NamedTensor rows) {
  check_has_rows(op, rows);
  const auto sizes = rows.tensor.sizes();
  return torch::stable::new_empty(rows.tensor, {sizes.data(), sizes.size() - 1}, ScalarType::Float);
}

LinearGradients new_gradients(const LinearArguments& arguments, const Tensor& grad_loss,
                              bool with_weight) {
  const auto like = [](const Tensor& tensor) {
    return torch::stable::new_empty(tensor, tensor.sizes());
  };
  LinearGradients made;
  made.grad_loss = grad_loss;
  made.hidden = like(arguments.hidden);
  if (with_weight) {
    made.weight = like(arguments.weight);
  }
  if (arguments.bias) {
    made.bias = like(*arguments.bias);
  }
  return made;
}

Problem chunk_of(const LinearProblem& linear, int64_t begin, int64_t count) {
  Problem chunk = linear.rows;
  chunk.rows = count;
  chunk.labels += chunk.label_rows.offset(begin);
  chunk.lse += begin;
  if (chunk.loss != nullptr) {
    chunk.loss += begin;
  }
  if (chunk.grad_loss != nullptr) {
    chunk.grad_loss += chunk.grad_loss_rows.offset(begin);
  }
  return chunk;
}

int64_t chunk_rows_for(const LinearProblem& linear, int64_t bytes, int64_t row_bytes) {
  if (linear.chunk_rows > 0) {
    return std::min(linear.chunk_rows, linear.rows.rows);
  }
  // Whole tiles of the matrix product, and chunks of one size.
  constexpr int64_t kTile = 128;
  const int64_t most = std::max(bytes / row_bytes / kTile * kTile, kTile);
  const int64_t chunks = (linear.rows.rows + most - 1) / most;
  const int64_t even = (linear.rows.rows + chunks - 1) / std::max<int64_t>(chunks, 1);
  return std::min((even + kTile - 1) / kTile * kTile, std::max<int64_t>(linear.rows.rows, 1));
}

using MetaOps = Ops<&rows_meta, &linear_meta>;

}  // namespace graft_kernels::loss

GRAFT_OPS(ops) {
  ops.def(
      "cross_entropy_out(Tensor! loss, Tensor! lse, Tensor logits, Tensor labels, int "
      "ignore_index, float softcap, float smoothing) -> ()");
  ops.def(
      "cross_entropy(Tensor logits, Tensor labels, int ignore_index, float softcap, float "
      "smoothing) -> (Tensor, Tensor)");
  ops.def(
      "cross_entropy_backward_out(Tensor! grad_logits, Tensor grad_loss, Tensor logits, Tensor "
      "labels, Tensor lse, int ignore_index, float softcap, float smoothing) -> ()");
  ops.def(
      "cross_entropy_backward(Tensor grad_loss, Tensor logits, Tensor labels, Tensor lse, int "
      "ignore_index, float softcap, float smoothing) -> Tensor");
  ops.def(
      "linear_cross_entropy_out(Tensor! loss, Tensor! lse, Tensor hidden, Tensor weight, Tensor? "
      "bias, Tensor labels, int ignore_index, float softcap, float smoothing, int chunk_rows) -> "
      "()");
  ops.def(
      "linear_cross_entropy(Tensor hidden, Tensor weight, Tensor? bias, Tensor labels, int "
      "ignore_index, float softcap, float smoothing, int chunk_rows) -> (Tensor, Tensor)");
  ops.def(
      "linear_cross_entropy_backward_out(Tensor(a!) grad_hidden, Tensor(b!)? grad_weight, "
      "Tensor(c!)? grad_bias, Tensor grad_loss, Tensor hidden, Tensor weight, Tensor? bias, Tensor "
      "labels, Tensor lse, int ignore_index, float softcap, float smoothing, int chunk_rows) -> "
      "()");
  ops.def(
      "linear_cross_entropy_backward(Tensor grad_loss, Tensor hidden, Tensor weight, Tensor? bias, "
      "Tensor labels, Tensor lse, int ignore_index, float softcap, float smoothing, int "
      "chunk_rows, bool with_weight) -> (Tensor, Tensor, Tensor)");
  ops.def(
      "linear_cross_entropy_train_out(Tensor(a!) loss, Tensor(b!) lse, Tensor(c!) grad_hidden, "
      "Tensor(d!)? grad_weight, Tensor(e!)? grad_bias, Tensor grad_loss, Tensor hidden, Tensor "
      "weight, Tensor? bias, Tensor labels, int ignore_index, float softcap, float smoothing, int "
      "chunk_rows) -> ()");
  ops.def(
      "linear_cross_entropy_train(Tensor grad_loss, Tensor hidden, Tensor weight, Tensor? bias, "
      "Tensor labels, int ignore_index, float softcap, float smoothing, int chunk_rows, bool "
      "with_weight) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  // On CUDA alone: elsewhere the factor can be asked for.
  ops.def("scale_gradient_(Tensor(a!) gradient, Tensor factor) -> ()");
  ops.def("add_rows_(Tensor(a!) sums, Tensor rows, Tensor ids, Tensor order, int skipped) -> ()");
}

GRAFT_OPS_IMPL(Meta, ops) {
  graft_kernels::loss::MetaOps::implement(ops);
  ops.impl("scale_gradient_", TORCH_BOX(&graft_kernels::loss::scale_meta));
  ops.impl("add_rows_", TORCH_BOX(&graft_kernels::loss::add_rows_meta));
}
