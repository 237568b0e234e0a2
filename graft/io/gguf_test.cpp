#include "graft/io/gguf.h"

#include <chrono>
#include <cstring>
#include <fstream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "graft/core/error.h"
#include "graft/io/test_hostile.h"

namespace graft::io {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;

// Numbers of the format.
enum Kind : uint32_t { kU8 = 0, kI32 = 5, kF32 = 6, kBool = 7, kString = 8, kArray = 9, kU64 = 10 };

// A GGUF file written field by field, so that any of them can lie.
class Bytes {
 public:
  template <typename T>
  Bytes& put(T value) {
    text_.append(reinterpret_cast<const char*>(&value), sizeof(value));
    return *this;
  }
  Bytes& raw(std::string_view bytes) {
    text_ += bytes;
    return *this;
  }
  Bytes& string(std::string_view value) { return put<uint64_t>(value.size()).raw(value); }
  Bytes& key(std::string_view name, uint32_t type) { return string(name).put<uint32_t>(type); }
  Bytes& tensor(std::string_view name, std::vector<uint64_t> dims, uint32_t type, uint64_t offset) {
    string(name).put<uint32_t>(static_cast<uint32_t>(dims.size()));
    for (const uint64_t dim : dims) {
      put(dim);
    }
    return put(type).put(offset);
  }
  // Pads to the alignment of data and adds that many bytes.
  Bytes& data(size_t size, size_t alignment = 32) {
    text_.append((alignment - text_.size() % alignment) % alignment, '\0');
    text_.append(size, '\1');
    return *this;
  }
  const std::string& text() const { return text_; }

 private:
  std::string text_;
};

Bytes header(uint64_t num_tensors, uint64_t num_keys, uint32_t version = 3) {
  return Bytes().raw("GGUF").put(version).put(num_tensors).put(num_keys);
}

class Gguf : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::path(testing::TempDir()) / ("graft-gguf-" + std::to_string(getpid()));
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  GgufFile open(const Bytes& bytes) {
    std::ofstream(folder_ / "hostile.gguf", std::ios::binary) << bytes.text();
    return GgufFile::open(folder_ / "hostile.gguf");
  }

  // The code that opening ends with, quickly.
  std::string code_of(const Bytes& bytes) {
    std::ofstream(folder_ / "hostile.gguf", std::ios::binary) << bytes.text();
    return code_of_file(test_support::allowance(bytes.text().size()));
  }
  std::string code_of_file(uint64_t max_bytes) {
    const auto start = std::chrono::steady_clock::now();
    refusal_ = test_support::refusal_of([&] { GgufFile::open(folder_ / "hostile.gguf"); },
                                        "hostile.gguf", max_bytes);
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(1));
    return refusal_.code;
  }

  fs::path folder_;
  test_support::Refusal refusal_;
};

TEST_F(Gguf, ReadsMetadataAndTensors) {
  for (const uint32_t version : {2, 3}) {
    const auto file = open(header(2, 4, version)
                               .key("name", kString)
                               .string("tiny")
                               .key("count", kU8)
                               .put<uint8_t>(7)
                               .key("scores", kArray)
                               .put<uint32_t>(kF32)
                               .put<uint64_t>(2)
                               .put(0.5F)
                               .put(-1.0F)
                               .key("words", kArray)
                               .put<uint32_t>(kString)
                               .put<uint64_t>(2)
                               .string("a")
                               .string("bc")
                               .tensor("matrix", {3, 2}, 0, 0)
                               .tensor("scalar", {}, 0, 32)
                               .data(36));
    EXPECT_EQ(file.text("name"), "tiny");
    EXPECT_EQ(file.integer("count"), 7);
    EXPECT_EQ(file.real("count"), 7.0);
    EXPECT_THAT(file.reals("scores"), ElementsAre(0.5, -1.0));
    EXPECT_THAT(file.texts("words"), ElementsAre("a", "bc"));
    ASSERT_NE(file.find("matrix"), nullptr);
    EXPECT_THAT(file.find("matrix")->shape, ElementsAre(2, 3));
    EXPECT_EQ(file.find("matrix")->bytes.size(), 24);
    EXPECT_THAT(file.find("scalar")->shape, ElementsAre(1));
    EXPECT_EQ(file.find("absent"), nullptr);
    EXPECT_FALSE(file.has("absent"));
    EXPECT_THROW(file.text("absent"), NotFound);
  }
}

