#include "graft/text/model_wordpiece.h"

#include <algorithm>

#include "graft/text/unicode.h"

namespace graft::text {

WordPieceModel::WordPieceModel(Vocabulary vocabulary, int32_t unk_id, std::string prefix,
                               size_t max_chars)
    : vocabulary_(std::move(vocabulary)),
      unk_id_(unk_id),
      prefix_(std::move(prefix)),
      max_chars_(max_chars) {}

bool WordPieceModel::cut(std::string_view word, std::string& scratch,
                         std::vector<int32_t>& ids) const {
  for (size_t begin = 0; begin < word.size();) {
    scratch.assign(begin > 0 ? prefix_ : "");
    const size_t affix = scratch.size();
    // No token is longer than the longest one.
    size_t end = std::min(word.size(), begin + vocabulary_.longest());
    while (end < word.size() && (static_cast<unsigned char>(word[end]) & 0xC0) == 0x80) {
      --end;
    }
    scratch += word.substr(begin, end > begin ? end - begin : 0);
    int32_t id = -1;
    while (scratch.size() > affix) {
      id = vocabulary_.find(scratch);
      if (id >= 0) {
        break;
      }
      scratch.resize(affix + last_char(std::string_view(scratch).substr(affix)));
    }
    if (id < 0) {
      return false;
    }
    ids.push_back(id);
    begin += scratch.size() - affix;
  }
  return true;
}

void WordPieceModel::tokenize(std::string_view word, ModelScratch& scratch,
                              std::vector<int32_t>& ids) const {
  if (scratch.cache.get(word, ids)) {
    return;
  }
  const size_t first = ids.size();
  if ((word.size() > max_chars_ && count_chars(word) > max_chars_) ||
      !cut(word, scratch.text, ids)) {
    ids.resize(first);
    ids.push_back(unk_id_);
  }
  scratch.cache.put(word, ids.data() + first, ids.size() - first);
}

void WordLevelModel::tokenize(std::string_view word, ModelScratch&,
                              std::vector<int32_t>& ids) const {
  const int32_t id = vocabulary_.find(word);
  ids.push_back(id >= 0 ? id : unk_id_);
}

}  // namespace graft::text
