// Parsing of GGUF: a cursor over the mapped bytes that checks every length before it moves.
#include <algorithm>
#include <cstring>
#include <unordered_set>

#include <fmt/format.h>

#include "graft/core/error.h"
#include "graft/io/excerpt.h"
#include "graft/io/gguf.h"

namespace graft::io {

namespace {

constexpr uint32_t kDefaultAlignment = 32;
constexpr uint64_t kMaxAlignment = 1 << 20;
constexpr uint64_t kMaxTensors = 1 << 18;
constexpr uint64_t kMaxMetadata = 1 << 16;
// Budgets over the whole file, for what takes more memory than the file that claims it.
constexpr uint64_t kMaxArrayItems = 8 << 20;
constexpr uint64_t kMaxTextBytes = 64 << 20;
constexpr uint64_t kMaxKeyBytes = 65'535;
constexpr uint64_t kMaxTensorNameBytes = 1024;
constexpr uint32_t kMaxDimensions = 4;

// Metadata types, with the numbers of the format.
enum class ValueType : uint32_t {
  kU8 = 0,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kF32,
  kBool,
  kString,
  kArray,
  kU64,
  kI64,
  kF64,
};

// Bytes of a fixed-size type; 0 for texts and arrays.
size_t fixed_size(ValueType type) {
  switch (type) {
    case ValueType::kU8:
    case ValueType::kI8:
    case ValueType::kBool:
      return 1;
    case ValueType::kU16:
    case ValueType::kI16:
      return 2;
    case ValueType::kU32:
    case ValueType::kI32:
    case ValueType::kF32:
      return 4;
    case ValueType::kU64:
    case ValueType::kI64:
    case ValueType::kF64:
      return 8;
    default:
      return 0;
  }
}

}  // namespace

// Fills a GgufFile from its mapped bytes.
class GgufReader {
 public:
  explicit GgufReader(GgufFile& out) : out_(out), bytes_(out.file_->bytes()) {}

  void read() {
    read_header();
    for (uint64_t i = 0; i < num_metadata_; ++i) {
      read_metadata();
    }
    read_alignment();
    std::vector<uint64_t> offsets;
    for (uint64_t i = 0; i < num_tensors_; ++i) {
      offsets.push_back(read_tensor_info());
    }
    place_tensors(offsets);
  }

 private:
  // Blames the field that was read last, or is about to be.
  [[noreturn]] void fail(std::string_view reason, const std::string& text,
                         std::string_view hint = {}) const {
    throw FormatError("io.gguf", reason,
                      fmt::format("`{}`: at offset {}: {}", out_.path().string(), field_, text),
                      hint);
  }
  [[noreturn]] void fail_at(uint64_t offset, std::string_view reason, const std::string& text) {
    field_ = offset;
    fail(reason, text);
  }

  template <typename T>
  T take(std::string_view what) {
    field_ = position_;
    if (bytes_.size() - position_ < sizeof(T)) {
      fail("length",
           fmt::format("{}: expected {} more bytes, got the end of the file", what, sizeof(T)));
    }
    T value;
    std::memcpy(&value, bytes_.data() + position_, sizeof(T));
    position_ += sizeof(T);
    return value;
  }

  std::string_view take_text(std::string_view what, uint64_t max_bytes) {
    const auto length = take<uint64_t>(what);  // errors blame it, not the bytes that follow
    if (length > max_bytes || length > bytes_.size() - position_) {
      fail("length", fmt::format("{}: expected at most {} bytes, got a length of {}", what,
                                 std::min<uint64_t>(max_bytes, bytes_.size() - position_), length));
    }
    const std::string_view text(reinterpret_cast<const char*>(bytes_.data()) + position_, length);
    position_ += length;
    return text;
  }

  // A text of which the result keeps a copy.
  std::string_view take_copied_text(std::string_view what, uint64_t max_bytes) {
    const auto text = take_text(what, max_bytes);
    text_bytes_ += text.size();
    if (text_bytes_ > kMaxTextBytes) {
      fail("length", fmt::format("{}: expected texts of at most {} bytes in all, got more", what,
                                 kMaxTextBytes));
    }
    return text;
  }

