#include "graft/io/safetensors.h"

#include <cstring>
#include <filesystem>
#include <fstream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "graft/core/error.h"
#include "graft/io/checkpoint.h"

namespace graft::io {
namespace {

namespace fs = std::filesystem;

std::string with_length(const std::string& header, const std::string& data = {},
                        uint64_t length = UINT64_MAX) {
  const uint64_t value = length == UINT64_MAX ? header.size() : length;
  return std::string(reinterpret_cast<const char*>(&value), sizeof(value)) + header + data;
}

class Safetensors : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::path(testing::TempDir()) / ("graft-safetensors-" + std::to_string(getpid()));
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }

  fs::path write(const std::string& name, const std::string& content) {
    std::ofstream(folder_ / name, std::ios::binary) << content;
    return folder_ / name;
  }

  // The code that opening such a file ends with; checks that the text names the file.
  std::string code_of(const std::string& content) {
    const auto path = write("hostile.safetensors", content);
    try {
      SafetensorsFile::open(path);
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), testing::HasSubstr("hostile.safetensors"));
      return error.code();
    }
    return "accepted";
  }

  std::string code_of_header(const std::string& header, size_t data_bytes = 0) {
    return code_of(with_length(header, std::string(data_bytes, '\0')));
  }

  fs::path folder_;
};

std::string tensor(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return R"({"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}";
}

TEST_F(Safetensors, ReadsWhatItWrites) {
  const std::vector<float> values = {1, 2, 3, 4, 5, 6};
  const std::vector<uint8_t> flags = {7, 8, 9};
  const auto path = folder_ / "a.safetensors";
  write_safetensors(path,
                    {{"bytes", ScalarType::kU8, {3}, std::as_bytes(std::span(flags))},
                     {"matrix", ScalarType::kF32, {2, 3}, std::as_bytes(std::span(values))},
                     {"nothing", ScalarType::kF32, {0, 5}, {}}},
                    {{"format", "pt"}});
  const auto file = SafetensorsFile::open(path);
  EXPECT_EQ(file.tensors().size(), 3);
  EXPECT_EQ(file.metadata().at("format"), "pt");
  const auto* matrix = file.find("matrix");
  ASSERT_NE(matrix, nullptr);
  EXPECT_THAT(matrix->shape, testing::ElementsAre(2, 3));
  EXPECT_EQ(std::memcmp(matrix->bytes.data(), values.data(), matrix->bytes.size()), 0);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(matrix->bytes.data()) % 8, 0);
  EXPECT_EQ(file.find("absent"), nullptr);
}

TEST_F(Safetensors, WritesWholeFilesOrNone) {
  const std::vector<float> values = {1, 2};
  const auto bytes = std::as_bytes(std::span(values));
  const auto path = folder_ / "a.safetensors";
  write_safetensors(path, {{"x", ScalarType::kF32, {2}, bytes}});
  const auto refuse = [&](std::vector<TensorView> tensors) {
    EXPECT_THROW(write_safetensors(path, std::move(tensors)), InvalidArgument);
  };
  refuse({{"x", ScalarType::kF32, {3}, bytes}});
  refuse({{"x", ScalarType::kF32, {-2}, bytes}});
  refuse({{"", ScalarType::kF32, {2}, bytes}});
  refuse({{"__metadata__", ScalarType::kF32, {2}, bytes}});
  refuse({{"\xff", ScalarType::kF32, {2}, bytes}});
  refuse({{"x", ScalarType::kF32, {2}, bytes}, {"x", ScalarType::kF32, {2}, bytes}});
  EXPECT_EQ(SafetensorsFile::open(path).tensors().size(), 1);
  EXPECT_THROW(write_safetensors(folder_ / "absent" / "a", {}), Error);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_), {}), 1);  // nothing temporary is left
}

TEST_F(Safetensors, PacksElementsBelowAByte) {
  EXPECT_EQ(code_of_header("{\"a\":" + tensor("F4", "[3,2]", "[0,3]") + "}", 3), "accepted");
  EXPECT_EQ(code_of_header("{\"a\":" + tensor("F6_E3M2", "[4]", "[0,3]") + "}", 3), "accepted");
  EXPECT_EQ(code_of_header("{\"a\":" + tensor("F4", "[3]", "[0,2]") + "}", 2),
            "io.safetensors.dtype");
}

TEST_F(Safetensors, DoesNotWaitForAPipe) {
  ASSERT_EQ(mkfifo((folder_ / "pipe").c_str(), 0600), 0);
  EXPECT_THROW(SafetensorsFile::open(folder_ / "pipe"), NotFound);
}

