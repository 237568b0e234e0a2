#include "graft/trust/journal.h"

#include <ctime>
#include <fstream>
#include <iterator>
#include <set>

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

namespace graft::trust {
namespace {

namespace fs = std::filesystem;

JournalEntry entry(const std::string& repository, int64_t time_s = 1'800'000'000) {
  return {time_s,    repository,           "hub", "v1", std::string(40, 'a'),
          "variant", std::string(64, 'b'), "",    true, "allowed"};
}

class JournalFile : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::path(testing::TempDir()) / ("graft-journal-" + std::to_string(getpid()));
    file_ = folder_ / "state/trust.jsonl";
  }
  void TearDown() override { fs::remove_all(folder_); }
  std::string content() const {
    std::ifstream in(file_, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  fs::path folder_;
  fs::path file_;
};

TEST_F(JournalFile, KeepsWhatWasAdded) {
  JournalEntry all{1'800'000'000, "org/\"name\"\n\x1b[31m", "local", "v2",         "c", "v",
                   "d",           "https://signer",         false,   "rolled-back"};
  EXPECT_TRUE(Journal(file_).add(all));
  const Journal journal(file_);
  ASSERT_EQ(journal.entries().size(), 1);
  const JournalEntry& read = journal.entries()[0];
  EXPECT_EQ(read.repository, all.repository);
  EXPECT_EQ(read.origin, "local");
  EXPECT_EQ(read.ref, "v2");
  EXPECT_EQ(read.signer, "https://signer");
  EXPECT_FALSE(read.allowed);
  EXPECT_EQ(read.reason, "rolled-back");
  EXPECT_EQ(content().find('\x1b'), std::string::npos);
  EXPECT_NE(content().find("2027-01-15T08:00:00Z"), std::string::npos);
  EXPECT_EQ(fs::status(file_).permissions() & fs::perms::others_all, fs::perms::none);
}

TEST_F(JournalFile, TakesTheSameOnceADay) {
  Journal journal(file_);
  for (const int64_t hours : {0, 1, 23, 25, 26}) {
    EXPECT_TRUE(journal.add(entry("a/b", 1'800'000'000 + hours * 3600)));
  }
  EXPECT_EQ(Journal(file_).entries().size(), 2);
  // A clock that was set back a day repeats nothing.
  EXPECT_TRUE(journal.add(entry("a/b", 1'800'000'000 - 86'400)));
  EXPECT_EQ(Journal(file_).entries().size(), 2);
}

TEST_F(JournalFile, PassesOverLinesThatAPowerFailureTore) {
  Journal(file_).add(entry("a/b"));
  std::ofstream(file_, std::ios::app | std::ios::binary) << "{\"schema\":1,\"time_s\":18";
  Journal(file_).add(entry("a/c"));
  std::ofstream(file_, std::ios::app | std::ios::binary) << std::string(4096, '\0');
  Journal(file_).add(entry("a/d"));
  std::ofstream(file_, std::ios::app | std::ios::binary) << "{\"schema\":2}\nnoise\n";
  const Journal journal(file_);
  ASSERT_EQ(journal.entries().size(), 3);
  EXPECT_EQ(journal.entries()[1].repository, "a/c");
  EXPECT_EQ(journal.entries()[2].repository, "a/d");
  EXPECT_EQ(journal.num_broken(), 4);
}

TEST_F(JournalFile, LosesNothingOfManyProcesses) {
  constexpr int kProcesses = 16, kEach = 20;
  for (int process = 0; process < kProcesses; ++process) {
    if (fork() == 0) {
      bool good = true;
      for (int i = 0; i < kEach; ++i) {
        good = Journal(file_).add(entry("p" + std::to_string(process) + "/" + std::to_string(i))) &&
               good;
      }
      _exit(good ? 0 : 1);
    }
  }
  for (int process = 0; process < kProcesses; ++process) {
    int status = 0;
    wait(&status);
    EXPECT_EQ(status, 0);
  }
  const Journal journal(file_);
  std::set<std::string> names;
  for (const auto& one : journal.entries()) {
    names.insert(one.repository);
  }
  EXPECT_EQ(names.size(), kProcesses * kEach);
  EXPECT_EQ(journal.num_broken(), 0);
}

TEST_F(JournalFile, StaysBoundedAndKeepsTheNewestFirstSightings) {
  fs::create_directories(file_.parent_path());
  {
    std::ofstream out(file_, std::ios::binary);
    Journal source(folder_ / "one.jsonl");
    source.add(entry("a/b"));
    std::ifstream in(folder_ / "one.jsonl");
    std::string line;
    std::getline(in, line);
    for (int i = 0; i < 6000; ++i) {  // each a day after the other: one decision, seen again
      std::string later = line;
      const size_t at = later.find("1800000000");
      later.replace(at, 10, std::to_string(1'800'000'000 + 90'000LL * i));
      out << later << "\n";
    }
  }
  ASSERT_GT(fs::file_size(file_), 1 << 20);
  EXPECT_TRUE(Journal(file_).add(entry("c/d", 2'500'000'000)));
  const Journal journal(file_);
  EXPECT_LT(fs::file_size(file_), 10'000);
  ASSERT_EQ(journal.entries().size(), 3);
  EXPECT_EQ(journal.entries()[0].time_s, 1'800'000'000);
  EXPECT_EQ(journal.entries()[2].repository, "c/d");
}

TEST_F(JournalFile, SaysWhenItCannotBeWritten) {
  fs::create_directories(folder_);
  std::ofstream(folder_ / "state") << "a file where a folder should be";
  EXPECT_FALSE(Journal(file_).add(entry("a/b")));
}

}  // namespace
}  // namespace graft::trust