TEST_F(Gguf, RefusesWhatIsNoGguf) {
  EXPECT_EQ(code_of(Bytes()), "io.gguf.magic");
  EXPECT_EQ(code_of(Bytes().raw("GGUF")), "io.gguf.magic");
  EXPECT_EQ(code_of(Bytes().raw("GGML").data(64)), "io.gguf.magic");
  for (const uint32_t version : {0, 1, 4}) {
    EXPECT_EQ(code_of(header(0, 0, version)), "io.gguf.version") << version;
    EXPECT_EQ(refusal_.hint, "") << version;
  }
  EXPECT_EQ(code_of(header(0, 0, 3U << 24)), "io.gguf.version");
  EXPECT_THAT(refusal_.hint, HasSubstr("big-endian"));
}

TEST_F(Gguf, RefusesCountsThatCannotFit) {
  EXPECT_EQ(code_of(header(UINT64_MAX, 0)), "io.gguf.count");
  EXPECT_EQ(code_of(header(0, uint64_t{1} << 63)), "io.gguf.count");
  EXPECT_EQ(code_of(header(1, 0)), "io.gguf.length");
}

TEST_F(Gguf, RefusesLengthsThatPassTheEnd) {
  for (const uint64_t length : {uint64_t{1} << 63, UINT64_MAX, uint64_t{100}}) {
    EXPECT_EQ(code_of(header(0, 1).put(length).data(32)), "io.gguf.length") << length;
    EXPECT_EQ(code_of(header(0, 1).key("k", kString).put(length).data(32)), "io.gguf.length");
    EXPECT_EQ(code_of(header(0, 1).key("k", kArray).put<uint32_t>(kU8).put(length).data(32)),
              "io.gguf.length");
    EXPECT_EQ(code_of(header(0, 1).key("k", kArray).put<uint32_t>(kString).put(length).data(32)),
              "io.gguf.length");
    EXPECT_EQ(code_of(header(1, 0).put(length).data(32)), "io.gguf.length");
  }
}

TEST_F(Gguf, RefusesArraysOfArrays) {
  Bytes nested = header(0, 1).key("k", kArray);
  for (int i = 0; i < 10'000; ++i) {
    nested.put<uint32_t>(kArray).put<uint64_t>(1);
  }
  EXPECT_EQ(code_of(nested), "io.gguf.nesting");
}

TEST_F(Gguf, TakesLittleMemoryForArraysThatAFileOfHolesClaims) {
  const auto path = folder_ / "hostile.gguf";
  const uint64_t claimed = uint64_t{1} << 30;
  {
    std::ofstream out(path, std::ios::binary);
    out << header(0, 1).key("k", kArray).put<uint32_t>(kU8).put(claimed).text();
  }
  fs::resize_file(path, claimed + 100);  // sparse
  EXPECT_EQ(code_of_file(64 << 10), "io.gguf.length");
  EXPECT_THAT(refusal_.text, HasSubstr("at offset 41: metadata `k`: expected at most 8388608"));
}

TEST_F(Gguf, TakesNoMemoryForWhatAFileOfHolesClaims) {
  const auto path = folder_ / "hostile.gguf";
  const auto code_of_sparse = [&](const Bytes& bytes) {
    std::ofstream(path, std::ios::binary) << bytes.text();
    fs::resize_file(path, uint64_t{1} << 40);
    return code_of_file(1 << 20);
  };
  EXPECT_EQ(code_of_sparse(header(UINT64_MAX, 0)), "io.gguf.count");
  EXPECT_EQ(code_of_sparse(header(0, UINT64_MAX)), "io.gguf.count");
  EXPECT_EQ(code_of_sparse(header(1 << 18, 0)), "io.gguf.name");  // the first name is a hole
  EXPECT_EQ(code_of_sparse(header(0, 1 << 16)), "io.gguf.name");
  EXPECT_EQ(code_of_sparse(header(0, 1).put(uint64_t{1} << 39)), "io.gguf.length");
  EXPECT_EQ(code_of_sparse(header(0, 1).key("k", kString).put(uint64_t{1} << 39)),
            "io.gguf.length");
  // Eight million texts of which the second is a lie: found before there is a list of them.
  EXPECT_EQ(code_of_sparse(header(0, 1)
                               .key("k", kArray)
                               .put<uint32_t>(kString)
                               .put<uint64_t>(8'000'000)
                               .string("a")
                               .put(uint64_t{1} << 41)),
            "io.gguf.length");
  EXPECT_THAT(refusal_.text, HasSubstr("at offset 58: metadata `k`: expected"));
}