  void read_header() {
    if (bytes_.size() < 24 || std::memcmp(bytes_.data(), "GGUF", 4) != 0) {
      fail("magic",
           "magic: expected a file that begins with `GGUF` and a header of 24 bytes, got another");
    }
    position_ = 4;
    const auto version = take<uint32_t>("version");
    if (version != 2 && version != 3) {
      const bool swapped = version != 0 && (version & 0xffffU) == 0;
      fail("version", fmt::format("version: expected 2 or 3, got {}", version),
           swapped ? "the file seems to be big-endian; convert it to little-endian" : "");
    }
    num_tensors_ = take<uint64_t>("tensor count");
    num_metadata_ = take<uint64_t>("metadata count");
    // The smallest entry takes 13 (metadata) and 24 (tensor) bytes: a count that cannot fit is a
    // lie.
    if (num_tensors_ > std::min<uint64_t>(kMaxTensors, bytes_.size() / 24) ||
        num_metadata_ > std::min<uint64_t>(kMaxMetadata, bytes_.size() / 13)) {
      fail_at(8, "count",
              fmt::format("tensor and metadata count: expected counts that fit a file of {} bytes, "
                          "got {} tensors and {} metadata entries",
                          bytes_.size(), num_tensors_, num_metadata_));
    }
  }

  void read_metadata() {
    const uint64_t start = position_;
    const auto key = take_copied_text("metadata key", kMaxKeyBytes);
    if (key.empty() || !is_utf8(key)) {
      fail("name", "metadata key: expected a non-empty UTF-8 text");
    }
    const std::string what = fmt::format("metadata `{}`", excerpt(key));
    const auto type = static_cast<ValueType>(take<uint32_t>(what));
    GgufValue value =
        type == ValueType::kArray ? GgufValue(read_array(what)) : read_scalar(type, what);
    if (!seen_keys_.insert(key).second) {
      fail_at(start, "duplicate", what + ": expected unique keys, got it twice");
    }
    out_.metadata_offsets_.push_back(start);
    out_.metadata_.emplace_back(std::string(key), std::move(value));
  }

  GgufValue read_scalar(ValueType type, const std::string& what) {
    switch (type) {
      case ValueType::kU8:
        return static_cast<uint64_t>(take<uint8_t>("value"));
      case ValueType::kI8:
        return static_cast<int64_t>(take<int8_t>("value"));
      case ValueType::kU16:
        return static_cast<uint64_t>(take<uint16_t>("value"));
      case ValueType::kI16:
        return static_cast<int64_t>(take<int16_t>("value"));
      case ValueType::kU32:
        return static_cast<uint64_t>(take<uint32_t>("value"));
      case ValueType::kI32:
        return static_cast<int64_t>(take<int32_t>("value"));
      case ValueType::kU64:
        return take<uint64_t>("value");
      case ValueType::kI64:
        return take<int64_t>("value");
      case ValueType::kF32:
        return static_cast<double>(take<float>("value"));
      case ValueType::kF64:
        return take<double>("value");
      case ValueType::kBool:
        return take_bool(what);
      case ValueType::kString:
        return take_text_value(what);
      default:
        fail("metadata-type", fmt::format("{}: expected a type from 0 to 12, got {}", what,
                                          static_cast<uint32_t>(type)));
    }
  }

  std::string take_text_value(const std::string& what) {
    const auto text = take_copied_text(what, kMaxTextBytes);
    if (!is_utf8(text)) {
      fail("metadata-type", what + ": expected UTF-8, got other bytes");
    }
    return std::string(text);
  }

  bool take_bool(const std::string& what) {
    const auto value = take<uint8_t>(what);
    if (value > 1) {
      fail("metadata-type", fmt::format("{}: expected 0 or 1 for a boolean, got {}", what, value));
    }
    return value == 1;
  }

  // Reads `count` items of file type Stored, which read_array found to lie inside the file.
  template <typename Stored, typename Out>
  GgufArray take_items(uint64_t count) {
    std::vector<Out> items(count);
    const std::byte* stored = bytes_.data() + position_;
    for (uint64_t i = 0; i < count; ++i) {
      Stored item;
      std::memcpy(&item, stored + i * sizeof(Stored), sizeof(Stored));
      items[i] = static_cast<Out>(item);
    }
    position_ += count * sizeof(Stored);
    return items;
  }

  // `count` texts, walked over once before memory is taken for them.
  GgufArray take_texts(uint64_t count, const std::string& what) {
    const uint64_t start = position_;
    for (uint64_t i = 0; i < count; ++i) {
      take_text(what, bytes_.size());
    }
    position_ = start;
    std::vector<std::string_view> items(count);
    for (auto& item : items) {
      item = take_text(what, bytes_.size());
    }
    return items;
  }

  GgufArray take_bools(uint64_t count, const std::string& what) {
    std::vector<bool> items(count);
    for (uint64_t i = 0; i < count; ++i) {
      items[i] = take_bool(what);
    }
    return items;
  }

