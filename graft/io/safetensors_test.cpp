#include "graft/io/safetensors.h"

#include <cstring>
#include <filesystem>
#include <fstream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include "graft/core/error.h"
#include "graft/io/checkpoint.h"
#include "graft/io/test_hostile.h"

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

  // The code that opening such a file ends with.
  std::string code_of(const std::string& content) {
    const auto path = write("hostile.safetensors", content);
    refusal_ = test_support::refusal_of(
        [&] { SafetensorsFile::open(path); }, "hostile.safetensors",
        max_bytes_ > 0 ? max_bytes_ : test_support::allowance(content.size()));
    return refusal_.code;
  }

  std::string code_of_header(const std::string& header, size_t data_bytes = 0) {
    return code_of(with_length(header, std::string(data_bytes, '\0')));
  }

  // Where the header's text begins with `part`, as errors say it.
  static std::string at(const std::string& header, const std::string& part) {
    return "at offset " + std::to_string(8 + header.find(part)) + ": ";
  }

  fs::path folder_;
  test_support::Refusal refusal_;
  uint64_t max_bytes_ = 0;  // of allocations; 0: by the file's size
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
  EXPECT_THROW(write_safetensors("/dev/null", {}), InvalidArgument);
  fs::create_symlink("loop", folder_ / "loop");
  EXPECT_THROW(write_safetensors(folder_ / "loop", {}), NotFound);
  fs::remove(folder_ / "loop");
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
  max_bytes_ = 64 << 10;
  EXPECT_EQ(
      code_of_header("{\"a\":" + tensor("F32", "[1099511627776]", "[0,4398046511104]") + "}", 4),
      "io.safetensors.coverage");
  EXPECT_EQ(code_of(with_length("{}", "", uint64_t{99} << 20)), "io.safetensors.header-length");
  EXPECT_EQ(code_of(with_length("{}", "", UINT64_MAX - 1)), "io.safetensors.header-length");
}

TEST_F(Safetensors, TakesLittleMemoryForAFileOfHoles) {
  // 99 MB of NUL bytes as a header, and a file that says to be a terabyte: both sparse.
  const auto path = write("hostile.safetensors", with_length("", "", 99'000'000));
  fs::resize_file(path, uint64_t{1} << 40);
  const auto refusal = test_support::refusal_of([&] { SafetensorsFile::open(path); },
                                                "hostile.safetensors", 1 << 20);
  EXPECT_EQ(refusal.code, "io.safetensors.header-json");
}