TEST_F(Gguf, NamesFieldAndOffset) {
  const auto blames = [&](const Bytes& bytes, size_t offset, const std::string& text) {
    code_of(bytes);
    EXPECT_THAT(refusal_.text, HasSubstr("`: at offset " + std::to_string(offset) + ": " + text));
  };
  const auto at = [](const Bytes& bytes) { return bytes.text().size(); };
  blames(Bytes().raw("GGML").data(64), 0, "magic: expected");
  blames(header(0, 0, 4), 4, "version: expected 2 or 3, got 4");
  blames(header(UINT64_MAX, 0), 8, "tensor and metadata count: expected counts that fit");
  blames(header(0, 1).put(UINT64_MAX).data(64), 24, "metadata key: expected at most");
  const Bytes one = header(0, 1), named = header(0, 1).string("some.key");
  blames(header(0, 1).string("some.key").put<uint32_t>(13).data(64), at(named),
         "metadata `some.key`: expected a type from 0 to 12, got 13");
  blames(header(0, 1).key("some.key", kString).put(UINT64_MAX).data(64), at(named) + 4,
         "metadata `some.key`: expected at most");
  blames(header(0, 1).key("some.key", kArray).put<uint32_t>(kU8).put(UINT64_MAX).data(64),
         at(named) + 8, "metadata `some.key`: expected an array that fits the file, got a length");
  blames(header(0, 1).key("some.key", kArray).put<uint32_t>(kArray).put<uint64_t>(1).data(64),
         at(named) + 4, "metadata `some.key`: expected an array of plain values");
  blames(header(0, 2).key("k", kU8).put<uint8_t>(0).key("k", kU8).put<uint8_t>(0), 38,
         "metadata `k`: expected unique keys");
  blames(header(0, 1).key("general.alignment", kU64).put<uint64_t>(13), at(one),
         "general.alignment: expected a power of two from 8 to 1048576, got 13");
  const Bytes tensor = header(1, 0).string("t");
  blames(header(1, 0).tensor("t", {1, 1, 1, 1, 1}, 0, 0).data(64), at(tensor),
         "tensor `t`: expected at most 4 dimensions, got 5");
  blames(header(1, 0).tensor("t", {1, UINT64_MAX}, 0, 0).data(64), at(tensor) + 12,
         "tensor `t`: expected 1 to 2^63 - 1 elements");
  blames(header(1, 0).tensor("t", {8}, 4, 0).data(64), at(tensor) + 12, "tensor `t`: expected F32");
  blames(header(1, 0).tensor("t", {33}, 2, 0).data(64), at(tensor) + 12,
         "tensor `t`: expected rows of whole blocks of 32 elements, got rows of 33");
  blames(header(1, 0).tensor("t", {8}, 0, 16).data(64), at(tensor) + 16,
         "tensor `t`: expected an offset that is a multiple of 32");
  blames(header(2, 0).tensor("b", {8}, 0, 32).tensor("a", {16}, 0, 0).data(64), at(tensor) + 16,
         "tensor `b`: expected to begin after `a`, at data offset 64 or later, got 32");
}

TEST_F(Gguf, RefusesAlignmentsThatAreNone) {
  for (const uint64_t alignment : {uint64_t{0}, uint64_t{4}, uint64_t{13}, uint64_t{1} << 31}) {
    EXPECT_EQ(code_of(header(0, 1).key("general.alignment", kU64).put(alignment)),
              "io.gguf.alignment")
        << alignment;
  }
  EXPECT_EQ(code_of(header(0, 1).key("general.alignment", kString).string("32")),
            "io.gguf.alignment");
  EXPECT_EQ(code_of(header(0, 1).key("general.alignment", kI32).put<int32_t>(-32)),
            "io.gguf.alignment");
}

