#include "graft/hub/partial_file.h"

#include <fstream>
#include <iterator>

#include <gtest/gtest.h>
#include <unistd.h>

#include "graft/core/error.h"

namespace graft::hub {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kBlock = PartialFile::kBlockBytes;

class PartialFiles : public testing::Test {
 protected:
  ~PartialFiles() override { PartialFile::remove(path_); }

  std::string content() const {
    std::ifstream in(path_, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }

  fs::path path_ = fs::temp_directory_path() /
                   ("graft-partial-" + std::to_string(getpid()) + ".graft-incomplete");
};

TEST_F(PartialFiles, OneClaimHoldsAFileOfAnySize) {
  for (const uint64_t size : {uint64_t{1}, kBlock - 1, kBlock, kBlock + 1, 5 * kBlock + 1234}) {
    PartialFile::remove(path_);
    PartialFile file(path_, size);
    const auto range = file.claim(size);
    ASSERT_TRUE(range);
    EXPECT_EQ(range->begin, 0U);
    EXPECT_EQ(range->end, size);
    EXPECT_FALSE(file.claim(size));
  }
}

TEST_F(PartialFiles, AnEmptyFileIsComplete) {
  PartialFile file(path_, 0);
  EXPECT_TRUE(file.is_complete());
  EXPECT_FALSE(file.claim(1));
}

TEST_F(PartialFiles, WhatWasWrittenIsThereForTheNext) {
  const uint64_t size = 3 * kBlock + 10;
  {
    PartialFile file(path_, size);
    PartialFile::Stream stream(file, 0);
    stream.write(std::string(kBlock, 'a'));
    stream.write(std::string(kBlock - 1, 'b'));  // not a whole block
    EXPECT_EQ(stream.blocks_passed(), 1U);
    EXPECT_EQ(file.done_bytes(), kBlock);
  }
  PartialFile file(path_, size);
  EXPECT_EQ(file.done_bytes(), kBlock);
  const auto range = file.claim(size);
  ASSERT_TRUE(range);
  EXPECT_EQ(range->begin, kBlock);
  EXPECT_EQ(range->end, size);
  PartialFile::Stream(file, kBlock).write(std::string(size - kBlock, 'c'));
  EXPECT_TRUE(file.is_complete());
  EXPECT_EQ(content(), std::string(kBlock, 'a') + std::string(size - kBlock, 'c'));
}

TEST_F(PartialFiles, OfAnotherSizeItBeginsAnew) {
  {
    PartialFile file(path_, 2 * kBlock);
    PartialFile::Stream(file, 0).write(std::string(kBlock, 'a'));
  }
  EXPECT_EQ(PartialFile(path_, 2 * kBlock + 1).done_bytes(), 0U);
}

TEST_F(PartialFiles, MoreThanTheDiskHoldsIsSaidBeforehand) {
  try {
    PartialFile file(path_, uint64_t{1} << 44);
    FAIL() << "expected no disk of 16 TiB";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), "hub.download.disk");
  }
  EXPECT_LT(fs::file_size(path_), kBlock);
}

}  // namespace
}  // namespace graft::hub
