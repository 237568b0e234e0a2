#include <algorithm>

#include "graft/text/byte_level.h"
#include "graft/text/tokenizer_parts.h"
#include "graft/text/unicode.h"

namespace graft::text {

namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

// Without the U+FFFD at its end, which may be a character whose bytes are still to come.
std::string_view without_open_end(std::string_view text) {
  while (text.ends_with(kReplacement)) {
    text.remove_suffix(kReplacement.size());
  }
  return text;
}

}  // namespace

DecodeStream::DecodeStream(const Tokenizer& tokenizer, bool skip_special_tokens)
    : tokenizer_(&tokenizer),
      skip_special_tokens_(skip_special_tokens),
      bytes_(tokenizer.parts_->decoder != nullptr && tokenizer.parts_->decoder->is_byte_level()) {}

std::string DecodeStream::push(int32_t id) {
  if (bytes_) {
    return push_bytes(id);
  }
  ids_.push_back(id);
  const std::string text = tokenizer_->decode(ids_, skip_special_tokens_);
  const std::string_view sure = without_open_end(text);
  if (sure.size() <= certain_.size() || !sure.starts_with(certain_)) {
    return {};
  }
  std::string more(sure.substr(certain_.size()));
  if (sure.size() < text.size()) {
    certain_ = sure;
    return more;
  }
  // All that is known is certain: only the last ids are needed to see how the next one joins them.
  ids_.erase(ids_.begin(), ids_.begin() + static_cast<ptrdiff_t>(num_certain_));
  num_certain_ = ids_.size();
  certain_ = tokenizer_->decode(ids_, skip_special_tokens_);
  return more;
}

std::string DecodeStream::finish() {
  if (bytes_) {
    return take_complete(true);
  }
  const std::string text = tokenizer_->decode(ids_, skip_special_tokens_);
  std::string more = text.starts_with(certain_) ? text.substr(certain_.size()) : std::string();
  ids_.clear();
  certain_.clear();
  num_certain_ = 0;
  return more;
}

// A byte-level decoder joins the bytes of all tokens and reads them as UTF-8.
std::string DecodeStream::push_bytes(int32_t id) {
  const auto& parts = *tokenizer_->parts_;
  const auto token = parts.token_text(id);
  if (!token || (skip_special_tokens_ && parts.added.is_special(*token))) {
    return {};
  }
  if (!append_char_bytes(pending_, *token)) {
    pending_ += *token;
  }
  return take_complete(false);
}

std::string DecodeStream::take_complete(bool all) {
  std::string out;
  std::string_view left = pending_;
  while (!left.empty()) {
    const size_t good = valid_utf8_prefix(left);
    out += left.substr(0, good);
    left.remove_prefix(good);
    if (left.empty()) {
      break;
    }
    bool incomplete = false;
    const size_t broken = broken_utf8_length(left.substr(0, 4), &incomplete);
    if (incomplete && !all) {
      break;
    }
    out += kReplacement;
    left.remove_prefix(broken);
  }
  pending_ = std::string(left);
  return out;
}

}  // namespace graft::text
