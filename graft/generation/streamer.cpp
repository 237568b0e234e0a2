#include "graft/generation/streamer.h"

#include <array>
#include <memory>

#include "graft/text/tokenizer.h"

namespace graft::generation {

namespace {

TextDecoder make_text_decoder(const text::Tokenizer& tokenizer, bool skip_special_tokens) {
  const auto stream = std::make_shared<text::DecodeStream>(tokenizer, skip_special_tokens);
  return {[stream](int64_t id) { return stream->push(static_cast<int32_t>(id)); },
          [stream] { return stream->finish(); }};
}

}  // namespace

std::string_view name(FinishReason reason) {
  constexpr std::array<std::string_view, 6> kNames = {"none",        "length",    "eos",
                                                      "stop_string", "cancelled", "time"};
  return kNames[static_cast<size_t>(reason)];
}

GenerateHooks text_hooks(const text::Tokenizer& tokenizer) {
  GenerateHooks hooks;
  hooks.make_decoder = [&tokenizer] { return make_text_decoder(tokenizer, true); };
  hooks.make_stop_decoder = [&tokenizer] { return make_text_decoder(tokenizer, false); };
  return hooks;
}

}  // namespace graft::generation
