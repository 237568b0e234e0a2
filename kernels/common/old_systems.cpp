// Keeps packages loadable on systems older than the one that builds them: Hub kernels may ask for
// glibc 2.28 and GLIBCXX 3.4.24 at most. The export map keeps all of this inside the package.

#include <sstream>

// libstdc++ exports some members of these only since 3.4.26 and 3.4.29; Torch's headers use them.
template class std::basic_stringbuf<char>;
template class std::basic_ostringstream<char>;
template class std::basic_stringstream<char>;

extern "C" {
// Headers of GCC 11 and later read this flag of glibc 2.32 to skip atomics in a process with one
// thread. Always «no» is correct everywhere.
extern char __libc_single_threaded;
char __libc_single_threaded = 0;  // NOLINT(bugprone-reserved-identifier)
}
