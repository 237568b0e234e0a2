#include "graft/hub/answers.h"

#include <fstream>
#include <iterator>

#include <fmt/format.h>

#include "graft/core/error.h"
#include "graft/core/log.h"
#include "graft/hub/content_hash.h"
#include "graft/hub/disk.h"
#include "graft/hub/environment.h"

namespace graft::hub {

namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxAnswerBytes = 4 << 20;

fs::path file_of(std::string_view key) { return private_folder() / "answers" / sha256_of(key); }

int64_t now_s() {
  return std::chrono::duration_cast<std::chrono::seconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

}  // namespace

// A file holds the second at which it was written, the key, and the answer: one line each but the
// last.
std::optional<std::string> recall_answer(std::string_view key, std::chrono::seconds stay) {
  std::ifstream in(file_of(key), std::ios::binary);
  int64_t written_s = 0;
  std::string kept_key;
  if (!(in >> written_s) || in.get() != '\n' || !std::getline(in, kept_key) || kept_key != key) {
    return std::nullopt;
  }
  const int64_t age_s = now_s() - written_s;
  if (age_s < 0 || age_s > stay.count()) {
    return std::nullopt;
  }
  return std::string(std::istreambuf_iterator<char>(in), {});
}

void remember_answer(std::string_view key, std::string_view answer) {
  if (answer.size() > kMaxAnswerBytes || key.find('\n') != std::string_view::npos) {
    return;
  }
  try {
    write_atomically(file_of(key), fmt::format("{}\n{}\n{}", now_s(), key, answer));
  } catch (const Error& error) {
    log()->debug("not remembered: {}", error.what());
  }
}

}  // namespace graft::hub
