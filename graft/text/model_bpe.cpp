#include "graft/text/model_bpe.h"

#include <algorithm>
#include <limits>

#include <fmt/format.h>

#include "graft/text/byte_level.h"
#include "graft/text/json_fields.h"

namespace graft::text {

namespace {

constexpr uint32_t kNoMerge = std::numeric_limits<uint32_t>::max();
constexpr size_t kShortWord = 48;  // symbols; scanning all pairs is quicker than a heap up to here

}  // namespace

BpeModel::BpeModel(Vocabulary vocabulary, const std::vector<BpeMerge>& merges, BpeOptions options)
    : vocabulary_(std::move(vocabulary)), options_(std::move(options)), merges_(merges.size()) {
  has_affixes_ =
      !options_.continuing_subword_prefix.empty() || !options_.end_of_word_suffix.empty();
  read_merges(merges);
  index_chars();
  if (options_.byte_fallback) {
    byte_tokens_ = find_byte_tokens(vocabulary_);
  }
}

void BpeModel::read_merges(const std::vector<BpeMerge>& merges) {
  const auto known = [&](std::string_view token, const BpeMerge& merge) {
    const int32_t id = vocabulary_.find(token);
    if (id < 0) {
      refuse_tokenizer("merges", fmt::format("BPE: merge `{} {}`: expected tokens of the "
                                             "vocabulary, got `{}`",
                                             merge.left, merge.right, token.substr(0, 200)));
    }
    return id;
  };
  const size_t prefix = options_.continuing_subword_prefix.size();
  std::string joined;
  for (const BpeMerge& merge : merges) {
    const int32_t left = known(merge.left, merge);
    const int32_t right = known(merge.right, merge);
    if (merge.right.size() < prefix) {
      refuse_tokenizer("merges",
                       fmt::format("BPE: merge `{} {}`: expected a right part that starts "
                                   "with the prefix `{}`",
                                   merge.left, merge.right, options_.continuing_subword_prefix));
    }
    joined.assign(merge.left);
    joined += merge.right.substr(prefix);
    merges_.set(pair_key(left, right), {merge.rank, known(joined, merge)});
  }
}

void BpeModel::index_chars() {
  ascii_ids_.fill(-1);
  for (size_t id = 0; id < vocabulary_.end_id(); ++id) {
    const std::string_view token = vocabulary_.token(static_cast<int32_t>(id));
    if (token.empty() || token.size() > 4 ||
        static_cast<size_t>(utf8_length(static_cast<unsigned char>(token[0]))) != token.size()) {
      continue;
    }
    size_t pos = 0;
    const char32_t c = next_char(token, pos);
    if (c < 128) {
      ascii_ids_[c] = static_cast<int32_t>(id);
    } else {
      char_ids_.set(c, static_cast<int32_t>(id));
    }
  }
}

bool BpeModel::take_bytes() {
  if (has_affixes_ || options_.byte_fallback) {
    return false;
  }
  for (unsigned byte = 0; byte < 256; ++byte) {
    byte_ids_[byte] = vocabulary_.find(to_utf8(byte_char(static_cast<unsigned char>(byte))));
  }
  if (options_.ignore_merges) {
    size_t num_bytes = 0;
    for (size_t id = 0; id < vocabulary_.end_id(); ++id) {
      num_bytes += vocabulary_.token(static_cast<int32_t>(id)).size();
    }
    raw_bytes_.reserve(num_bytes);  // the index keeps pointers into it
    raw_index_ = TextIndex(vocabulary_.count());
    for (size_t id = 0; id < vocabulary_.end_id(); ++id) {
      const size_t begin = raw_bytes_.size();
      const auto token = vocabulary_.token(static_cast<int32_t>(id));
      if (!token.empty() && append_char_bytes(raw_bytes_, token)) {
        raw_index_.add(std::string_view(raw_bytes_).substr(begin), static_cast<int32_t>(id));
      }
    }
  }
  return takes_bytes_ = true;
}

int32_t BpeModel::find_char(std::string_view word, size_t begin, size_t end,
                            std::string& scratch) const {
  if (!has_affixes_) {
    size_t pos = begin;
    const char32_t c = next_char(word, pos);
    if (c < 128) {
      return ascii_ids_[c];
    }
    const int32_t* found = char_ids_.find(c);
    return found != nullptr ? *found : -1;
  }
  scratch.clear();
  if (begin > 0) {
    scratch += options_.continuing_subword_prefix;
  }
  scratch += word.substr(begin, end - begin);
  if (end == word.size()) {
    scratch += options_.end_of_word_suffix;
  }
  return vocabulary_.find(scratch);
}

void BpeModel::start_symbols(std::string_view word, ModelScratch& scratch) const {
  auto& symbols = scratch.symbols;
  bool pending_unk = false;
  const auto flush = [&] {
    if (pending_unk) {
      symbols.push_back({options_.unk_id, 0, 0, kNoMerge});
      pending_unk = false;
    }
  };
  for (size_t begin = 0; begin < word.size();) {
    const size_t end =
        begin + static_cast<size_t>(utf8_length(static_cast<unsigned char>(word[begin])));
    const int32_t id = find_char(word, begin, end, scratch.text);
    if (id >= 0) {
      flush();
      symbols.push_back({id, 0, 0, kNoMerge});
      begin = end;
      continue;
    }
    if (!byte_tokens_.empty()) {
      // The affixes fall back to bytes along with the character.
      const std::string_view bytes =
          has_affixes_ ? std::string_view(scratch.text) : word.substr(begin, end - begin);
      const bool all = std::all_of(bytes.begin(), bytes.end(), [&](char c) {
        return byte_tokens_[static_cast<unsigned char>(c)] >= 0;
      });
      if (all) {
        // An unknown character before stays pending, as in the reference.
        for (const char c : bytes) {
          symbols.push_back({byte_tokens_[static_cast<unsigned char>(c)], 0, 0, kNoMerge});
        }
        begin = end;
        continue;
      }
    }
    if (options_.unk_id >= 0) {
      if (!options_.fuse_unk) {
        flush();
      }
      pending_unk = true;
    }
    begin = end;
  }
  flush();
}

void BpeModel::start_bytes(std::string_view word, ModelScratch& scratch) const {
  bool last_unk = false;
  for (size_t i = 0; i < word.size(); ++i) {
    int32_t id = byte_ids_[static_cast<unsigned char>(word[i])];
    const bool unk = id < 0;
    if (unk) {
      id = options_.unk_id;
    }
    if (id >= 0 && !(unk && last_unk && options_.fuse_unk)) {
      scratch.symbols.push_back({id, 0, 0, kNoMerge});
    }
    last_unk = unk;
  }
}

void BpeModel::tokenize(std::string_view word, ModelScratch& scratch,
                        std::vector<int32_t>& ids) const {
  if (scratch.cache.get(word, ids)) {
    return;
  }
  const size_t first = ids.size();
  int32_t whole = -1;
  if (options_.ignore_merges) {
    whole = takes_bytes_ ? raw_index_.find(word) : vocabulary_.find(word);
  }
  if (whole >= 0) {
    ids.push_back(whole);
  } else {
    scratch.symbols.clear();
    if (takes_bytes_) {
      start_bytes(word, scratch);
    } else {
      start_symbols(word, scratch);
    }
    if (scratch.symbols.size() <= kShortWord) {
      merge_short(scratch);
    } else {
      merge_long(scratch);
    }
    for (const auto& symbol : scratch.symbols) {
      ids.push_back(symbol.id);
    }
  }
  scratch.cache.put(word, ids.data() + first, ids.size() - first);
}

// Joins the leftmost pair of the lowest rank until no pair has one.
void BpeModel::merge_short(ModelScratch& scratch) const {
  auto& symbols = scratch.symbols;
  const auto update = [&](size_t i) {
    const Target* found = merges_.find(pair_key(symbols[i].id, symbols[i + 1].id));
    symbols[i].rank = found != nullptr ? found->rank : kNoMerge;
    symbols[i].next = found != nullptr ? found->id : -1;  // what the pair becomes
  };
  size_t size = symbols.size();
  for (size_t i = 0; i + 1 < size; ++i) {
    update(i);
  }
  while (size > 1) {
    size_t best = 0;
    uint32_t rank = kNoMerge;
    for (size_t i = 0; i + 1 < size; ++i) {
      if (symbols[i].rank < rank) {
        rank = symbols[i].rank;
        best = i;
      }
    }
    if (rank == kNoMerge) {
      break;
    }
    symbols[best].id = symbols[best].next;
    std::move(symbols.begin() + static_cast<ptrdiff_t>(best) + 2,
              symbols.begin() + static_cast<ptrdiff_t>(size),
              symbols.begin() + static_cast<ptrdiff_t>(best) + 1);
    --size;
    if (best + 1 < size) {
      update(best);
    } else {
      symbols[best].rank = kNoMerge;
    }
    if (best > 0) {
      update(best - 1);
    }
  }
  symbols.resize(size);
}

// The same through a heap of candidates: n log n for runs of any length.
void BpeModel::merge_long(ModelScratch& scratch) const {
  auto& symbols = scratch.symbols;
  auto& heap = scratch.heap;
  using Merge = ModelScratch::Merge;
  const auto later = [](const Merge& a, const Merge& b) {
    return a.rank != b.rank ? a.rank > b.rank : a.pos > b.pos;
  };
  const auto candidate = [&](int32_t left, int32_t right) {
    if (left < 0 || right < 0) {
      return;
    }
    const Target* found = merges_.find(
        pair_key(symbols[static_cast<size_t>(left)].id, symbols[static_cast<size_t>(right)].id));
    if (found != nullptr) {
      heap.push_back({found->rank, static_cast<uint32_t>(left), found->id});
    }
  };
  const auto count = static_cast<int32_t>(symbols.size());
  heap.clear();
  for (int32_t i = 0; i < count; ++i) {
    symbols[static_cast<size_t>(i)].prev = i - 1;
    symbols[static_cast<size_t>(i)].next = i + 1 < count ? i + 1 : -1;
    symbols[static_cast<size_t>(i)].rank = 0;  // here: 1 once joined to another
  }
  for (int32_t i = 0; i + 1 < count; ++i) {
    candidate(i, i + 1);
  }
  std::make_heap(heap.begin(), heap.end(), later);
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), later);
    const Merge top = heap.back();
    heap.pop_back();
    auto& left = symbols[top.pos];
    if (left.rank != 0 || left.next < 0) {
      continue;
    }
    auto& right = symbols[static_cast<size_t>(left.next)];
    const Target* now = merges_.find(pair_key(left.id, right.id));
    if (now == nullptr || now->id != top.id) {
      continue;  // one of the two was joined elsewhere meanwhile
    }
    left.id = top.id;
    right.rank = 1;
    left.next = right.next;
    if (right.next >= 0) {
      symbols[static_cast<size_t>(right.next)].prev = static_cast<int32_t>(top.pos);
    }
    const size_t before = heap.size();
    candidate(left.prev, static_cast<int32_t>(top.pos));
    candidate(static_cast<int32_t>(top.pos), left.next);
    for (size_t i = before; i < heap.size(); ++i) {
      std::push_heap(heap.begin(), heap.begin() + static_cast<ptrdiff_t>(i) + 1, later);
    }
  }
  symbols.erase(std::remove_if(symbols.begin(), symbols.end(),
                               [](const ModelScratch::Symbol& symbol) { return symbol.rank != 0; }),
                symbols.end());
}

}  // namespace graft::text
