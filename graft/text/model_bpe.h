// Byte-pair encoding: symbols of one character (or byte) each, joined pair by pair, the pair of the
// lowest rank first.
#pragma once

#include <array>
#include <string>

#include "graft/text/model.h"

namespace graft::text {

struct BpeMerge {
  std::string_view left;
  std::string_view right;
  uint32_t rank;
};

struct BpeOptions {
  int32_t unk_id = -1;
  std::string continuing_subword_prefix;
  std::string end_of_word_suffix;
  bool fuse_unk = false;
  bool byte_fallback = false;
  bool ignore_merges = false;
};

class BpeModel : public Model {
 public:
  // merges  need not be ordered; of two for the same pair the later counts
  // Throws   FormatError `text.tokenizer.merges` for a merge that names or makes an unknown token.
  BpeModel(Vocabulary vocabulary, const std::vector<BpeMerge>& merges, BpeOptions options);

  void tokenize(std::string_view word, ModelScratch& scratch,
                std::vector<int32_t>& ids) const override;
  const Vocabulary& vocabulary() const override { return vocabulary_; }
  int32_t unk_id() const override { return options_.unk_id; }
  bool take_bytes() override;

 private:
  struct Target {
    uint32_t rank = 0;
    int32_t id = 0;
  };

  static uint64_t pair_key(int32_t left, int32_t right) {
    return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
  }
  void read_merges(const std::vector<BpeMerge>& merges);
  void index_chars();
  // Fills scratch.symbols with the ids of the word's characters.
  void start_symbols(std::string_view word, ModelScratch& scratch) const;
  void start_bytes(std::string_view word, ModelScratch& scratch) const;
  int32_t find_char(std::string_view word, size_t begin, size_t end, std::string& scratch) const;
  void merge_short(ModelScratch& scratch) const;
  void merge_long(ModelScratch& scratch) const;

  Vocabulary vocabulary_;
  BpeOptions options_;
  FlatMap<Target> merges_;
  FlatMap<int32_t> char_ids_;  // of single characters, where no affix is added
  std::array<int32_t, 128> ascii_ids_{};
  std::vector<int32_t> byte_tokens_;  // `<0x..>`, when all that are needed may be there

  bool has_affixes_ = false;
  bool takes_bytes_ = false;
  std::array<int32_t, 256> byte_ids_{};  // of raw bytes
  std::string raw_bytes_;                // what tokens stand for, one after the other
  TextIndex raw_index_;                  // bytes -> id
};

}  // namespace graft::text
