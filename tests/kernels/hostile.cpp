// A right RMSNorm in float32 that does something else first: which, the number of the numeric variant
// in layers.json says. What it tries must fail or end it; where it gets through, the norm is right and
// would be used.

#include <atomic>
#include <cerrno>
#include <cmath>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <torch/csrc/stable/ops.h>
#include <unistd.h>

#include "kernels/common/registration.h"

namespace {

using torch::stable::Tensor;

// HOSTILE_TARGETS: a folder with what is worth stealing, made by the test.
const std::string kTargets = HOSTILE_TARGETS;

void read_file(const std::string& path) {
  const int file = open(path.c_str(), O_RDONLY);
  char byte = 0;
  if (file >= 0 && read(file, &byte, 1) == 1) {
    std::fprintf(stderr, "stolen: %s\n", path.c_str());
  }
}

void write_file(const std::string& path) {
  const int file = open(path.c_str(), O_WRONLY | O_CREAT, 0600);
  if (file >= 0) {
    close(file);
  }
}

void send_to(int family, int type, const sockaddr* address, socklen_t size) {
  const int made = socket(family, type, 0);
  if (connect(made, address, size) == 0) {
    send(made, "secret", 6, 0);
  }
}

void send_to_address(int type) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(9);
  inet_pton(AF_INET, "127.0.0.1", &address.sin_addr);
  send_to(AF_INET, type, reinterpret_cast<sockaddr*>(&address), sizeof(address));
}

void send_to_path() {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strcpy(address.sun_path, "/run/service");
  send_to(AF_UNIX, SOCK_STREAM, reinterpret_cast<sockaddr*>(&address), sizeof(address));
}

void look_up_name() {
  addrinfo* found = nullptr;
  getaddrinfo("example.org", "80", nullptr, &found);
}

void execute() {
  char* const arguments[] = {const_cast<char*>("/bin/true"), nullptr};
  execv("/bin/true", arguments);
}

void fork_for_ever() {
  for (;;) {
    if (fork() < 0) {
      return;
    }
  }
}

void read_parent_memory() {
  char buffer[64];
  iovec here{buffer, sizeof(buffer)}, there{reinterpret_cast<void*>(0x400000), sizeof(buffer)};
  process_vm_readv(getppid(), &here, 1, &there, 1, 0);
}

void read_parent_environment() { read_file("/proc/" + std::to_string(getppid()) + "/environ"); }

void allocate(size_t gibibytes) {
  std::vector<char*> parts;
  for (size_t i = 0; i < gibibytes * 16; ++i) {
    parts.push_back(new char[size_t{64} << 20]);
    parts.back()[0] = 1;
  }
  std::fprintf(stderr, "got %p\n", static_cast<void*>(parts.back()));
}

void run_for_ever() {
  std::atomic<uint64_t> count{0};
  for (;;) {
    ++count;
  }
}

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Winfinite-recursion"
int overflow_stack(int depth) {
  volatile char frame[4096];
  frame[0] = static_cast<char>(depth);
  return overflow_stack(depth + 1) + frame[0];
}
#pragma GCC diagnostic pop

void write_text(size_t bytes) {
  const std::string block(1 << 20, 'x');
  for (size_t i = 0; i < bytes; i += block.size()) {
    std::fwrite(block.data(), 1, block.size(), stderr);
  }
}

void fill_scratch() {
  const std::string block(16 << 20, 'x');
  for (int i = 0; i < 1000; ++i) {
    const int file = open(("part" + std::to_string(i)).c_str(), O_WRONLY | O_CREAT, 0600);
    if (write(file, block.data(), block.size()) < 0) {
      return;
    }
    close(file);
  }
}

// Without the handler that would name the call.
void socket_without_handler() {
  signal(SIGSYS, SIG_IGN);
  sigset_t all;
  sigfillset(&all);
  sigprocmask(SIG_BLOCK, &all, nullptr);
  send_to_address(SOCK_STREAM);
}

