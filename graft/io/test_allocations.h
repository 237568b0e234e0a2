// Counts what the program that includes this takes from the heap, for tests which claim that a
// hostile file makes its reader allocate little. It replaces malloc and its kin, from which operator
// new and libtorch's CPU allocator take too; under a sanitizer it asks the sanitizer instead.
#pragma once

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
// GCC's sanitizers have the hook and ship no header that declares it.
extern "C" int __sanitizer_install_malloc_and_free_hooks(void (*on_malloc)(const volatile void*,
                                                                           size_t),
                                                         void (*on_free)(const volatile void*));
#endif

namespace graft::io::test_support {

inline std::atomic<uint64_t>& allocated_counter() {
  static constinit std::atomic<uint64_t> counter{0};
  return counter;
}

// Bytes that were asked for since the program began; freeing takes nothing away.
inline uint64_t allocated_bytes() {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  static const int installed = __sanitizer_install_malloc_and_free_hooks(
      [](const volatile void*, size_t size) { allocated_counter() += size; },
      [](const volatile void*) {});
  (void)installed;
#endif
  return allocated_counter();
}

// Bytes that `action` asked for, from all threads together. `action` must not throw.
template <typename Action>
uint64_t bytes_allocated_by(Action&& action) {
  const uint64_t before = allocated_bytes();
  action();
  return allocated_bytes() - before;
}

}  // namespace graft::io::test_support

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
// glibc's own entry points: the replaced names would call themselves. Weak, so that several source
// files of a program may include this; the program's weak symbol still stands before the library's.
extern "C" {
void* __libc_malloc(size_t size);
void* __libc_calloc(size_t count, size_t size);
void* __libc_realloc(void* old, size_t size);
void* __libc_memalign(size_t alignment, size_t size);

[[gnu::weak]] void* malloc(size_t size) noexcept {
  graft::io::test_support::allocated_counter() += size;
  return __libc_malloc(size);
}
[[gnu::weak]] void* calloc(size_t count, size_t size) noexcept {
  graft::io::test_support::allocated_counter() += count * size;
  return __libc_calloc(count, size);
}
[[gnu::weak]] void* realloc(void* old, size_t size) noexcept {
  graft::io::test_support::allocated_counter() += size;
  return __libc_realloc(old, size);
}
[[gnu::weak]] void* memalign(size_t alignment, size_t size) noexcept {
  graft::io::test_support::allocated_counter() += size;
  return __libc_memalign(alignment, size);
}
[[gnu::weak]] void* aligned_alloc(size_t alignment, size_t size) noexcept {
  return memalign(alignment, size);
}
[[gnu::weak]] int posix_memalign(void** out, size_t alignment, size_t size) noexcept {
  *out = memalign(alignment, size);
  return *out != nullptr ? 0 : ENOMEM;
}
}
#endif
