// Open-addressing tables for the hot loops of tokenizers: no allocation per entry, one cache line
// per look-up in the usual case.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <vector>

namespace graft::text {

inline uint64_t mix64(uint64_t x) {
  x ^= x >> 32;
  x *= 0xD6E8FEB86659FD93ULL;
  x ^= x >> 32;
  return x;
}

// Not keyed: what an attacker gains by collisions is bounded by the sizes checked at load.
inline uint64_t hash_bytes(std::string_view text) {
  uint64_t hash = 0x9E3779B97F4A7C15ULL ^ text.size();
  const char* data = text.data();
  size_t left = text.size();
  while (left >= 8) {
    uint64_t word;
    std::memcpy(&word, data, 8);
    hash = (hash ^ word) * 0xD6E8FEB86659FD93ULL;
    hash ^= hash >> 29;
    data += 8;
    left -= 8;
  }
  uint64_t tail = 0;
  std::memcpy(&tail, data, left);
  return mix64(hash ^ tail);
}

// u64 -> Value. The key ~0 is reserved.
template <typename Value>
class FlatMap {
 public:
  explicit FlatMap(size_t expected = 0) { rehash(expected); }

  const Value* find(uint64_t key) const {
    for (size_t i = mix64(key) & mask_;; i = (i + 1) & mask_) {
      const Slot& slot = slots_[i];
      if (slot.key == key) {
        return &slot.value;
      }
      if (slot.key == kEmpty) {
        return nullptr;
      }
    }
  }

  // Adds or overwrites.
  void set(uint64_t key, const Value& value) {
    if ((size_ + 1) * 2 > slots_.size()) {
      rehash(size_ * 2 + 8);
    }
    size_t i = mix64(key) & mask_;
    while (slots_[i].key != kEmpty && slots_[i].key != key) {
      i = (i + 1) & mask_;
    }
    size_ += slots_[i].key == kEmpty ? 1 : 0;
    slots_[i] = {key, value};
  }

  size_t size() const { return size_; }

 private:
  static constexpr uint64_t kEmpty = ~0ULL;
  struct Slot {
    uint64_t key = kEmpty;
    Value value{};
  };

  void rehash(size_t expected) {
    size_t capacity = 16;
    while (capacity < expected * 2) {
      capacity *= 2;
    }
    std::vector<Slot> old(capacity);
    old.swap(slots_);
    mask_ = capacity - 1;
    size_ = 0;
    for (const Slot& slot : old) {
      if (slot.key != kEmpty) {
        set(slot.key, slot.value);
      }
    }
  }

  std::vector<Slot> slots_;
  size_t mask_ = 0;
  size_t size_ = 0;
};

// Text -> number of the text, for texts that live elsewhere and outlive the table.
class TextIndex {
 public:
  explicit TextIndex(size_t expected = 0) { rehash(expected); }

  // The value of a text, or -1.
  int32_t find(std::string_view text) const {
    const uint64_t hash = hash_bytes(text);
    const auto tag = static_cast<uint32_t>(hash >> 32);
    for (size_t i = hash & mask_;; i = (i + 1) & mask_) {
      const Slot& slot = slots_[i];
      if (slot.data == nullptr) {
        return -1;
      }
      if (slot.tag == tag && std::string_view(slot.data, slot.size) == text) {
        return slot.value;
      }
    }
  }

  // Adds a text unless it is there; returns the value it has now.
  int32_t add(std::string_view text, int32_t value) {
    if ((size_ + 1) * 2 > slots_.size()) {
      rehash(size_ * 2 + 8);
    }
    const uint64_t hash = hash_bytes(text);
    const auto tag = static_cast<uint32_t>(hash >> 32);
    size_t i = hash & mask_;
    for (; slots_[i].data != nullptr; i = (i + 1) & mask_) {
      if (slots_[i].tag == tag && std::string_view(slots_[i].data, slots_[i].size) == text) {
        return slots_[i].value;
      }
    }
    slots_[i] = {text.data() == nullptr ? "" : text.data(), static_cast<uint32_t>(text.size()), tag,
                 value};
    ++size_;
    return value;
  }

  size_t size() const { return size_; }

 private:
  struct Slot {
    const char* data = nullptr;
    uint32_t size = 0;
    uint32_t tag = 0;
    int32_t value = -1;
  };

  void rehash(size_t expected) {
    size_t capacity = 16;
    while (capacity < expected * 2) {
      capacity *= 2;
    }
    std::vector<Slot> old(capacity);
    old.swap(slots_);
    mask_ = capacity - 1;
    size_ = 0;
    for (const Slot& slot : old) {
      if (slot.data != nullptr) {
        add({slot.data, slot.size}, slot.value);
      }
    }
  }

  std::vector<Slot> slots_;
  size_t mask_ = 0;
  size_t size_ = 0;
};

}  // namespace graft::text