TEST_F(Gguf, RefusesNamesThatRepeatOrAreNone) {
  const auto key = [](Bytes& bytes, std::string_view name) -> Bytes& {
    return bytes.key(name, kU8).put<uint8_t>(0);
  };
  Bytes twice = header(0, 2), empty = header(0, 1), broken = header(0, 1);
  EXPECT_EQ(code_of(key(key(twice, "k"), "k")), "io.gguf.duplicate");
  EXPECT_EQ(code_of(key(empty, "")), "io.gguf.name");
  EXPECT_EQ(code_of(key(broken, "\xc0\x80")), "io.gguf.name");
  EXPECT_EQ(code_of(header(2, 0).tensor("t", {1}, 0, 0).tensor("t", {1}, 0, 32).data(64)),
            "io.gguf.duplicate");
  EXPECT_EQ(code_of(header(1, 0).tensor("", {1}, 0, 0).data(32)), "io.gguf.name");
}

TEST_F(Gguf, RefusesShapesThatAreNone) {
  const auto shape = [&](std::vector<uint64_t> dims) {
    return code_of(header(1, 0).tensor("t", std::move(dims), 0, 0).data(64));
  };
  EXPECT_EQ(shape({1, 1, 1, 1, 1}), "io.gguf.shape");
  EXPECT_EQ(shape({static_cast<uint64_t>(-4)}), "io.gguf.shape");
  EXPECT_EQ(shape({1152, (uint64_t{1} << 42) + 1, 1 << 12}), "io.gguf.shape");
  EXPECT_EQ(shape({uint64_t{1} << 62, 4}), "io.gguf.shape");
  EXPECT_EQ(shape({0, uint64_t{1} << 62, uint64_t{1} << 62}), "io.gguf.shape");
  EXPECT_EQ(code_of(header(1, 0).string("t").put(UINT32_MAX).data(64)), "io.gguf.shape");
}

TEST_F(Gguf, RefusesTypesThatItCannotRead) {
  for (const uint32_t type : {4, 5, 31, 36, 1000}) {  // removed from the format, or unknown
    EXPECT_EQ(code_of(header(1, 0).tensor("t", {32}, type, 0).data(512)), "io.gguf.type") << type;
  }
  EXPECT_EQ(code_of(header(1, 0).tensor("t", {33}, 2, 0).data(512)), "io.gguf.type");
  EXPECT_EQ(code_of(header(0, 1).key("k", 13).data(64)), "io.gguf.metadata-type");
  EXPECT_EQ(code_of(header(0, 1).key("k", kBool).put<uint8_t>(2)), "io.gguf.metadata-type");
}

TEST_F(Gguf, RefusesPlacesThatDoNotHold) {
  const auto at = [&](uint64_t offset) {
    return code_of(header(1, 0).tensor("t", {8}, 0, offset).data(64));
  };
  EXPECT_EQ(at(32), "accepted");
  EXPECT_EQ(at(16), "io.gguf.layout");
  EXPECT_EQ(at(64), "io.gguf.layout");
  EXPECT_EQ(at(uint64_t{1} << 40), "io.gguf.layout");
  EXPECT_EQ(at(UINT64_MAX - 31), "io.gguf.layout");
  EXPECT_EQ(code_of(header(1, 0).tensor("t", {8}, 0, 0).data(31)), "io.gguf.layout");
  EXPECT_EQ(code_of(header(1, 0).tensor("t", {uint64_t{1} << 61}, 0, 0).data(64)),
            "io.gguf.layout");
  EXPECT_EQ(code_of(header(2, 0).tensor("a", {16}, 0, 0).tensor("b", {8}, 0, 32).data(64)),
            "io.gguf.layout");
}

TEST_F(Gguf, GivesNoArrayUnderAnotherElementType) {
  const auto file = open(header(0, 3)
                             .key("scores", kArray)
                             .put<uint32_t>(kU8)
                             .put<uint64_t>(1)
                             .raw("\x01")
                             .key("types", kArray)
                             .put<uint32_t>(kString)
                             .put<uint64_t>(1)
                             .string("a")
                             .key("name", kString)
                             .string("x"));
  EXPECT_THROW(file.reals("scores"), FormatError);
  EXPECT_THROW(file.integers("types"), FormatError);
  EXPECT_THROW(file.texts("scores"), FormatError);
  EXPECT_THROW(file.texts("name"), FormatError);
  try {
    file.real("name");
    FAIL();
  } catch (const FormatError& error) {
    EXPECT_EQ(error.code(), "io.gguf.metadata-type");
    EXPECT_THAT(error.what(), HasSubstr("hostile.gguf`: at offset 93: metadata `name`: expected"));
  }
}

}  // namespace
}  // namespace graft::io
