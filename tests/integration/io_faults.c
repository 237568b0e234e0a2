// Preloaded into a program, spoils what it does to the disk below one folder. Variables:
//   GRAFT_FAULT_UNDER   the folder; nothing else is touched
//   GRAFT_FAULT_OP      open (for writing), write, fsync, rename, symlink, mkdir, unlink, or any
//   GRAFT_FAULT_ERRNO   the number that such a call fails with
//   GRAFT_FAULT_SKIP    how many such calls pass first
//   GRAFT_FAULT_KILL    the how-manieth such call (from 1) kills the process instead; half of a write is done
//   GRAFT_FAULT_COUNT   file that gets the number of such calls at the end
//   GRAFT_FAULT_HIDE    part of a path: opening such a file for reading fails with EACCES
//   GRAFT_FAULT_LOCKS   1: flock() says yes and does nothing
//   GRAFT_FAULT_CASE    1: access() takes a name in capitals for the same name in small letters
#define _GNU_SOURCE
#include <ctype.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static atomic_long calls;

static long number(const char* name) {
  const char* text = getenv(name);
  return text ? atol(text) : 0;
}

static int is_below(const char* path) {
  const char* folder = getenv("GRAFT_FAULT_UNDER");
  return folder && path && strncmp(path, folder, strlen(folder)) == 0;
}

static int is_below_fd(int descriptor) {
  char link[64], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  const ssize_t size = readlink(link, path, sizeof path - 1);
  if (size < 0) return 0;
  path[size] = 0;
  return is_below(path);
}

// 0: goes on. Otherwise errno is set and the call fails. `*last` is 1 when the process dies now.
static int fails(const char* op, int below, int* last) {
  *last = 0;
  const char* wanted = getenv("GRAFT_FAULT_OP");
  if (!below || !wanted || (strcmp(wanted, "any") != 0 && strcmp(wanted, op) != 0)) return 0;
  const long call = ++calls;
  const long kill_at = number("GRAFT_FAULT_KILL");
  if (kill_at) {
    *last = call == kill_at;
    if (*last && strcmp(op, "write") != 0) kill(getpid(), SIGKILL);
    return 0;
  }
  const long code = number("GRAFT_FAULT_ERRNO");
  if (!code || call <= number("GRAFT_FAULT_SKIP")) return 0;
  errno = (int)code;
  return 1;
}

__attribute__((destructor)) static void report(void) {
  const char* file = getenv("GRAFT_FAULT_COUNT");
  if (!file) return;
  FILE* out = REAL(fopen)(file, "w");
  if (out) {
    fprintf(out, "%ld", (long)calls);
    fclose(out);
  }
}

static int hides(const char* path) {
  const char* part = getenv("GRAFT_FAULT_HIDE");
  if (!part || !path || !strstr(path, part)) return 0;
  errno = EACCES;
  return 1;
}

static int open_any(const char* name, const char* path, int flags, mode_t mode) {
  int last;
  const int writes = (flags & (O_WRONLY | O_RDWR | O_CREAT)) != 0;
  if (writes ? fails("open", is_below(path), &last) : hides(path)) return -1;
  return ((int (*)(const char*, int, ...))dlsym(RTLD_NEXT, name))(path, flags, mode);
}

static mode_t mode_of(int flags, va_list rest) { return flags & O_CREAT ? va_arg(rest, mode_t) : 0; }

int open(const char* path, int flags, ...) {
  va_list rest;
  va_start(rest, flags);
  const mode_t mode = mode_of(flags, rest);
  va_end(rest);
  return open_any("open", path, flags, mode);
}

int open64(const char* path, int flags, ...) {
  va_list rest;
  va_start(rest, flags);
  const mode_t mode = mode_of(flags, rest);
  va_end(rest);
  return open_any("open64", path, flags, mode);
}

FILE* fopen64(const char* path, const char* mode) {
  int last;
  if (mode[0] == 'r' && !strchr(mode, '+') ? hides(path) : fails("open", is_below(path), &last)) return NULL;
  return REAL(fopen64)(path, mode);
}

FILE* fopen(const char* path, const char* mode) { return fopen64(path, mode); }

static size_t before_write(int descriptor, size_t size, int* failed, int* last) {
  *failed = fails("write", is_below_fd(descriptor), last);
  return *last ? size / 2 : size;
}

static void after_write(int last) {
  if (last) kill(getpid(), SIGKILL);
}

ssize_t write(int descriptor, const void* data, size_t size) {
  int failed, last;
  size = before_write(descriptor, size, &failed, &last);
  if (failed) return -1;
  const ssize_t done = REAL(write)(descriptor, data, size);
  after_write(last);
  return done;
}

ssize_t pwrite64(int descriptor, const void* data, size_t size, off64_t at) {
  int failed, last;
  size = before_write(descriptor, size, &failed, &last);
  if (failed) return -1;
  const ssize_t done = REAL(pwrite64)(descriptor, data, size, at);
  after_write(last);
  return done;
}

ssize_t pwrite(int descriptor, const void* data, size_t size, off_t at) { return pwrite64(descriptor, data, size, at); }

ssize_t sendfile64(int to, int from, off64_t* at, size_t size) {
  int failed, last;
  size = before_write(to, size, &failed, &last);
  if (failed) return -1;
  const ssize_t done = REAL(sendfile64)(to, from, at, size);
  after_write(last);
  return done;
}

ssize_t sendfile(int to, int from, off_t* at, size_t size) { return sendfile64(to, from, at, size); }

int ftruncate64(int descriptor, off64_t size) {
  int last;
  if (fails("write", is_below_fd(descriptor), &last)) return -1;
  if (last) kill(getpid(), SIGKILL);
  return REAL(ftruncate64)(descriptor, size);
}

int ftruncate(int descriptor, off_t size) { return ftruncate64(descriptor, size); }

int fsync(int descriptor) {
  int last;
  return fails("fsync", is_below_fd(descriptor), &last) ? -1 : REAL(fsync)(descriptor);
}

int rename(const char* from, const char* to) {
  int last;
  return fails("rename", is_below(to), &last) ? -1 : REAL(rename)(from, to);
}

int symlink(const char* target, const char* path) {
  int last;
  return fails("symlink", is_below(path), &last) ? -1 : REAL(symlink)(target, path);
}

int mkdir(const char* path, mode_t mode) {
  int last;
  return fails("mkdir", is_below(path), &last) ? -1 : REAL(mkdir)(path, mode);
}

int unlink(const char* path) {
  int last;
  return fails("unlink", is_below(path), &last) ? -1 : REAL(unlink)(path);
}

int access(const char* path, int mode) {
  char small[4096];
  if (!number("GRAFT_FAULT_CASE") || strlen(path) >= sizeof small) return REAL(access)(path, mode);
  strcpy(small, path);
  for (char* c = strrchr(small, '/'); c && *c; ++c) *c = (char)tolower((unsigned char)*c);
  return REAL(access)(small, mode);
}

int flock(int descriptor, int operation) {
  return number("GRAFT_FAULT_LOCKS") ? 0 : REAL(flock)(descriptor, operation);
}
