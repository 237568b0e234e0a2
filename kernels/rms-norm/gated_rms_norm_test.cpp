// Gated RMSNorm, forward and backward.

#include "kernels/rms-norm/forms_test.h"

namespace graft_kernels::rms_norm {
namespace {

struct Gated {
  at::Tensor x, gate, weight, grad_out;
  int64_t variant = 0;
  int64_t act = 0;
  bool gate_first = false;

  Gated in(at::ScalarType dtype) const {
    Gated other = *this;
    for (at::Tensor* tensor : {&other.x, &other.gate, &other.weight, &other.grad_out}) {
      *tensor = tensor->to(dtype);
    }
    return other;
  }
  std::string name() const {
    return name_of(x.sizes(), "variant " + std::to_string(variant) + ", act " +
                                  std::to_string(act) + (gate_first ? ", gate first" : ""));
  }
};

// As the models write it: Qwen3NextRMSNormGated, KimiLinearRMSNormGated, MambaRMSNormGated. In double nothing is
// rounded.
at::Tensor eager_gated(const Gated& in) {
  const bool exact = in.x.scalar_type() == at::kDouble;
  const auto wide = [&](const at::Tensor& tensor) {
    return exact ? tensor : tensor.to(at::kFloat);
  };
  const at::Tensor gate = in.act == 0 ? at::silu(wide(in.gate)) : at::sigmoid(wide(in.gate));
  at::Tensor x = wide(in.x);
  if (in.gate_first) {
    x = x * gate;
  }
  at::Tensor norm = x * at::rsqrt(x.pow(2).mean(-1, true) + kEps);
  switch (in.variant) {
    case 0:
      norm = in.weight * norm.to(in.x.scalar_type());
      break;
    case 3:
      norm = norm * (1.0 + wide(in.weight));
      break;
    default:
      norm = wide(in.weight) * norm;
  }
  return (in.gate_first ? norm : norm * gate).to(in.x.scalar_type());
}

Tensors gradients_of(const Gated& in) {
  Gated leaf = in;
  for (at::Tensor* tensor : {&leaf.x, &leaf.gate, &leaf.weight}) {
    *tensor = tensor->detach().clone().set_requires_grad(true);
  }
  eager_gated(leaf).backward(in.grad_out);
  return {leaf.x.grad(), leaf.gate.grad(), leaf.weight.grad()};
}

class GatedRmsNorm : public Forms {
 protected:
  Gated inputs(at::IntArrayRef shape) const {
    return {random(shape), random(shape), random({shape.back()}), random(shape)};
  }
  at::Tensor forward(const Gated& in) const {
    return package()("gated_rms_norm", in.x, in.gate, in.weight, kEps, in.variant, in.act,
                     in.gate_first)
        .at(0)
        .toTensor();
  }
  Tensors backward(const Gated& in) const {
    const auto stack = package()("gated_rms_norm_backward", in.grad_out, in.x, in.gate, in.weight,
                                 kEps, in.variant, in.act, in.gate_first);
    return {stack.at(0).toTensor(), stack.at(1).toTensor(), stack.at(2).toTensor()};
  }
  void expect_like_eager(const Gated& in) const {
    expect_no_worse(forward(in), eager_gated(in), eager_gated(in.in(at::kDouble)), in.name());
    const Tensors ours = backward(in), eagers = gradients_of(in),
                  exact = gradients_of(in.in(at::kDouble));
    const char* names[] = {"grad_x, ", "grad_gate, ", "grad_weight, "};
    for (size_t i = 0; i < 3; ++i) {
      ASSERT_EQ(ours[i].scalar_type(), eagers[i].scalar_type());
      // The gradient of x is a difference; that of the weight a sum of many rows.
      const double slack = 3e-7 * std::sqrt(static_cast<double>(in.x.numel() / in.x.size(-1))) +
                           2e-6 * exact[i].abs().max().item<double>();
      expect_no_worse(ours[i], eagers[i], exact[i], names[i] + in.name(), slack);
    }
  }
};

TEST_P(GatedRmsNorm, IsNoWorseThanTwiceEagerInEveryShapeVariantAndOrder) {
  int64_t turn = 0;
  for (const std::vector<int64_t>& shape : shapes()) {
    Gated in = inputs(shape);
    for (const int64_t variant : {0, 2, 3}) {
      for (const bool gate_first : {false, true}) {
        in.variant = variant;
        in.gate_first = gate_first;
        in.act = turn++ % 3 == 0 ? 1 : 0;
        expect_like_eager(in);
      }
    }
  }
}

TEST_P(GatedRmsNorm, NormalizesGroupsWithAWeightEach) {
  for (const auto& [groups, size] :
       {std::pair<int64_t, int64_t>{1, 64}, {3, 40}, {8, 128}, {5, 7}, {2, 2048}}) {
    for (const bool gate_first : {false, true}) {
      Gated in = inputs({37, groups, size});
      in.weight = random({groups, size});
      in.variant = gate_first ? 0 : 2;
      in.gate_first = gate_first;
      expect_like_eager(in);
    }
  }
}

TEST_P(GatedRmsNorm, TakesAFloat32WeightBesideA16BitInput) {
  for (const int64_t columns : {7, 128, 4096}) {
    Gated in = inputs({5, columns});
    in.weight = in.weight.to(at::kFloat);
    for (const int64_t variant : {0, 2, 3}) {
      in.variant = variant;
      expect_like_eager(in);
    }
    in.gate_first = true;
    in.variant = 2;
    expect_like_eager(in);
  }
}

TEST_P(GatedRmsNorm, ReadsAndWritesStridedRows) {
  const at::Tensor wide = random({6, 5, 7, 200}), gates = random({6, 5, 7, 200});
  const at::Tensor weight = random({72});
  const auto views = [](const at::Tensor& from) -> Tensors {
    return {from.slice(-1, 0, 72), from.slice(-1, 3, 75), from.slice(-1, 8, 80).slice(1, 0, 5, 2),
            from.slice(-1, 0, 72).transpose(0, 2),
            from.slice(0, 0, 1).slice(-1, 0, 72).expand({6, 5, 7, 72})};
  };
  for (size_t i = 0; i < 5; ++i) {
    Gated strided{views(wide)[i], views(gates)[i], weight, views(gates)[i]};
    Gated dense = strided;
    dense.x = strided.x.contiguous();
    dense.gate = dense.grad_out = strided.gate.contiguous();
    expect_no_worse(forward(strided), forward(dense), forward(dense).to(at::kDouble), "strided");
    at::Tensor storage =
        at::zeros({dense.x.size(0), dense.x.size(1), dense.x.size(2), 80}, weight.options());
    at::Tensor grad_x = storage.slice(-1, 0, 72), grad_gate = at::empty_like(dense.gate),
               grad_weight = at::empty_like(weight);
    package()("gated_rms_norm_backward_out", grad_x, grad_gate, grad_weight, strided.grad_out,
              strided.x, strided.gate, weight, kEps, int64_t{0}, int64_t{0}, false);
    const Tensors expected = backward(dense);
    const double scale = 4 * (GetParam().dtype == at::kFloat ? 0x1p-22 : 0x1p-8);
    EXPECT_LE(largest_error(grad_x, expected[0].to(at::kDouble)),
              scale * expected[0].abs().max().item<double>());
    EXPECT_LE(largest_error(grad_gate, expected[1].to(at::kDouble)),
              scale * expected[1].abs().max().item<double>());
    EXPECT_EQ(storage.slice(-1, 72, 80).abs().sum().item<double>(), 0) << "wrote between the rows";
  }
}

TEST_P(GatedRmsNorm, WorksInPlace) {
  for (const int64_t columns : {5, 128, 4096, 40000}) {
    for (const bool gate_first : {false, true}) {
      Gated in = inputs({9, columns});
      in.gate_first = gate_first;
      at::Tensor x = in.x.clone();
      package()("gated_rms_norm_out", x, x, in.gate, in.weight, kEps, in.variant, in.act,
                gate_first);
      EXPECT_TRUE(is_same_bits(x, forward(in)));
      at::Tensor grad_out = in.grad_out.clone(), gate = in.gate.clone(),
                 grad_weight = at::empty_like(in.weight);
      package()("gated_rms_norm_backward_out", grad_out, gate, grad_weight, grad_out, in.x, gate,
                in.weight, kEps, in.variant, in.act, gate_first);
      const Tensors expected = backward(in);
      EXPECT_TRUE(is_same_bits(grad_out, expected[0]));
      EXPECT_TRUE(is_same_bits(gate, expected[1]));
    }
  }
}

TEST_P(GatedRmsNorm, TakesNoRowsAtAll) {
  const Tensors empty = backward(inputs({0, 64}));
  EXPECT_EQ(empty[0].numel(), 0);
  EXPECT_EQ(empty[2].abs().sum().item<double>(), 0);
  EXPECT_EQ(forward(inputs({3, 0})).numel(), 0);
  EXPECT_EQ(backward(inputs({3, 0}))[2].numel(), 0);
}

TEST_P(GatedRmsNorm, CarriesNanAsEagerDoes) {
  Gated in = inputs({4, 200});
  in.x[0][3] = std::nan("");
  in.gate[1][4] = std::nan("");
  in.grad_out[2][5] = std::nan("");
  for (const bool gate_first : {false, true}) {
    in.gate_first = gate_first;
    EXPECT_TRUE(at::equal(forward(in).isnan(), eager_gated(in).isnan()));
    const Tensors ours = backward(in), theirs = gradients_of(in);
    for (size_t i = 0; i < 3; ++i) {
      EXPECT_TRUE(at::equal(ours[i].isnan(), theirs[i].isnan())) << i << gate_first;
    }
  }
}

TEST_P(GatedRmsNorm, GivesTheSameBitsEveryTime) {
  for (const std::vector<int64_t>& shape :
       std::vector<std::vector<int64_t>>{{700, 2048}, {900, 128}, {5, 40000}}) {
    const Gated in = inputs(shape);
    const at::Tensor first = forward(in);
    const Tensors gradients = backward(in);
    const int threads = at::get_num_threads();
    for (int repeat = 0; repeat < (is_small_run() ? 2 : 20); ++repeat) {
      at::set_num_threads(1 + repeat % 2);
      ASSERT_TRUE(is_same_bits(forward(in), first));
      const Tensors again = backward(in);
      for (size_t i = 0; i < 3; ++i) {
        ASSERT_TRUE(is_same_bits(again[i], gradients[i]));
      }
    }
    at::set_num_threads(threads);
  }
}

TEST_P(GatedRmsNorm, NamesTheArgumentThatIsWrong) {
  const Gated good = inputs({2, 64});
  const auto message = [&](const Gated& in) { return testing::message_of([&] { forward(in); }); };
  Gated in = good;
  in.gate = random({2, 32});
  EXPECT_THAT(message(in), ::testing::HasSubstr("[gated_rms_norm] gate: expected shape [2, 64]"));
  in = good;
  in.weight = random({3, 64});
  EXPECT_THAT(message(in), ::testing::HasSubstr("[gated_rms_norm] weight: expected shape [64]"));
  in = good;
  in.variant = 4;
  EXPECT_THAT(message(in), ::testing::HasSubstr("variant: expected 0, 1, 2 or 3, got 4"));
  in = good;
  in.act = 2;
  EXPECT_THAT(message(in), ::testing::HasSubstr("act: expected 0 (silu) or 1 (sigmoid), got 2"));
  if (GetParam().dtype != at::kFloat) {
    in = good;
    in.gate_first = true;
    in.weight = good.weight.to(at::kFloat);
    EXPECT_THAT(message(in), ::testing::HasSubstr("in variant 0 with the gate first"));
  }
}

TEST_P(GatedRmsNorm, InfersShapesOnMetaTensors) {
  const at::Tensor x = random({2, 64}).to(at::kMeta), weight = random({64}).to(at::kMeta);
  const auto all =
      package()("gated_rms_norm_backward", x, x, x, weight, kEps, int64_t{0}, int64_t{0}, false);
  EXPECT_EQ(all.at(1).toTensor().sizes(), x.sizes());
  EXPECT_EQ(all.at(2).toTensor().sizes(), weight.sizes());
}

INSTANTIATE_TEST_SUITE_P(Devices, GatedRmsNorm, ::testing::ValuesIn(testing::device_cases()),
                         testing::case_name);

using FormsCuda = testing::OnCuda;

TEST_F(FormsCuda, CanBeCapturedIntoAGraph) {
#ifdef GRAFT_WITH_CUDA
  const Package& package = Package::get("rms-norm", testing::kCudaVariant);
  const at::TensorOptions options = at::TensorOptions(at::kCUDA).dtype(at::kBFloat16);
  for (const int64_t columns : {128, 4096, 40000}) {
    const at::Tensor weight = at::randn({columns}, options),
                     gate = at::randn({40, columns}, options);
    const at::Tensor grad_out = at::randn({40, columns}, options),
                     fresh = at::randn({40, columns}, options);
    at::Tensor x = at::randn({40, columns}, options), grad_x = at::zeros_like(x),
               grad_gate = at::zeros_like(x), grad_weight = at::zeros_like(weight);
    const auto expected = package("gated_rms_norm_backward", grad_out, fresh, gate, weight, kEps,
                                  int64_t{0}, int64_t{0}, false);
    const auto normed = package("layer_norm", fresh, weight, weight, kEps);
    at::Tensor out = at::zeros_like(x);
    const testing::CurrentStream stream;
    const auto work = [&] {
      package("gated_rms_norm_backward_out", grad_x, grad_gate, grad_weight, grad_out, x, gate,
              weight, kEps, int64_t{0}, int64_t{0}, false);
      package("layer_norm_out", out, x, weight, weight, kEps);
    };
    work();  // the partial sums come from PyTorch's allocator; this fills its pool
    stream.synchronize();
    const testing::CapturedGraph graph(stream, work);
    x.copy_(fresh);
    graph.launch();
    stream.synchronize();
    EXPECT_TRUE(is_same_bits(grad_x, expected.at(0).toTensor())) << columns;
    EXPECT_TRUE(is_same_bits(grad_gate, expected.at(1).toTensor())) << columns;
    EXPECT_TRUE(is_same_bits(grad_weight, expected.at(2).toTensor())) << columns;
    EXPECT_TRUE(is_same_bits(out, normed.at(0).toTensor())) << columns;
  }
#endif
}

TEST_F(FormsCuda, ReachesBeyondTwoToTheThirtyFirstElements) {
  const Package& package = Package::get("rms-norm", testing::kCudaVariant);
  const int64_t rows = is_small_run() ? 100 : (int64_t{1} << 31) / 4096 + 3;
  const at::TensorOptions options = at::TensorOptions(at::kCUDA).dtype(at::kBFloat16);
  const at::Tensor row = at::randn({1, 4096}, options), weight = at::randn({4096}, options);
  const at::Tensor x = row.expand({rows, 4096}).contiguous();
  at::Tensor out = at::empty_like(x);
  package("gated_rms_norm_out", out, x, x, weight, kEps, int64_t{0}, int64_t{0}, false);
  const auto expected =
      package("gated_rms_norm", row, row, weight, kEps, int64_t{0}, int64_t{0}, false);
  EXPECT_TRUE(is_same_bits(out.slice(0, rows - 1, rows), expected.at(0).toTensor()));
}

}  // namespace
}  // namespace graft_kernels::rms_norm