  // Reads an array's type and length and checks that so many items can stand in the file.
  std::pair<ValueType, uint64_t> take_array_head(const std::string& what) {
    const auto type = static_cast<ValueType>(take<uint32_t>(what));
    if (type == ValueType::kArray) {
      fail("nesting", what + ": expected an array of plain values, got an array of arrays");
    }
    const size_t item_bytes = type == ValueType::kString ? sizeof(uint64_t) : fixed_size(type);
    if (item_bytes == 0) {
      fail("metadata-type", fmt::format("{}: expected an array type from 0 to 12, got {}", what,
                                        static_cast<uint32_t>(type)));
    }
    const auto count = take<uint64_t>(what);
    if (count > (bytes_.size() - position_) / item_bytes) {
      fail("length", fmt::format("{}: expected an array that fits the file, got a length of {}",
                                 what, count));
    }
    num_items_ += count;  // no overflow: count is below the file's size
    if (num_items_ > kMaxArrayItems) {
      fail("length", fmt::format("{}: expected at most {} array items in all, got more", what,
                                 kMaxArrayItems));
    }
    return {type, count};
  }

  GgufArray read_array(const std::string& what) {
    const auto [type, count] = take_array_head(what);
    switch (type) {
      case ValueType::kU8:
        return take_items<uint8_t, uint64_t>(count);
      case ValueType::kI8:
        return take_items<int8_t, int64_t>(count);
      case ValueType::kU16:
        return take_items<uint16_t, uint64_t>(count);
      case ValueType::kI16:
        return take_items<int16_t, int64_t>(count);
      case ValueType::kU32:
        return take_items<uint32_t, uint64_t>(count);
      case ValueType::kI32:
        return take_items<int32_t, int64_t>(count);
      case ValueType::kU64:
        return take_items<uint64_t, uint64_t>(count);
      case ValueType::kI64:
        return take_items<int64_t, int64_t>(count);
      case ValueType::kF32:
        return take_items<float, double>(count);
      case ValueType::kF64:
        return take_items<double, double>(count);
      case ValueType::kBool:
        return take_bools(count, what);
      default:
        return take_texts(count, what);
    }
  }

  void read_alignment() {
    for (size_t i = 0; i < out_.metadata_.size(); ++i) {
      out_.metadata_index_.emplace(out_.metadata_[i].first, i);
    }
    if (!out_.has("general.alignment")) {
      return;
    }
    field_ = out_.metadata_offsets_[out_.metadata_index_.at("general.alignment")];
    const GgufValue& found = out_.value("general.alignment");
    const auto* number = std::get_if<uint64_t>(&found);
    if (number == nullptr) {
      fail("alignment", "general.alignment: expected an unsigned whole number, got another type");
    }
    const uint64_t value = *number;
    const bool power_of_two = value > 0 && (value & (value - 1)) == 0;
    if (!power_of_two || value > kMaxAlignment || value < 8) {
      fail("alignment",
           fmt::format("general.alignment: expected a power of two from 8 to {}, got {}",
                       kMaxAlignment, value));
    }
    alignment_ = value;
  }

  // Returns the tensor's offset in the data section; its bytes are set once all infos are read.
  uint64_t read_tensor_info() {
    const uint64_t start = position_;
    GgufTensor tensor;
    const auto name = take_copied_text("tensor name", kMaxTensorNameBytes);
    if (name.empty() || !is_utf8(name)) {
      fail("name", "tensor name: expected a non-empty UTF-8 text");
    }
    tensor.name = std::string(name);
    const std::string what = fmt::format("tensor `{}`", excerpt(name));
    read_shape(tensor, what);
    const uint64_t type_field = position_;
    tensor.type = checked_type(take<uint32_t>(what), what);
    const int64_t row = tensor.shape.back();
    if (row % info(tensor.type).block_elements != 0) {
      fail_at(type_field, "type",
              fmt::format("{}: expected rows of whole blocks of {} elements, got rows of {}", what,
                          info(tensor.type).block_elements, row));
    }
    if (!seen_tensors_.insert(name).second) {
      fail_at(start, "duplicate", what + ": expected unique tensor names, got it twice");
    }
    out_.tensors_.push_back(std::move(tensor));
    offset_fields_.push_back(position_);
    return take<uint64_t>(what);
  }