TEST_F(Safetensors, RefusesAFileThatIsTooShort) {
  EXPECT_EQ(code_of(""), "io.safetensors.too-short");
  EXPECT_EQ(code_of("1234567"), "io.safetensors.too-short");
}

TEST_F(Safetensors, RefusesAHeaderLengthThatIsALie) {
  for (const uint64_t length :
       {UINT64_MAX - 1, uint64_t{100'000'001}, uint64_t{3}, uint64_t{1} << 63}) {
    EXPECT_EQ(code_of(with_length("{}", "", length)), "io.safetensors.header-length") << length;
  }
}

TEST_F(Safetensors, RefusesAHeaderThatIsNoJsonObject) {
  for (const char* header :
       {"{\"a\":\"\xff\"}", "\xEF\xBB\xBF{}", "[]", "{\"a\":", "{} {}", "", "nul", "{\"a\":1}"}) {
    EXPECT_EQ(code_of_header(header), "io.safetensors.header-json") << header;
  }
}

TEST_F(Safetensors, RefusesADuplicateName) {
  EXPECT_EQ(code_of_header("{\"a\":" + tensor("F32", "[1]", "[0,4]") +
                               ",\"a\":" + tensor("I32", "[1]", "[0,4]") + "}",
                           4),
            "io.safetensors.duplicate-key");
}

TEST_F(Safetensors, RefusesOverlapsHolesAndALateStart) {
  const auto two = [&](const char* first, const char* second) {
    return "{\"a\":" + tensor("U8", "[4]", first) + ",\"b\":" + tensor("U8", "[4]", second) + "}";
  };
  EXPECT_EQ(code_of_header(two("[0,4]", "[2,6]"), 8), "io.safetensors.layout");
  EXPECT_EQ(code_of_header(two("[0,4]", "[0,4]"), 8), "io.safetensors.layout");
  EXPECT_EQ(code_of_header(two("[0,4]", "[5,9]"), 9), "io.safetensors.layout");
  EXPECT_EQ(code_of_header(two("[1,5]", "[5,9]"), 9), "io.safetensors.layout");
}

TEST_F(Safetensors, RefusesOffsetsThatAreNone) {
  for (const char* offsets :
       {"[4,0]", "[-4,0]", "[0,2,4]", "[0.0,4.0]", "[0]", "\"0\"", "[0,1e2]"}) {
    EXPECT_EQ(code_of_header("{\"a\":" + tensor("F32", "[1]", offsets) + "}", 4),
              "io.safetensors.offsets")
        << offsets;
  }
}

TEST_F(Safetensors, RefusesShapesThatDoNotFit) {
  for (const char* shape : {"[4611686018427387904,4]", "[4611686018427387904,16,0]", "[2]", "[-1]",
                            "[2.0]", "4", "[\"1\"]"}) {
    EXPECT_EQ(code_of_header("{\"a\":" + tensor("F32", shape, "[0,4]") + "}", 4),
              "io.safetensors.shape")
        << shape;
  }
}

TEST_F(Safetensors, RefusesDataThatDoesNotEndWithTheLastTensor) {
  EXPECT_EQ(code_of_header("{\"a\":" + tensor("F32", "[1]", "[0,4]") + "}", 5),
            "io.safetensors.coverage");
  EXPECT_EQ(code_of_header("{\"a\":" + tensor("F32", "[1]", "[0,4]") + "}", 3),
            "io.safetensors.coverage");
  EXPECT_EQ(code_of_header("{}", 1), "io.safetensors.coverage");
}

TEST_F(Safetensors, RefusesUnknownTypes) {
  for (const char* dtype : {"f32", "F4", "F6_E2M3", "FLOAT", "", "Q4_0"}) {
    EXPECT_EQ(code_of_header("{\"a\":" + tensor(dtype, "[1]", "[0,4]") + "}", 4),
              "io.safetensors.dtype")
        << dtype;
  }
}

