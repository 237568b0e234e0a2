#include "graft/text/model_unigram.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include <fmt/format.h>

#include "graft/text/json_fields.h"

namespace graft::text {

namespace {

constexpr double kUnkPenalty = 10.0;

uint64_t child_key(uint32_t node, char byte) {
  return static_cast<uint64_t>(node) << 8 | static_cast<unsigned char>(byte);
}

}  // namespace

UnigramModel::UnigramModel(Vocabulary vocabulary, std::vector<double> scores, int32_t unk_id,
                           bool byte_fallback)
    : vocabulary_(std::move(vocabulary)), scores_(std::move(scores)), unk_id_(unk_id) {
  if (unk_id_ >= 0 && !vocabulary_.has(unk_id_)) {
    refuse_tokenizer("scores", fmt::format("Unigram: `unk_id`: expected an id below {}, got {}",
                                           vocabulary_.end_id(), unk_id_));
  }
  double least = std::numeric_limits<double>::infinity();
  for (size_t id = 0; id < scores_.size(); ++id) {
    if (!std::isfinite(scores_[id])) {
      refuse_tokenizer("scores",
                       fmt::format("Unigram: `{}`: expected a finite score, got {}",
                                   vocabulary_.token(static_cast<int32_t>(id)), scores_[id]));
    }
    least = std::min(least, scores_[id]);
  }
  unk_score_ = least - kUnkPenalty;
  if (byte_fallback) {
    byte_tokens_ = find_byte_tokens(vocabulary_);
  }
  build_trie();
}

void UnigramModel::build_trie() {
  uint32_t num_nodes = 0;
  roots_.resize(256);
  children_ = FlatMap<Child>(vocabulary_.count() * 3);
  for (size_t id = 0; id < vocabulary_.end_id(); ++id) {
    const std::string_view token = vocabulary_.token(static_cast<int32_t>(id));
    if (token.empty()) {
      continue;
    }
    Child& root = roots_[static_cast<unsigned char>(token[0])];
    if (root.node == 0) {
      root.node = ++num_nodes;
    }
    if (token.size() == 1) {
      root.id = static_cast<int32_t>(id);
      continue;
    }
    uint32_t node = root.node;
    for (size_t i = 1; i < token.size(); ++i) {
      const uint64_t key = child_key(node, token[i]);
      const Child* known = children_.find(key);
      Child child = known != nullptr ? *known : Child{++num_nodes, -1};
      const bool last = i + 1 == token.size();
      if (known == nullptr || last) {
        child.id = last ? static_cast<int32_t>(id) : child.id;
        children_.set(key, child);
      }
      node = child.node;
    }
  }
}

void UnigramModel::throw_unknown(std::string_view piece) const {
  refuse_tokenizer("unknown-token",
                   fmt::format("Unigram: expected a token for unknown text, got none, at `{}`",
                               piece.substr(0, 200)));
}

void UnigramModel::find_best_path(std::string_view word, ModelScratch& scratch) const {
  auto& path = scratch.path;
  path.assign(word.size() + 1, {0.0, 0, 0, false});
  const auto offer = [&](size_t begin, size_t end, double score, int32_t id) {
    auto& node = path[end];
    if (!node.reached || score > node.score) {
      node = {score, id, static_cast<uint32_t>(begin), true};
    }
  };
  for (size_t begin = 0; begin < word.size();) {
    const double so_far = path[begin].score;
    const auto length = static_cast<size_t>(utf8_length(static_cast<unsigned char>(word[begin])));
    bool single = false;
    Child child = roots_[static_cast<unsigned char>(word[begin])];
    for (size_t end = begin + 1; child.node != 0; ++end) {
      if (child.id >= 0) {
        offer(begin, end, scores_[static_cast<size_t>(child.id)] + so_far, child.id);
        single |= end - begin == length;
      }
      if (end == word.size()) {
        break;
      }
      const Child* next = children_.find(child_key(child.node, word[end]));
      if (next == nullptr) {
        break;
      }
      child = *next;
    }
    if (!single) {
      auto& node = path[begin + length];
      if (!node.reached || unk_score_ + so_far > node.score) {
        if (unk_id_ < 0) {
          throw_unknown(word.substr(begin, length));
        }
        node = {unk_score_ + so_far, unk_id_, static_cast<uint32_t>(begin), true};
      }
    }
    begin += length;
  }
}

void UnigramModel::add_piece(std::string_view piece, int32_t id, std::vector<int32_t>& ids) const {
  if (id != unk_id_) {
    ids.push_back(id);
    return;
  }
  if (const int32_t known = vocabulary_.find(piece); known >= 0) {
    ids.push_back(known);
    return;
  }
  const bool bytes = !byte_tokens_.empty() && std::all_of(piece.begin(), piece.end(), [&](char c) {
    return byte_tokens_[static_cast<unsigned char>(c)] >= 0;
  });
  if (!bytes) {
    ids.push_back(unk_id_);
    return;
  }
  for (const char c : piece) {
    ids.push_back(byte_tokens_[static_cast<unsigned char>(c)]);
  }
}

void UnigramModel::tokenize(std::string_view word, ModelScratch& scratch,
                            std::vector<int32_t>& ids) const {
  if (scratch.cache.get(word, ids)) {
    return;
  }
  find_best_path(word, scratch);
  // Walks back from the end: the pieces, neighbours without a token joined into one.
  struct Found {
    size_t begin;
    size_t end;
    int32_t id;
  };
  std::vector<Found> pieces;
  for (size_t end = word.size(); end > 0;) {
    const auto& node = scratch.path[end];
    if (node.id == unk_id_ && !pieces.empty() && pieces.back().id == unk_id_) {
      pieces.back().begin = node.start;
    } else {
      pieces.push_back({node.start, end, node.id});
    }
    end = node.start;
  }
  const size_t first = ids.size();
  for (size_t i = pieces.size(); i-- > 0;) {
    add_piece(word.substr(pieces[i].begin, pieces[i].end - pieces[i].begin), pieces[i].id, ids);
  }
  scratch.cache.put(word, ids.data() + first, ids.size() - first);
}

}  // namespace graft::text
