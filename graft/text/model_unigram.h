// Unigram language model: the cut of a word whose pieces have the greatest sum of scores.
#pragma once

#include "graft/text/model.h"

namespace graft::text {

class UnigramModel : public Model {
 public:
  // scores   log-probability of each id
  // unk_id   -1 for none
  // Throws   FormatError `text.tokenizer.scores` for a score that is no finite number or an unk_id
  //          outside the vocabulary.
  UnigramModel(Vocabulary vocabulary, std::vector<double> scores, int32_t unk_id,
               bool byte_fallback);

  void tokenize(std::string_view word, ModelScratch& scratch,
                std::vector<int32_t>& ids) const override;
  const Vocabulary& vocabulary() const override { return vocabulary_; }
  int32_t unk_id() const override { return unk_id_; }

 private:
  // A node of the prefix tree over the bytes of the tokens.
  struct Child {
    uint32_t node = 0;
    int32_t id = -1;  // of the token that ends here
  };

  void build_trie();
  void find_best_path(std::string_view word, ModelScratch& scratch) const;
  void add_piece(std::string_view piece, int32_t id, std::vector<int32_t>& ids) const;
  [[noreturn]] void throw_unknown(std::string_view piece) const;

  Vocabulary vocabulary_;
  std::vector<double> scores_;
  int32_t unk_id_;
  double unk_score_ = 0;
  std::vector<int32_t> byte_tokens_;
  std::vector<Child> roots_;  // by first byte
  FlatMap<Child> children_;   // (node, byte) -> child
};

}  // namespace graft::text
