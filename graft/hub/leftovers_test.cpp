#include "graft/hub/leftovers.h"

#include <fstream>
#include <string>

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

namespace graft::hub {
namespace {

namespace fs = std::filesystem;

class Leftovers : public testing::Test {
 protected:
  Leftovers()
      : folder_(fs::temp_directory_path() / ("graft-leftovers-" + std::to_string(getpid()))) {
    fs::create_directories(folder_ / "blobs");
  }
  ~Leftovers() override { fs::remove_all(folder_); }

  static void put(const fs::path& file, const std::string& content) {
    std::ofstream(file) << content;
  }

  static std::string read(const fs::path& file) {
    std::ifstream in(file);
    std::string content;
    std::getline(in, content);
    return content;
  }

  static fs::path blocks_of(fs::path file) { return file.replace_extension(kBlocks); }

  // A path that a process made which has ended since.
  template <typename Make>
  fs::path of_a_dead_process(const Make& make) {
    const pid_t child = fork();
    if (child == 0) {
      put(folder_ / "name", make().string());
      _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    return read(folder_ / "name");
  }

  fs::path folder_;
  fs::path blob_ = folder_ / "blobs" / std::string(64, 'a');
};

TEST_F(Leftovers, NobodyTakesOverWhatSomebodyStillWrites) {
  const auto mine = take_incomplete(blob_);
  put(mine, "mine");
  const auto other = take_incomplete(blob_);
  EXPECT_NE(mine, other);
  EXPECT_EQ(read(mine), "mine");
  EXPECT_FALSE(is_abandoned(mine));
  sweep_leftovers(folder_);
  EXPECT_TRUE(fs::exists(mine));
}

TEST_F(Leftovers, WhatADeadProcessLeftIsTakenOverWithItsNotes) {
  const auto left = of_a_dead_process([&] { return take_incomplete(blob_); });
  put(left, "bytes");
  put(blocks_of(left), "1");
  EXPECT_TRUE(is_abandoned(left));
  const auto mine = take_incomplete(blob_);
  EXPECT_EQ(read(mine), "bytes");
  EXPECT_EQ(read(blocks_of(mine)), "1");
  EXPECT_FALSE(fs::exists(left));
  EXPECT_FALSE(fs::exists(take_incomplete(folder_ / "blobs" / std::string(64, 'b'))));
}

TEST_F(Leftovers, WhatIsGivenBackIsTakenByTheNext) {
  const auto first = take_incomplete(blob_);
  put(first, "bytes");
  release_incomplete(first);
  EXPECT_FALSE(fs::exists(first));
  EXPECT_EQ(read(take_incomplete(blob_)), "bytes");
}

TEST_F(Leftovers, OfAnotherMachineOnlyWhatIsOldIsAbandoned) {
  const fs::path file = blob_.string() + ".00000000-1-1" + kIncomplete;
  put(file, "bytes");
  EXPECT_FALSE(is_abandoned(file));
  fs::last_write_time(file, fs::file_time_type::clock::now() - std::chrono::hours(2));
  EXPECT_TRUE(is_abandoned(file));
}

TEST_F(Leftovers, SweepingTakesTemporaryFilesOfTheDeadAndNothingElse) {
  const auto dead = of_a_dead_process([&] { return temporary_beside(blob_); });
  const auto alive = temporary_beside(blob_);
  const fs::path stray = blob_.string() + ".00000000-0-1" + kBlocks;
  for (const auto& file : {dead, alive, stray, blob_, folder_ / "blobs/x.graft-tmp"}) {
    put(file, "x");
  }
  sweep_leftovers(folder_);
  EXPECT_FALSE(fs::exists(dead) || fs::exists(stray));
  EXPECT_TRUE(fs::exists(alive) && fs::exists(blob_) && fs::exists(folder_ / "blobs/x.graft-tmp"));
}

TEST_F(Leftovers, NamesFitBesideTheLongestName) {
  EXPECT_LT(temporary_beside(folder_ / std::string(255, 'x')).filename().string().size(), 100U);
}

}  // namespace
}  // namespace graft::hub
