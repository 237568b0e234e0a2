#include "graft/kernel/sealed_library.h"

#include <cerrno>
#include <cstring>

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

#include "graft/core/error.h"

namespace graft::kernel {

namespace {

constexpr int kSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_SEAL;
constexpr unsigned kMayBeMappedAsCode = 0x10U;  // MFD_EXEC, which Linux 6.3 and later want to hear

// Closes itself.
struct Opened {
  explicit Opened(int descriptor) : value(descriptor) {}
  ~Opened() {
    if (value >= 0) {
      close(value);
    }
  }
  Opened(const Opened&) = delete;
  Opened& operator=(const Opened&) = delete;
  int release() {
    const int released = value;
    value = -1;
    return released;
  }
  int value;
};

int make_memory_file(const std::string& name) {
  const unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
  const int descriptor = memfd_create(name.c_str(), flags | kMayBeMappedAsCode);
  return descriptor < 0 && errno == EINVAL ? memfd_create(name.c_str(), flags) : descriptor;
}

[[noreturn]] void fail(const std::filesystem::path& file) {
  throw LoadError("kernel.loader", "seal",
                  fmt::format("`{}`: expected a sealed copy in memory, got: {}", file.string(),
                              std::strerror(errno)));
}

bool copy(int from, int to, off_t size) {
  for (off_t done = 0; done < size;) {
    const ssize_t sent = sendfile(to, from, &done, static_cast<size_t>(size - done));
    if (sent < 0 && errno == EINTR) {
      continue;
    }
    if (sent <= 0) {
      errno = sent == 0 ? EIO : errno;  // the file became shorter
      return false;
    }
  }
  return true;
}

}  // namespace

SealedLibrary::SealedLibrary(const std::filesystem::path& file) : file_(file), descriptor_(-1) {
  // A pipe in the place of a library must not make us wait.
  const Opened source(open(file.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  struct stat status {};
  if (source.value < 0 || fstat(source.value, &status) != 0) {
    throw NotFound(
        "kernel.loader", "library",
        fmt::format("`{}`: expected a library, got: {}", file.string(), std::strerror(errno)));
  }
  if (!S_ISREG(status.st_mode)) {
    throw NotFound(
        "kernel.loader", "library",
        fmt::format("`{}`: expected a library, got what is no regular file", file.string()));
  }
  Opened copied(make_memory_file(file.filename().string().substr(0, 200)));
  if (copied.value < 0 || !copy(source.value, copied.value, status.st_size) ||
      fcntl(copied.value, F_ADD_SEALS, kSeals) != 0) {
    fail(file);
  }
  descriptor_ = copied.release();
}

SealedLibrary::SealedLibrary(int descriptor, std::filesystem::path file)
    : file_(std::move(file)), descriptor_(-1) {
  if ((fcntl(descriptor, F_GET_SEALS) & kSeals) != kSeals) {
    errno = EBADF;
    fail(file_);
  }
  descriptor_ = descriptor;
}

SealedLibrary::~SealedLibrary() {
  if (descriptor_ >= 0) {
    close(descriptor_);
  }
}

std::filesystem::path SealedLibrary::path() const {
  return fmt::format("/proc/self/fd/{}", descriptor_);
}

}  // namespace graft::kernel
