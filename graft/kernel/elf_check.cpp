#include "graft/kernel/elf_check.h"

#include <algorithm>
#include <array>
#include <string_view>

#include <fmt/format.h>

#include "graft/kernel/elf_image.h"
#include "graft/kernel/elf_symbols.h"

namespace graft::kernel {

namespace {

// A build under a sanitizer makes packages that need its runtime, which is in the process already.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr std::array<std::string_view, 3> kSanitizers = {"libasan.so.", "libubsan.so.",
                                                         "libtsan.so."};
#else
constexpr std::array<std::string_view, 0> kSanitizers = {};
#endif

// Libraries that a kernel may ask for, by the beginning of their names: the system's C and C++,
// PyTorch and CUDA. Whatever else it needs would be found by luck, and run.
constexpr std::array<std::string_view, 29> kAllowedNeeded = {
    "libc.so.",           "libm.so.",         "libdl.so.",
    "librt.so.",          "libpthread.so.",   "ld-linux-x86-64.so.",
    "libstdc++.so.",      "libgcc_s.so.",     "libgomp.so.",
    "libgomp-",           "libmvec.so.",      "libtorch.so",
    "libtorch_cpu.so",    "libtorch_cuda.so", "libtorch_cuda_linalg.so",
    "libtorch_python.so", "libc10.so",        "libc10_cuda.so",
    "libcuda.so.1",       "libcudart.so.",    "libcublas.so.",
    "libcublasLt.so.",    "libcudnn.so.",     "libcufft.so.",
    "libcurand.so.",      "libcusparse.so.",  "libcusolver.so.",
    "libnvrtc.so.",       "libnccl.so."};

class HeaderCheck {
 public:
  HeaderCheck(const ElfImage& image, ElfFacts& facts) : image_(image), facts_(facts) {}

  void run() {
    for (const Elf64_Dyn& entry : image_.dynamic()) {
      read_entry(entry);
    }
    for (const Elf64_Dyn& entry : image_.dynamic()) {
      if (entry.d_tag == DT_NEEDED) {
        check_needed(std::string(image_.dynamic_text(entry.d_un.d_val)));
      } else if (entry.d_tag == DT_RPATH || entry.d_tag == DT_RUNPATH) {
        check_runpath(image_.dynamic_text(entry.d_un.d_val));
      }
    }
  }

 private:
  void read_entry(const Elf64_Dyn& entry) {
    const uint64_t value = entry.d_un.d_val;
    switch (entry.d_tag) {
      case DT_TEXTREL:
        refuse_text_relocations();
      case DT_BIND_NOW:
        facts_.binds_now = true;
        break;
      case DT_FLAGS:
        if ((value & DF_TEXTREL) != 0) {
          refuse_text_relocations();
        }
        facts_.binds_now |= (value & DF_BIND_NOW) != 0;
        break;
      case DT_FLAGS_1:
        facts_.binds_now |= (value & DF_1_NOW) != 0;
        break;
      default:
        break;
    }
  }

  [[noreturn]] void refuse_text_relocations() const {
    image_.fail("text-relocations",
                "expected code that is never written to, got relocations in it");
  }

  void check_needed(const std::string& name) {
    if (name.empty() || name.find('/') != std::string::npos) {
      image_.fail("needed",
                  fmt::format("expected names of needed libraries, got the path `{}`", name));
    }
    const auto begins_name = [&](std::string_view allowed) { return name.starts_with(allowed); };
    if (std::none_of(kAllowedNeeded.begin(), kAllowedNeeded.end(), begins_name) &&
        std::none_of(kSanitizers.begin(), kSanitizers.end(), begins_name)) {
      image_.fail("needed", fmt::format("expected to need the system, PyTorch and CUDA alone, "
                                        "got `{}`",
                                        name));
    }
    facts_.needed.push_back(name);
  }

  // An empty or relative entry means the working directory: whoever can write there would choose
  // the code that is loaded.
  void check_runpath(std::string_view paths) {
    for (size_t start = 0; start <= paths.size();) {
      const size_t end = std::min(paths.find(':', start), paths.size());
      const std::string_view entry = paths.substr(start, end - start);
      if (!entry.starts_with("/") && !entry.starts_with("$ORIGIN") &&
          !entry.starts_with("${ORIGIN}")) {
        image_.fail("runpath", fmt::format("expected absolute paths or $ORIGIN, got `{}`", entry));
      }
      facts_.runpath.emplace_back(entry);
      start = end + 1;
    }
  }

  const ElfImage& image_;
  ElfFacts& facts_;
};

}  // namespace

ElfFacts check_elf(const std::filesystem::path& library, const std::string& shown) {
  const ElfImage image(library, shown.empty() ? library.string() : shown);
  ElfFacts facts;
  HeaderCheck(image, facts).run();
  read_symbols(image, facts);
  return facts;
}

}  // namespace graft::kernel