TEST_F(Safetensors, RefusesWhatPassesItsLimits) {
  const auto named = [&](const std::string& name) {
    return "{\"" + name + "\":" + tensor("U8", "[0]", "[0,0]") + "}";
  };
  EXPECT_EQ(code_of_header(named("")), "io.safetensors.limits");
  EXPECT_EQ(code_of_header(named("a\\u0000b")), "io.safetensors.limits");
  EXPECT_EQ(code_of_header(named("../a")), "io.safetensors.limits");
  EXPECT_EQ(code_of_header(named(std::string(1025, 'a'))), "io.safetensors.limits");
  std::string ones = "[1";
  for (int i = 0; i < 999; ++i) {
    ones += ",1";
  }
  EXPECT_EQ(code_of_header("{\"a\":" + tensor("U8", ones + "]", "[0,1]") + "}", 1),
            "io.safetensors.limits");
  EXPECT_EQ(code_of_header("{\"a\":" + std::string(100'000, '[') + std::string(100'000, ']') + "}"),
            "io.safetensors.limits");
  EXPECT_EQ(code_of_header("{\"__metadata__\":{\"a\":1}}"), "io.safetensors.header-json");
  EXPECT_EQ(code_of_header("{\"__metadata__\":null}"), "io.safetensors.header-json");
  EXPECT_EQ(
      code_of_header("{\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0],\"more\":1}}"),
      "io.safetensors.header-json");
}

TEST_F(Safetensors, TakesNoMemoryForWhatAHeaderClaims) {
  rusage before{};
  getrusage(RUSAGE_SELF, &before);
  code_of_header("{\"a\":" + tensor("F32", "[1099511627776]", "[0,4398046511104]") + "}", 4);
  code_of(with_length("{}", "", uint64_t{99} << 20));
  rusage after{};
  getrusage(RUSAGE_SELF, &after);
  EXPECT_LT(after.ru_maxrss - before.ru_maxrss, 16 * 1024);
}

TEST_F(Safetensors, NamesAFileThatIsMissingOrAFolder) {
  EXPECT_THROW(SafetensorsFile::open(folder_ / "absent"), NotFound);
  EXPECT_THROW(SafetensorsFile::open(folder_), NotFound);
}

class ShardedCheckpoint : public Safetensors {
 protected:
  void shard(const std::string& name, const std::vector<std::string>& tensors) {
    std::vector<TensorView> views;
    for (const auto& tensor_name : tensors) {
      views.push_back({tensor_name, ScalarType::kF32, {1}, std::as_bytes(std::span(value_))});
    }
    write_safetensors(folder_ / name, views);
  }
  std::string code_of_index(const std::string& weight_map) {
    write("model.safetensors.index.json", R"({"metadata":{},"weight_map":)" + weight_map + "}");
    try {
      Checkpoint::open(folder_);
    } catch (const Error& error) {
      return error.code();
    }
    return "accepted";
  }
  std::vector<float> value_ = {1};
};

TEST_F(ShardedCheckpoint, FindsTensorsInTheirShards) {
  shard("a.safetensors", {"x", "y"});
  shard("b.safetensors", {"z"});
  ASSERT_EQ(code_of_index(R"({"x":"a.safetensors","y":"a.safetensors","z":"b.safetensors"})"),
            "accepted");
  const auto checkpoint = Checkpoint::open(folder_);
  EXPECT_THAT(checkpoint.names(), testing::UnorderedElementsAre("x", "y", "z"));
  EXPECT_EQ(checkpoint.shard_of("z").path().filename(), "b.safetensors");
  EXPECT_EQ(checkpoint.total_bytes(), 12);
  EXPECT_EQ(checkpoint.find("w"), nullptr);
}

TEST_F(ShardedCheckpoint, RefusesAnIndexThatDoesNotHold) {
  shard("a.safetensors", {"x", "y"});
  shard("b.safetensors", {"x"});
  for (const char* map :
       {R"({"x":"../a.safetensors"})", R"({"x":"/etc/passwd"})", R"({"x":"missing.safetensors"})",
        R"({"x":"a.safetensors"})",
        R"({"x":"a.safetensors","y":"a.safetensors","w":"a.safetensors"})",
        R"({"x":"a.safetensors","y":"b.safetensors"})", R"({"x":1})", "{}", "[]"}) {
    EXPECT_EQ(code_of_index(map), "io.checkpoint.index") << map;
  }
}

TEST_F(ShardedCheckpoint, RefusesATotalThatIsALie) {
  shard("a.safetensors", {"x", "y"});
  const auto with_total = [&](const std::string& total) {
    write("model.safetensors.index.json",
          R"({"metadata":{"total_size":)" + total +
              R"(},"weight_map":{"x":"a.safetensors","y":"a.safetensors"}})");
    try {
      Checkpoint::open(folder_);
    } catch (const Error& error) {
      return error.code();
    }
    return std::string("accepted");
  };
  EXPECT_EQ(with_total("8"), "accepted");
  EXPECT_EQ(with_total("8.0"), "accepted");
  for (const char* total : {"7", "9", "-8", "8.5", "\"8\"", "1e30"}) {
    EXPECT_EQ(with_total(total), "io.checkpoint.index") << total;
  }
}

TEST_F(ShardedCheckpoint, NamesAFolderWithoutWeights) {
  try {
    Checkpoint::open(folder_);
    FAIL();
  } catch (const NotFound& error) {
    EXPECT_EQ(error.code(), "io.checkpoint.no-weights");
  }
}

}  // namespace
}  // namespace graft::io
