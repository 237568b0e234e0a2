// Fine-tunes a causal language model on a text file with libtorch's own AdamW: the forward and backward
// passes of norms, activations, rotary embedding and loss run on kernels where the flag is on.
//
//   example_finetune MODEL TEXT OUT [--kernels on|off] [--dtype float32|bfloat16] [--steps N]
//                    [--batch B] [--length S] [--learning-rate R] [--device cpu|cuda]
// One JSON line per step on stdout; OUT becomes a folder that transformers loads. With bfloat16 the
// model computes in bfloat16 and the optimizer steps float32 copies of the weights.

#include <chrono>
#include <fstream>
#include <iostream>
#include <map>
#include <sstream>

#include <fmt/format.h>
#include <torch/optim/adamw.h>

#include "graft/graft.h"

namespace {

struct Settings {
  std::string model, text, out;
  bool kernels = true;
  at::Device device = at::kCPU;
  at::ScalarType dtype = at::kFloat;
  int64_t steps = 20, batch = 2, length = 128;
  double learning_rate = 5e-5;
};

Settings parse(int argc, char** argv) {
  if (argc < 4 || argc % 2 != 0) {
    throw graft::InvalidArgument(
        "finetune", "usage",
        "expected MODEL TEXT OUT and pairs of options, see the first lines "
        "of examples/finetune/main.cpp");
  }
  Settings settings{argv[1], argv[2], argv[3]};
  std::map<std::string, std::string> options;
  for (int i = 4; i + 1 < argc; i += 2) {
    options[argv[i]] = argv[i + 1];
  }
  const auto take = [&](const char* name, const std::string& fallback) {
    const auto node = options.extract(name);
    return node ? node.mapped() : fallback;
  };
  settings.kernels = take("--kernels", "on") == "on";
  settings.device = at::Device(take("--device", "cpu"));
  settings.dtype = take("--dtype", "float32") == "bfloat16" ? at::kBFloat16 : at::kFloat;
  settings.steps = std::stoll(take("--steps", "20"));
  settings.batch = std::stoll(take("--batch", "2"));
  settings.length = std::stoll(take("--length", "128"));
  settings.learning_rate = std::stod(take("--learning-rate", "5e-5"));
  if (!options.empty()) {
    throw graft::InvalidArgument("finetune", "usage",
                                 fmt::format("unknown option `{}`", options.begin()->first));
  }
  return settings;
}

// The file's tokens as rows of `length`, [N, length].
at::Tensor read_rows(const Settings& settings) {
  std::ifstream file(settings.text);
  std::stringstream text;
  text << file.rdbuf();
  const auto tokenizer = graft::AutoTokenizer::from_pretrained(settings.model);
  const auto ids = tokenizer.encode(text.str());
  const auto rows = static_cast<int64_t>(ids.size()) / settings.length;
  if (rows == 0) {
    throw graft::InvalidArgument("finetune", "text",
                                 fmt::format("`{}`: expected at least {} tokens, got {}",
                                             settings.text, settings.length, ids.size()));
  }
  return at::tensor(std::vector<int64_t>(ids.begin(), ids.end()))
      .narrow(0, 0, rows * settings.length)
      .view({rows, settings.length});
}

// The optimizer's float32 weights. For a float32 model they are the model's own.
class MasterWeights {
 public:
  explicit MasterWeights(graft::models::CausalLM& model) : own_(unique_parameters(model)) {
    for (const at::Tensor& weight : own_) {
      masters_.push_back(weight.scalar_type() == at::kFloat
                             ? weight
                             : weight.detach().to(at::kFloat).requires_grad_());
    }
  }
  const std::vector<at::Tensor>& tensors() const { return masters_; }

  // Gradients from the model to the masters, and the stepped weights back.
  void step(torch::optim::Optimizer& optimizer) {
    for (size_t i = 0; i < own_.size(); ++i) {
      if (!masters_[i].is_same(own_[i])) {
        masters_[i].mutable_grad() = own_[i].grad().to(at::kFloat);
      }
    }
    optimizer.step();
    const at::NoGradGuard no_grad;
    for (size_t i = 0; i < own_.size(); ++i) {
      if (!masters_[i].is_same(own_[i])) {
        own_[i].copy_(masters_[i]);
      }
      own_[i].mutable_grad().reset();
    }
  }

 private:
  std::vector<at::Tensor> own_;
  std::vector<at::Tensor> masters_;
};

void finetune(const Settings& settings) {
  const auto model =
      graft::AutoModelForCausalLM::from_pretrained(settings.model, {.use_kernels = settings.kernels,
                                                                    .device_map = settings.device,
                                                                    .dtype = settings.dtype,
                                                                    .trainable = true});
  model->train();  // kernels that have a backward stay, the others make way
  const at::Tensor rows = read_rows(settings);
  MasterWeights weights(*model);
  torch::optim::AdamW optimizer(weights.tensors(),
                                torch::optim::AdamWOptions(settings.learning_rate));
  for (int64_t step = 0; step < settings.steps; ++step) {
    const auto start = std::chrono::steady_clock::now();
    const at::Tensor chosen = at::arange(step * settings.batch, (step + 1) * settings.batch);
    const at::Tensor batch =
        rows.index_select(0, chosen.remainder(rows.size(0))).to(settings.device);
    const at::Tensor loss = model->loss({.input_ids = batch}, batch);
    loss.backward();
    weights.step(optimizer);
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    std::cout << fmt::format(R"({{"step": {}, "loss": {:.6f}, "seconds": {:.3f}}})", step,
                             loss.item<double>(), seconds)
              << std::endl;
  }
  graft::save_pretrained(*model, settings.out);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    finetune(parse(argc, argv));
  } catch (const std::exception& error) {
    std::cerr << "error: " << error.what() << "\n";
    return 1;
  }
  return 0;
}
