#include "graft/core/file_status.h"

#include <fstream>

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include "graft/core/error.h"

namespace graft {
namespace {

namespace fs = std::filesystem;

class FileStatus : public ::testing::Test {
 protected:
  FileStatus() {
    fs::remove_all(folder_);
    fs::create_directories(folder_);
    std::ofstream(folder_ / "file") << "text";
  }
  ~FileStatus() override { fs::remove_all(folder_); }

  const fs::path folder_ =
      fs::path(::testing::TempDir()) / fmt::format("graft_file_status_{}", getpid());
};

TEST_F(FileStatus, TellsFilesFoldersAndNothingApart) {
  EXPECT_TRUE(is_file(folder_ / "file"));
  EXPECT_FALSE(is_folder(folder_ / "file"));
  EXPECT_TRUE(is_folder(folder_));
  EXPECT_FALSE(is_file(folder_));
  EXPECT_TRUE(is_there(folder_));
  EXPECT_FALSE(is_there(folder_ / "other"));
  EXPECT_FALSE(is_there(folder_ / "file" / "below a file"));
}

TEST_F(FileStatus, FollowsLinks) {
  fs::create_symlink("file", folder_ / "link");
  fs::create_symlink("nowhere", folder_ / "dangling");
  EXPECT_TRUE(is_file(folder_ / "link"));
  EXPECT_FALSE(is_there(folder_ / "dangling"));
}

TEST_F(FileStatus, ALoopOfLinksIsAnErrorThatNamesThePath) {
  fs::create_symlink("loop", folder_ / "loop");
  try {
    is_file(folder_ / "loop");
    FAIL() << "no error";
  } catch (const NotFound& error) {
    EXPECT_EQ(error.code(), "core.file.status");
    EXPECT_NE(std::string(error.what()).find((folder_ / "loop").string()), std::string::npos);
  }
}

TEST_F(FileStatus, ANameThatIsTooLongIsQuotedInPart) {
  try {
    is_there(folder_ / std::string(5000, 'x'));
    FAIL() << "no error";
  } catch (const NotFound& error) {
    EXPECT_LT(std::string(error.what()).size(), 600U);
  }
}

TEST_F(FileStatus, ReadsRegularFilesAloneAndNoMoreThanAsked) {
  EXPECT_EQ(read_regular_file(folder_ / "file", 100), "text");
  EXPECT_EQ(read_regular_file(folder_ / "file", 2), "te");
  fs::create_symlink("file", folder_ / "link");
  EXPECT_EQ(read_regular_file(folder_ / "link", 100), "text");
  std::ofstream(folder_ / "large") << std::string(200'000, 'x');
  EXPECT_EQ(read_regular_file(folder_ / "large", 1 << 20)->size(), 200'000U);
  ASSERT_EQ(mkfifo((folder_ / "pipe").c_str(), 0600), 0);  // nobody writes to it
  for (const fs::path& none :
       {folder_ / "pipe", folder_ / "missing", folder_, fs::path("/dev/zero")}) {
    EXPECT_FALSE(read_regular_file(none, 100)) << none;
  }
}

}  // namespace
}  // namespace graft
