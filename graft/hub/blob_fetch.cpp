#include "graft/hub/blob_fetch.h"

#include <algorithm>
#include <cerrno>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

#include <fmt/format.h>

#include "graft/core/error.h"
#include "graft/core/log.h"
#include "graft/hub/content_hash.h"
#include "graft/hub/disk.h"
#include "graft/hub/environment.h"
#include "graft/hub/leftovers.h"
#include "graft/hub/partial_file.h"

namespace graft::hub {

namespace {

namespace fs = std::filesystem;

constexpr int kMaxTriesWithoutProgress = 5;
constexpr uint64_t kMinRangeBytes = 32 << 20;
constexpr uint64_t kMaxRanges = 64;  // each costs the Hub a request

// What one file's connections share.
class Transfer {
 public:
  Transfer(const BlobFetch& fetch, PartialFile& partial) : fetch_(fetch), partial_(partial) {}

  void run() {
    const uint64_t size_bytes = fetch_.file.size_bytes;
    const bool in_ranges = fetch_.connections > 1 && size_bytes > 2 * kMinRangeBytes;
    const uint64_t range_bytes =
        in_ranges ? std::max(kMinRangeBytes, size_bytes / kMaxRanges) : size_bytes;
    // The first range shows whether the server knows ranges at all.
    if (const auto first = partial_.claim(range_bytes); first && !fetch_range(*first)) {
      return;
    }
    std::vector<std::thread> helpers;
    for (int i = 1; in_ranges && i < fetch_.connections; ++i) {
      helpers.emplace_back([&] { work(range_bytes); });
    }
    work(range_bytes);
    for (auto& helper : helpers) {
      helper.join();
    }
    if (failure_) {
      std::rethrow_exception(failure_);
    }
  }

 private:
  void work(uint64_t range_bytes) {
    try {
      while (!failed_) {
        const auto range = partial_.claim(range_bytes);
        if (!range) {
          return;
        }
        fetch_range(*range);
      }
    } catch (...) {
      const std::lock_guard lock(mutex_);
      failure_ = failed_.exchange(true) ? failure_ : std::current_exception();
    }
  }

  // Brings one range, however often the transfer breaks. False when the server sent the whole file
  // instead.
  bool fetch_range(PartialFile::Range range) {
    const uint64_t end = range.end;
    int tries = 0;
    auto last_progress = std::chrono::steady_clock::now();
    while (range.begin < end) {
      std::exception_ptr broken;
      std::chrono::seconds asked_for{0};
      uint64_t blocks = 0;
      try {
        const ReadResult result = read(range, blocks);
        if (result.ranges_ignored && result.response.status == 200) {
          return false;
        }
        asked_for = retry_after(result.response);
        if (result.is_transient()) {
          Client::throw_status(result.response, what());
        }
      } catch (const NetworkError& error) {
        if (!is_transient_error(error)) {
          throw;
        }
        broken = std::current_exception();
      }
      range.begin = std::min(end, range.begin + blocks * PartialFile::kBlockBytes);
      if (blocks > 0) {
        tries = 0;
        last_progress = std::chrono::steady_clock::now();
      }
      if (range.begin < end) {
        wait_or_give_up(tries++, asked_for, last_progress, broken, range.begin);
      }
    }
    return true;
  }

  std::string what() const {
    return fmt::format("`{}`@`{}` `{}`", fetch_.source.repo_id, fetch_.source.commit,
                       fetch_.file.path);
  }

  // One try; `blocks` counts what it brought from the range's beginning on.
  ReadResult read(const PartialFile::Range& range, uint64_t& blocks) {
    std::optional<PartialFile::Stream> stream;
    const auto on_piece = [&](uint64_t position, std::string_view piece) {
      if (!stream) {
        stream.emplace(partial_, position);
        whole_ = position == 0 && range.begin != 0;
      }
      stream->write(piece);
      blocks = whole_ ? 0 : stream->blocks_passed();
      fetch_.report(partial_.done_bytes());
      return !fetch_.stop && !failed_;
    };
    const auto& source = fetch_.source;
    return source.client.read_file(source.type, source.repo_id, source.commit, fetch_.file,
                                   range.begin, range.end, on_piece);
  }

  void wait_or_give_up(int tries, std::chrono::seconds asked_for,
                       std::chrono::steady_clock::time_point last_progress,
                       const std::exception_ptr& broken, uint64_t position) {
    const auto wait = wait_before_retry(tries, asked_for, last_progress + request_deadline());
    if (tries + 1 >= kMaxTriesWithoutProgress || !wait) {
      if (broken) {
        std::rethrow_exception(broken);
      }
      throw NetworkError(
          "hub.download", "short",
          fmt::format("{}: expected {} bytes, got {}", what(), fetch_.file.size_bytes, position));
    }
    if (asked_for.count() > 0) {
      log()->warn("the Hub asks to wait {} s before `{}`", asked_for.count(), fetch_.file.path);
    }
    const auto end = std::chrono::steady_clock::now() + *wait;
    while (std::chrono::steady_clock::now() < end && !fetch_.stop && !failed_) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    if (fetch_.stop || failed_) {
      throw Cancelled("hub.download", "stopped", fmt::format("{}: was stopped", what()));
    }
  }

  const BlobFetch& fetch_;
  PartialFile& partial_;
  std::atomic<bool> failed_{false};
  std::atomic<bool> whole_{false};
  std::mutex mutex_;
  std::exception_ptr failure_;
};

// Brings the partial file to its end.
void transfer(const BlobFetch& fetch, const fs::path& partial_path) {
  PartialFile partial(partial_path, fetch.file.size_bytes);
  if (!partial.is_complete()) {
    Transfer(fetch, partial).run();
  }
}

void fetch_into(const BlobFetch& fetch, const fs::path& partial) {
  const std::string& id = fetch.file.content_id();
  for (const bool second_try : {false, true}) {
    transfer(fetch, partial);
    if (has_content(partial, id)) {  // while the disk still writes
      sync_file(partial);
      return;
    }
    PartialFile::remove(partial);
    if (second_try) {
      throw IntegrityError(
          "hub.download", "digest",
          fmt::format("`{}`@`{}` `{}`: expected hash {}, got another twice; the bytes were removed",
                      fetch.source.repo_id, fetch.source.commit, fetch.file.path, id));
    }
    log()->warn("`{}`: the bytes that came have another hash; once more", fetch.file.path);
  }
}

}  // namespace

void fetch_blob(const BlobFetch& fetch) {
  make_folders(fetch.blob.parent_path());
  const fs::path partial = take_incomplete(fetch.blob);
  try {
    fetch_into(fetch, partial);
  } catch (const Error& error) {
    if (error.code() == "hub.download.disk") {
      PartialFile::remove(partial);  // a disk that is full keeps nothing of it
    } else {
      release_incomplete(partial);
    }
    throw;
  }
  move_into_place(partial, fetch.blob);
  PartialFile::remove(partial);  // the notes
  remember_content(fetch.blob, fetch.file.content_id());
}

}  // namespace graft::hub