TEST_F(Safetensors, NamesTensorFieldAndOffset) {
  const auto blames = [&](const std::string& header, const std::string& part,
                          const std::string& text, size_t data_bytes = 4) {
    code_of_header(header, data_bytes);
    EXPECT_THAT(refusal_.text, testing::HasSubstr(at(header, part) + text)) << header;
  };
  const auto one = [](const std::string& entry) { return R"({"b":)" + entry + "}"; };
  const auto with_a = [](const std::string& entry) {  // behind another tensor
    return R"({"a":)" + tensor("U8", "[2]", "[0,2]") + R"(, "b\"\\" : )" + entry + "}";
  };
  blames(one(tensor("Q4", "[1]", "[0,4]")), "\"dtype\"", "tensor `b`: dtype: expected");
  blames(one(tensor("F32", "[-1]", "[0,4]")), "\"shape\"", "tensor `b`: shape: expected");
  blames(one(tensor("F32", "[2]", "[0,4]")), "\"data_offsets\"",
         "tensor `b`: data_offsets: expected 8 bytes for its shape and dtype, got 4");
  blames(one(tensor("F32", "[1]", "[4,0]")), "\"data_offsets\"", "tensor `b`: data_offsets: ");
  blames(one(R"({"dtype":"F32"})"), "\"b\"", "tensor `b`: expected exactly the fields");
  blames(with_a(tensor("F32", "[1]", "[2,9]")), R"("data_offsets":[2,9])",
         R"(tensor `b"\`: data_offsets: expected an end within 4 bytes of data, got [2, 9])");
  blames(with_a(tensor("U8", "[1]", "[3,4]")), R"("data_offsets":[3,4])",
         R"(tensor `b"\`: data_offsets: expected to begin at data offset 2, got 3)");
  blames(with_a("[]"), R"("b\"\\")", R"(tensor `b"\`: expected exactly the fields)");
  blames(R"({"__metadata__":{"x":"y","k":[]}})", R"("k")", "__metadata__: `k`: expected a text");
  blames(R"({"..":{}})", R"("..")", "tensor `..`: name: expected");
  code_of_header("{}", 3);
  EXPECT_THAT(refusal_.text, testing::HasSubstr("at offset 10: data: expected the file to end"));
  code_of_header("{\"a\" 1}");
  EXPECT_THAT(refusal_.text, testing::HasSubstr("at byte 15: "));  // of the file, not of the header
}

TEST_F(Safetensors, RefusesMoreTensorsThanItsBudgetOfMemory) {
  std::string header = "{";
  for (int i = 0; i < 200'000; ++i) {
    header += (i > 0 ? ",\"" : "\"") + std::to_string(i) + "\":" + tensor("U8", "[0]", "[0,0]");
  }
  max_bytes_ = 256 << 20;
  EXPECT_EQ(code_of_header(header + "}"), "io.safetensors.limits");
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
    text_ = "";
    try {
      Checkpoint::open(folder_);
    } catch (const Error& error) {
      text_ = error.what();
      return error.code();
    }
    return "accepted";
  }
  // An index problem that names the index and `text`, found in little memory.
  void refuses(const std::string& weight_map, const std::string& text) {
    std::string code;
    EXPECT_LT(test_support::bytes_allocated_by([&] { code = code_of_index(weight_map); }), 1 << 20);
    EXPECT_EQ(code, "io.checkpoint.index") << weight_map;
    EXPECT_THAT(text_, testing::HasSubstr("/model.safetensors.index.json`: "));
    EXPECT_THAT(text_, testing::HasSubstr(text)) << weight_map;
  }
  std::string text_;
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
  const std::string plain_name = "weight_map: `x`: expected a file name in this folder, got ";
  for (const char* shard : {"../a.safetensors", "../../etc/passwd", "/etc/passwd",
                            "sub/a.safetensors", "..", ".", "", "a\\\\b"}) {
    refuses(std::string(R"({"x":")") + shard + R"("})", plain_name);
  }
  refuses(R"({"x":")" + std::string(300, 'a') + R"("})", plain_name);
  refuses(R"({"x":"a\u0000b"})", plain_name);
  refuses(R"({"x":1})", plain_name + "1");
  refuses(R"({"x":"missing.safetensors"})",
          "weight_map: expected shard `missing.safetensors` beside the index, got none");
  refuses(R"({"x":"a.safetensors"})", "`y` stands in a.safetensors but is not listed");
  refuses(R"({"x":"a.safetensors","y":"a.safetensors","w":"a.safetensors"})",
          "`w` is listed for a.safetensors but stands nowhere");
  refuses(R"({"x":"a.safetensors","y":"b.safetensors"})",
          "`x` stands in a.safetensors and in b.safetensors");
  refuses("{}", "weight_map: expected an object");
  refuses("[]", "weight_map: expected an object");
  EXPECT_EQ(code_of_index(R"({"x":"a.safetensors","x":"b.safetensors"})"),
            "io.checkpoint.duplicate-key");
  EXPECT_EQ(code_of_index(std::string(10'000, '[')), "io.checkpoint.json-limits");
  EXPECT_THAT(text_, testing::HasSubstr("model.safetensors.index.json`: at byte "));
}

TEST_F(ShardedCheckpoint, FollowsLinksAsTheCacheHasThemAndNamesThoseThatLeadNowhere) {
  const std::string map = R"({"x":"a.safetensors"})";
  fs::create_directories(folder_ / "blobs");
  shard("blobs/0123", {"x"});
  fs::create_symlink("blobs/0123", folder_ / "a.safetensors");  // snapshots are made of such links
  EXPECT_EQ(code_of_index(map), "accepted");
  const auto relink = [&](const fs::path& target) {
    fs::remove(folder_ / "a.safetensors");
    fs::create_symlink(target, folder_ / "a.safetensors");
  };
  relink("/etc/passwd");  // read as weights or refused as such, and never shown
  EXPECT_EQ(code_of_index(map), "io.safetensors.header-length");
  EXPECT_THAT(text_, testing::HasSubstr("a.safetensors`: at offset 0: "));
  EXPECT_THAT(text_, testing::Not(testing::HasSubstr("root")));
  relink("blobs/absent");
  refuses(map, "expected shard `a.safetensors` beside the index, got none");
  relink("a.safetensors");
  EXPECT_EQ(code_of_index(map), "io.file.open");
  EXPECT_THAT(text_, testing::HasSubstr("a.safetensors`: expected a readable file, got: "));
  relink("/dev/zero");
  EXPECT_EQ(code_of_index(map), "io.file.open");
  fs::remove(folder_ / "model.safetensors.index.json");
  fs::create_symlink("model.safetensors", folder_ / "model.safetensors");
  EXPECT_THROW(Checkpoint::open(folder_), NotFound);
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
