#include "graft/text/vocabulary.h"

#include <algorithm>
#include <cstring>

#include <fmt/format.h>

#include "graft/core/error.h"

namespace graft::text {

namespace {

constexpr size_t kFreeIds = 1024;  // small vocabularies may keep their special tokens far out

}  // namespace

Vocabulary::Vocabulary(const std::vector<std::pair<std::string_view, int64_t>>& tokens)
    : index_(tokens.size()) {
  size_t num_bytes = 0;
  int64_t greatest = -1;
  for (const auto& [token, id] : tokens) {
    num_bytes += token.size();
    greatest = std::max(greatest, id);
    longest_ = std::max(longest_, token.size());
    if (id < 0) {
      throw FormatError(
          "text.tokenizer", "ids",
          fmt::format("vocabulary: `{}`: expected an id of at least 0, got {}", token, id));
    }
  }
  const auto most = static_cast<int64_t>(std::max(4 * tokens.size(), tokens.size() + kFreeIds));
  if (greatest >= most) {
    throw FormatError("text.tokenizer", "ids",
                      fmt::format("vocabulary: expected ids below {} for {} tokens, got {}", most,
                                  tokens.size(), greatest));
  }
  bytes_.reset(new char[num_bytes + 1]);
  tokens_.resize(static_cast<size_t>(greatest + 1));
  char* write = bytes_.get();
  for (const auto& [token, id] : tokens) {
    std::memcpy(write, token.data(), token.size());
    const std::string_view copy(write, token.size());
    write += token.size();
    auto& place = tokens_[static_cast<size_t>(id)];
    if (place.data() != nullptr) {
      throw FormatError("text.tokenizer", "ids",
                        fmt::format("vocabulary: id {}: expected one token, got `{}` and `{}`", id,
                                    place, token));
    }
    place = copy;
    if (index_.add(copy, static_cast<int32_t>(id)) != id) {
      throw FormatError("text.tokenizer", "duplicate-token",
                        fmt::format("vocabulary: expected each token once, got `{}` twice", token));
    }
  }
}

}  // namespace graft::text
