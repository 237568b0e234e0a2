// Words that were tokenized lately. One cache per encoding thread, of bounded size: a new word
// displaces an old one that falls on the same slot.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <string_view>
#include <vector>

#include "graft/text/flat_map.h"

namespace graft::text {

class WordCache {
 public:
  static constexpr size_t kMaxBytes = 30;  // of a word
  static constexpr size_t kMaxIds = 8;

  // Appends the ids of a word that is known; false when it is not.
  bool get(std::string_view word, std::vector<int32_t>& ids) const {
    if (word.size() > kMaxBytes || slots_ == nullptr) {
      return false;
    }
    const Slot& slot = slots_[slot_of(word)];
    if (slot.size != word.size() || std::memcmp(slot.bytes, word.data(), word.size()) != 0) {
      return false;
    }
    ids.insert(ids.end(), slot.ids, slot.ids + slot.count);
    return true;
  }

  void put(std::string_view word, const int32_t* ids, size_t count) {
    if (word.size() > kMaxBytes || word.empty() || count > kMaxIds) {
      return;
    }
    if (slots_ == nullptr) {
      slots_ = std::make_unique<Slot[]>(kSlots);
    }
    Slot& slot = slots_[slot_of(word)];
    slot.size = static_cast<uint8_t>(word.size());
    slot.count = static_cast<uint8_t>(count);
    std::memcpy(slot.bytes, word.data(), word.size());
    std::memcpy(slot.ids, ids, count * sizeof(int32_t));
  }

 private:
  static constexpr size_t kSlots = 1 << 14;
  struct alignas(64) Slot {
    uint8_t size = 0;
    uint8_t count = 0;
    char bytes[kMaxBytes] = {};
    int32_t ids[kMaxIds] = {};
  };
  static_assert(sizeof(Slot) == 64);

  static size_t slot_of(std::string_view word) { return hash_bytes(word) & (kSlots - 1); }

  std::unique_ptr<Slot[]> slots_;
};

}  // namespace graft::text
