// WordPiece, greedy longest match from the left, and WordLevel, one token for a word.
#pragma once

#include <string>

#include "graft/text/model.h"

namespace graft::text {

class WordPieceModel : public Model {
 public:
  // prefix     that a token carries inside a word, `##`
  // max_chars  of a word; longer ones are unknown
  WordPieceModel(Vocabulary vocabulary, int32_t unk_id, std::string prefix, size_t max_chars);

  void tokenize(std::string_view word, ModelScratch& scratch,
                std::vector<int32_t>& ids) const override;
  const Vocabulary& vocabulary() const override { return vocabulary_; }
  int32_t unk_id() const override { return unk_id_; }

 private:
  bool cut(std::string_view word, std::string& scratch, std::vector<int32_t>& ids) const;

  Vocabulary vocabulary_;
  int32_t unk_id_;
  std::string prefix_;
  size_t max_chars_;
};

class WordLevelModel : public Model {
 public:
  WordLevelModel(Vocabulary vocabulary, int32_t unk_id)
      : vocabulary_(std::move(vocabulary)), unk_id_(unk_id) {}

  void tokenize(std::string_view word, ModelScratch& scratch,
                std::vector<int32_t>& ids) const override;
  const Vocabulary& vocabulary() const override { return vocabulary_; }
  int32_t unk_id() const override { return unk_id_; }

 private:
  Vocabulary vocabulary_;
  int32_t unk_id_;
};

}  // namespace graft::text