  void read_shape(GgufTensor& tensor, const std::string& what) {
    const auto num_dimensions = take<uint32_t>(what);
    if (num_dimensions > kMaxDimensions) {
      fail("shape", fmt::format("{}: expected at most {} dimensions, got {}", what, kMaxDimensions,
                                num_dimensions));
    }
    uint64_t count = 1;
    for (uint32_t i = 0; i < num_dimensions; ++i) {
      const auto size = take<uint64_t>(what);
      // No weight is empty, and a zero would hide an overflow of the other sizes.
      if (size == 0 || size > static_cast<uint64_t>(INT64_MAX) ||
          __builtin_mul_overflow(count, size, &count) || count > static_cast<uint64_t>(INT64_MAX)) {
        fail("shape",
             fmt::format("{}: expected 1 to 2^63 - 1 elements, got dimension {}", what, size));
      }
      tensor.shape.insert(tensor.shape.begin(), static_cast<int64_t>(size));
    }
    if (tensor.shape.empty()) {
      tensor.shape.push_back(1);  // as ggml has it: missing dimensions are ones
    }
  }

  GgmlType checked_type(uint32_t number, const std::string& what) {
    for (const auto known : {GgmlType::kF32, GgmlType::kF16, GgmlType::kQ4_0, GgmlType::kQ4_1,
                             GgmlType::kQ5_0, GgmlType::kQ5_1, GgmlType::kQ8_0, GgmlType::kQ4_K,
                             GgmlType::kQ5_K, GgmlType::kQ6_K, GgmlType::kBF16}) {
      if (static_cast<uint32_t>(known) == number) {
        return known;
      }
    }
    fail("type", fmt::format("{}: expected F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, "
                             "Q5_K or Q6_K, got type {}",
                             what, number));
  }

  void place_tensors(const std::vector<uint64_t>& offsets) {
    const uint64_t data_start = (position_ + alignment_ - 1) / alignment_ * alignment_;
    const uint64_t data_bytes = bytes_.size() > data_start ? bytes_.size() - data_start : 0;
    std::vector<Range> ranges;
    for (size_t i = 0; i < offsets.size(); ++i) {
      GgufTensor& tensor = out_.tensors_[i];
      const auto& type = info(tensor.type);
      uint64_t size = 0;
      if (__builtin_mul_overflow(static_cast<uint64_t>(tensor.num_elements() / type.block_elements),
                                 type.block_bytes, &size) ||
          offsets[i] % alignment_ != 0 || offsets[i] > data_bytes ||
          size > data_bytes - offsets[i]) {
        fail_at(offset_fields_[i], "layout",
                fmt::format("tensor `{}`: expected an offset that is a multiple of {} and {} bytes "
                            "within {} bytes of data, got offset {}",
                            excerpt(tensor.name), alignment_, size, data_bytes, offsets[i]));
      }
      tensor.bytes = bytes_.subspan(data_start + offsets[i], size);
      ranges.push_back({offsets[i], offsets[i] + size, i});
    }
    refuse_overlaps(ranges);
    for (size_t i = 0; i < out_.tensors_.size(); ++i) {
      out_.tensor_index_.emplace(out_.tensors_[i].name, i);
    }
  }

  struct Range {
    uint64_t begin;
    uint64_t end;
    size_t tensor;
  };
  void refuse_overlaps(std::vector<Range>& ranges) {
    std::sort(ranges.begin(), ranges.end(),
              [](const Range& a, const Range& b) { return a.begin < b.begin; });
    for (size_t i = 1; i < ranges.size(); ++i) {
      if (ranges[i].begin < ranges[i - 1].end) {
        fail_at(offset_fields_[ranges[i].tensor], "layout",
                fmt::format("tensor `{}`: expected to begin after `{}`, at data offset {} or "
                            "later, got {}",
                            excerpt(out_.tensors_[ranges[i].tensor].name),
                            excerpt(out_.tensors_[ranges[i - 1].tensor].name), ranges[i - 1].end,
                            ranges[i].begin));
      }
    }
  }

  GgufFile& out_;
  std::span<const std::byte> bytes_;
  uint64_t position_ = 0;
  uint64_t field_ = 0;                   // where the field in question begins
  std::vector<uint64_t> offset_fields_;  // of each tensor
  uint64_t num_tensors_ = 0;
  uint64_t num_metadata_ = 0;
  uint64_t alignment_ = kDefaultAlignment;
  uint64_t num_items_ = 0;
  uint64_t text_bytes_ = 0;
  std::unordered_set<std::string_view> seen_keys_;  // views into the file
  std::unordered_set<std::string_view> seen_tensors_;
};

GgufFile GgufFile::open(const std::filesystem::path& path) {
  GgufFile result;
  result.file_ = MappedFile::open(path);
  GgufReader(result).read();
  return result;
}

}  // namespace graft::io
