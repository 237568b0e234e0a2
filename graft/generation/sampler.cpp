#include "graft/generation/sampler.h"

#include <cmath>
#include <limits>

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <fmt/format.h>

#include "graft/core/error.h"

namespace graft::generation {

namespace {

at::Generator make_generator(at::Device device, uint64_t seed) {
  if (device.is_cpu()) {
    return at::detail::createCPUGenerator(seed);
  }
  at::Generator generator = at::detail::getCUDAHooks().getNewGenerator(device.index());
  generator.set_current_seed(seed);
  return generator;
}

// Uniform in [0, 1) with 53 random bits.
double draw_uniform(at::Generator& generator) {
  const uint64_t bits = at::check_generator<at::CPUGeneratorImpl>(generator)->random64();
  return static_cast<double>(bits >> 11) * 0x1.0p-53;
}

// All tokens that are not banned, for rows that have no top-k to make the list short.
std::vector<Candidate> open_candidates(const float* scores, int64_t vocab_size) {
  std::vector<Candidate> candidates;
  for (int64_t id = 0; id < vocab_size; ++id) {
    if (scores[id] > -std::numeric_limits<float>::infinity()) {
      candidates.push_back({id, scores[id]});
    }
  }
  return candidates;
}

at::Tensor logprobs_of(const at::Tensor& scores, const at::Tensor& tokens) {
  return scores.log_softmax(-1).gather(-1, tokens.unsqueeze(1)).squeeze(1);
}

}  // namespace

void Choice::wait() {
  for (const auto& event : copied) {
    event.synchronize();
  }
  const float* values = largest.const_data_ptr<float>();
  for (int64_t row = 0; row < largest.numel(); ++row) {
    if (!std::isfinite(values[row])) {
      throw DeviceError("generation", "nan-logits",
                        fmt::format("logits of row {}: expected numbers, got {} as the largest",
                                    row, values[row]),
                        "try float32; if kernels are on, compare with the reference layers");
    }
  }
}

Sampler::Sampler(const GenerationConfig& config, int64_t num_rows, at::Device device, Wish wish)
    : config_(config), device_(device), wish_(wish) {
  for (int64_t row = 0; config.do_sample && row < num_rows; ++row) {
    generators_.push_back(make_generator(device, config.seed + static_cast<uint64_t>(row)));
  }
}

Choice Sampler::choose(const at::Tensor& logits, const LogitsProcessors& processors,
                       const Sequences& sequences, int64_t num_new_tokens) {
  Choice choice;
  const at::Tensor scores = processors.process(logits, sequences, num_new_tokens).contiguous();
  if (config_.do_sample) {
    draw(scores, choice);
  } else {
    choose_best(scores, choice);
  }
  if (!scores.is_same(logits)) {
    // A ban hides a NaN from what was chosen, so the raw logits count as well.
    choice.largest = choice.largest + 0.0 * logits.amax(-1);
  }
  if (device_.is_cpu()) {
    choice.ids = choice.tokens;
  } else {
    send_to_host(choice);
  }
  return choice;
}

void Sampler::choose_best(const at::Tensor& scores, Choice& choice) const {
  if (device_.is_cpu()) {
    const int64_t num_rows = scores.size(0), vocab_size = scores.size(1);
    choice.tokens = at::empty({num_rows}, at::kLong);
    choice.largest = at::empty({num_rows}, at::kFloat);
    for (int64_t row = 0; row < num_rows; ++row) {
      const auto best = find_largest(scores.const_data_ptr<float>() + row * vocab_size, vocab_size);
      choice.tokens.mutable_data_ptr<int64_t>()[row] = best.index;
      choice.largest.mutable_data_ptr<float>()[row] = best.value;
    }
  } else {
    std::tie(choice.largest, choice.tokens) = scores.max(-1);
  }
  if (wish_.logprobs) {
    choice.logprobs = logprobs_of(scores, choice.tokens);
  }
  if (wish_.scores) {
    choice.scores = scores;
  }
}

void Sampler::draw(const at::Tensor& scores, Choice& choice) {
  if (device_.is_cpu()) {
    draw_on_host(scores, choice);
    return;
  }
  choice.largest = scores.amax(-1);
  const at::Tensor warped = warp(scores, config_);
  // Dividing by exponential noise and taking the largest draws in proportion to the probabilities;
  // at::multinomial does the same. The noise of a row comes from that row's generator.
  const at::Tensor noise = at::empty_like(warped);
  for (size_t row = 0; row < generators_.size(); ++row) {
    noise[static_cast<int64_t>(row)].exponential_(1.0, generators_[row]);
  }
  choice.tokens = (warped.softmax(-1) / noise).argmax(-1);
  if (wish_.logprobs) {
    choice.logprobs = logprobs_of(warped, choice.tokens);
  }
  if (wish_.scores) {
    choice.scores = warped;
  }
}

void Sampler::draw_on_host(const at::Tensor& scores, Choice& choice) {
  const int64_t num_rows = scores.size(0), vocab_size = scores.size(1);
  choice.tokens = at::empty({num_rows}, at::kLong);
  choice.largest = at::empty({num_rows}, at::kFloat);
  choice.logprobs = at::empty({num_rows}, at::kFloat);
  const bool short_list = config_.top_k > 0 && !wish_.scores;
  const at::Tensor warped = short_list ? scores : warp(scores, config_).contiguous();
  for (int64_t row = 0; row < num_rows; ++row) {
    const float* values = warped.const_data_ptr<float>() + row * vocab_size;
    const float largest =
        find_largest(scores.const_data_ptr<float>() + row * vocab_size, vocab_size).value;
    choice.largest.mutable_data_ptr<float>()[row] = largest;
    int64_t id = 0;
    double logprob = 0.0;
    if (std::isfinite(largest)) {  // else wait() says what is wrong
      const auto candidates = short_list ? warped_candidates(values, vocab_size, config_)
                                         : open_candidates(values, vocab_size);
      const double u = draw_uniform(generators_[static_cast<size_t>(row)]);
      id = candidates[draw_candidate(candidates, u, &logprob)].id;
    }
    choice.tokens.mutable_data_ptr<int64_t>()[row] = id;
    choice.logprobs.mutable_data_ptr<float>()[row] = static_cast<float>(logprob);
  }
  if (wish_.scores) {
    choice.scores = warped;
  }
}

void Sampler::send_to_host(Choice& choice) const {
  // Pinned host memory and one event: the host waits for this copy and not for what is enqueued
  // behind it.
  choice.ids = choice.tokens.to(at::kCPU, /*non_blocking=*/true);
  choice.largest = choice.largest.to(at::kCPU, /*non_blocking=*/true);
  if (choice.logprobs.defined()) {
    choice.logprobs = choice.logprobs.to(at::kCPU, /*non_blocking=*/true);
  }
  const c10::impl::VirtualGuardImpl guard(device_.type());
  choice.copied.emplace_back(device_.type());
  choice.copied.back().record(guard.getStream(device_));
}

}  // namespace graft::generation
