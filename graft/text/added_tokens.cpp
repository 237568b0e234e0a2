#include "graft/text/added_tokens.h"

#include <algorithm>

#include "graft/text/unicode.h"

namespace graft::text {

namespace {

bool is_word_before(std::string_view text, size_t end) {
  if (end == 0) {
    return false;
  }
  size_t pos = last_char(text.substr(0, end));
  return has_flag(next_char(text, pos), kWord);
}

bool is_word_at(std::string_view text, size_t pos) {
  return pos < text.size() && has_flag(next_char(text, pos), kWord);
}

size_t skip_spaces_back(std::string_view text, size_t end, size_t least) {
  while (end > least) {
    const size_t last = last_char(text.substr(0, end));
    size_t pos = last;
    if (!has_flag(next_char(text, pos), kSpace)) {
      break;
    }
    end = last;
  }
  return std::max(end, least);
}

size_t skip_spaces(std::string_view text, size_t pos) {
  while (pos < text.size()) {
    size_t after = pos;
    if (!has_flag(next_char(text, after), kSpace)) {
      break;
    }
    pos = after;
  }
  return pos;
}

}  // namespace

uint32_t TokenFinder::child(uint32_t node, unsigned char byte) const {
  const uint32_t* found = children_.find(static_cast<uint64_t>(node) << 8 | byte);
  return found != nullptr ? *found : 0;
}

void TokenFinder::add(std::string_view text, int32_t value) {
  uint32_t node = 0;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    uint32_t next = child(node, byte);
    if (next == 0) {
      next = static_cast<uint32_t>(nodes_.size());
      nodes_.push_back({-1, nodes_[node].depth + 1, 0, 0, 0, nodes_[node].first_child, byte});
      nodes_[node].first_child = next;
      children_.set(static_cast<uint64_t>(node) << 8 | byte, next);
    }
    node = next;
  }
  if (node != 0) {
    nodes_[node].value = value;
    starts_[static_cast<unsigned char>(text[0])] = true;
  }
}

// Aho-Corasick, breadth first: the fail of a node is nearer to the root.
void TokenFinder::finish() {
  std::vector<uint32_t> queue = {0};
  for (size_t i = 0; i < queue.size(); ++i) {
    const uint32_t node = queue[i];
    nodes_[node].output = nodes_[node].value >= 0 ? node : nodes_[nodes_[node].fail].output;
    for (uint32_t next = nodes_[node].first_child; next != 0; next = nodes_[next].next_sibling) {
      uint32_t target = 0;
      for (uint32_t from = node; target == 0 && from != 0;) {
        from = nodes_[from].fail;
        target = child(from, nodes_[next].byte);
      }
      nodes_[next].fail = target;
      queue.push_back(next);
    }
  }
}

bool TokenFinder::find(std::string_view text, size_t from, Match* match) const {
  uint32_t node = 0;
  bool found = false;
  for (size_t pos = from; pos < text.size(); ++pos) {
    const auto byte = static_cast<unsigned char>(text[pos]);
    if (node == 0 && !starts_[byte]) {
      continue;
    }
    uint32_t next = child(node, byte);
    while (next == 0 && node != 0) {
      node = nodes_[node].fail;
      // A prefix that begins behind the match in hand cannot beat it.
      if (found && pos - nodes_[node].depth > match->begin) {
        return true;
      }
      next = child(node, byte);
    }
    node = next;
    if (const uint32_t at = nodes_[node].output; at != 0) {
      const size_t begin = pos + 1 - nodes_[at].depth;
      if (!found || begin <= match->begin) {
        *match = {begin, pos + 1, nodes_[at].value};
        found = true;
      }
    }
    if (found && (node == 0 || pos + 1 - nodes_[node].depth > match->begin)) {
      return true;
    }
  }
  return found;
}

void AddedTokens::add(AddedToken token) {
  by_id_[token.id] = tokens_.size();
  by_content_[token.content] = tokens_.size();
  tokens_.push_back(std::move(token));
}

void AddedTokens::finish(const Normalizer* normalizer) {
  for (const auto& token : tokens_) {
    if (!token.normalized) {
      plain_finder_.add(token.content, token.id);
      continue;
    }
    NormalText text{token.content, 0};
    if (normalizer != nullptr) {
      normalizer->normalize(text);
    }
    if (text.text != token.content) {
      normalized_text_[token.id] = text.text;
    }
    normalized_finder_.add(text.text, token.id);
  }
  plain_finder_.finish();
  normalized_finder_.finish();
}

void AddedTokens::split(std::string_view text, bool normalized,
                        std::vector<AddedSplit>& out) const {
  const TokenFinder& tokens = finder(normalized);
  size_t done = 0;
  TokenFinder::Match match{};
  for (size_t from = 0; !tokens.empty() && tokens.find(text, from, &match); from = match.end) {
    const AddedToken& token = tokens_[by_id_.at(match.value)];
    size_t begin = match.begin;
    size_t end = match.end;
    if (token.single_word && (is_word_before(text, begin) || is_word_at(text, end))) {
      continue;
    }
    if (token.lstrip) {
      begin = skip_spaces_back(text, begin, done);
    }
    if (token.rstrip) {
      end = skip_spaces(text, end);
    }
    if (done < begin) {
      out.push_back({-1, done, begin});
    }
    out.push_back({match.value, begin, end});
    done = end;
  }
  if (done < text.size()) {
    out.push_back({-1, done, text.size()});
  }
}

const AddedToken* AddedTokens::find(int32_t id) const {
  const auto found = by_id_.find(id);
  return found != by_id_.end() ? &tokens_[found->second] : nullptr;
}

const AddedToken* AddedTokens::find(std::string_view content) const {
  const auto found = by_content_.find(std::string(content));
  return found != by_content_.end() ? &tokens_[found->second] : nullptr;
}

std::string_view AddedTokens::text_of(int32_t id) const {
  const auto found = normalized_text_.find(id);
  if (found != normalized_text_.end()) {
    return found->second;
  }
  const AddedToken* token = find(id);
  return token != nullptr ? std::string_view(token->content) : std::string_view();
}

bool AddedTokens::is_special(std::string_view text) const {
  const AddedToken* token = find(text);
  return token != nullptr && token->special;
}

}  // namespace graft::text