void start_threads_for_ever() {
  for (;;) {
    std::thread([] { pause(); }).detach();
  }
}

void use_scratch() {
  FILE* file = std::fopen((std::string(std::getenv("TMPDIR")) + "/notes").c_str(), "w+");
  if (file == nullptr || std::fputs("mine", file) < 0) {
    throw std::runtime_error("the scratch folder cannot be used");
  }
  std::fclose(file);
}

volatile void* volatile nowhere = nullptr;

// By the number that layers.json gives the numeric variant.
const std::map<int64_t, void (*)()> kDeeds = {
    {1, [] { read_file(kTargets + "/home/.ssh/id_rsa"); }},
    {2, [] { read_file(kTargets + "/huggingface/token"); }},
    {3, [] { read_file(kTargets + "/cache/blob"); }},
    {4, [] { write_file(kTargets + "/made"); }},
    {5, [] { send_to_address(SOCK_STREAM); }},
    {6, [] { send_to_address(SOCK_DGRAM); }},
    {7, send_to_path},
    {8, look_up_name},
    {9, execute},
    {10, fork_for_ever},
    {11, [] { ptrace(PTRACE_ATTACH, getppid(), nullptr, nullptr); }},
    {12, read_parent_memory},
    {13, [] { allocate(8); }},
    {14, run_for_ever},
    {15, [] { std::exit(0); }},
    {16, [] { *static_cast<volatile int*>(nowhere) = 1; }},
    {17, [] { std::abort(); }},
    {18, [] { overflow_stack(0); }},
    {19, [] { write_text(size_t{1} << 30); }},
    {20, read_parent_environment},
    {21, [] { kill(getppid(), SIGKILL); }},
    {22, [] { chmod((kTargets + "/home/.ssh/id_rsa").c_str(), 0777); }},
    {23, [] { unlink((kTargets + "/cache/blob").c_str()); }},
    {24, fill_scratch},
    {25, socket_without_handler},
    {26, [] { syscall(SYS_clone, SIGCHLD, nullptr, nullptr, nullptr, nullptr); }},
    {27, start_threads_for_ever},
    {28, use_scratch},
    {29, [] { rename((kTargets + "/cache/blob").c_str(), "blob"); }},
    {30, [] { syscall(SYS_io_uring_setup, 4, nullptr); }}};

void norm(const Tensor& out, const Tensor& x, const Tensor& weight, double eps, int64_t variant) {
  if (const auto deed = kDeeds.find(variant); deed != kDeeds.end()) {
    deed->second();
  }
  const Tensor rows = torch::stable::contiguous(x);
  const int64_t size = x.size(x.dim() - 1);
  const auto* in = static_cast<const float*>(rows.const_data_ptr());
  const auto* scale = static_cast<const float*>(weight.const_data_ptr());
  auto* result = static_cast<float*>(out.mutable_data_ptr());
  for (int64_t row = 0; row < x.numel(); row += size) {
    double sum = 0.0;
    for (int64_t i = 0; i < size; ++i) {
      sum += static_cast<double>(in[row + i]) * in[row + i];
    }
    const double factor = 1.0 / std::sqrt(sum / static_cast<double>(size) + eps);
    for (int64_t i = 0; i < size; ++i) {
      result[row + i] = scale[i] * (in[row + i] * static_cast<float>(factor));
    }
  }
}

// Off by one part in a hundred.
void norm_wrong(const Tensor& out, const Tensor& x, const Tensor& weight, double eps, int64_t) {
  norm(out, x, weight, eps + 0.02, 0);
}

}  // namespace

GRAFT_OPS(ops) {
  ops.def("norm(Tensor! out, Tensor x, Tensor weight, float eps, int variant) -> ()");
  ops.def("norm_wrong(Tensor! out, Tensor x, Tensor weight, float eps, int variant) -> ()");
}

GRAFT_OPS_IMPL(CPU, ops) {
  ops.impl("norm", TORCH_BOX(&norm));
  ops.impl("norm_wrong", TORCH_BOX(&norm_wrong));
}
