// Benchmarks of packages: one protocol and one row format, a JSON line per row on stdout.
//
// GPU time: the op is captured into a graph; each sample overwrites L2 with 512 MiB, then times one
// replay between two events. The ceiling is a copy kernel over the same bytes under the same
// protocol, and the floor an empty kernel. Times include the floor (3 µs on an H200), as those of
// the peers in the design's table do. Chained time: a graph of 100 calls one after another, per
// call; what a small op costs inside a graph. Host time: wall time of a call, without waiting for
// the device. CPU time: wall time per call; the ceiling is ATen's copy of the same bytes.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "kernels/common/test_support.h"

namespace graft_kernels::testing {

#ifdef GRAFT_WITH_CUDA
void launch_copy(void* to, const void* from, int64_t bytes, cudaStream_t stream);
void launch_empty(cudaStream_t stream);
#endif

struct Samples {
  double median_us = 0;
  double p10_us = 0;
  double p90_us = 0;
  int runs = 0;
};

inline Samples summarize(std::vector<double> times_us) {
  std::sort(times_us.begin(), times_us.end());
  const auto at_share = [&](double share) {
    return times_us[static_cast<size_t>(share * (times_us.size() - 1))];
  };
  return {at_share(0.5), at_share(0.1), at_share(0.9), static_cast<int>(times_us.size())};
}

using Work = std::function<void()>;

struct Peer {
  std::string name;
  Work work;
};

struct Row {
  std::string op;
  std::string variant;
  std::string dtype;
  std::string shape;
  int64_t bytes = 0;  // what the formula must read and write
  double flops = 0;
  Work work;
  std::vector<Peer> peers;
  // Largest absolute difference from the reference, computed once before timing, and what is
  // accepted.
  std::function<double()> difference;
  double tolerance = 0;
};

class Harness {
 public:
  explicit Harness(at::Device device) : device_(device), machine_(machine_name(device)) {
#ifdef GRAFT_WITH_CUDA
    if (device.is_cuda()) {
      stream_ = std::make_unique<CurrentStream>();
      junk_ = at::empty({int64_t{512} << 20}, at::TensorOptions(at::kCUDA).dtype(at::kByte));
      floor_us_ = gpu_time([&] { launch_empty(stream_->get()); }).median_us;
    }
#endif
  }

  at::Device device() const { return device_; }

  // Checks, times and prints one row. Returns false when the result is wrong; nothing is timed
  // then.
  bool run(const Row& row) {
    const double difference = row.difference ? row.difference() : 0;
    if (!(difference <= row.tolerance)) {
      std::fprintf(stderr,
                   "bench: %s %s %s: wrong result: expected a difference of at most %g, got %g\n",
                   row.op.c_str(), row.dtype.c_str(), row.shape.c_str(), row.tolerance, difference);
      failed_ = true;
      return false;
    }
    const Samples ours = time(row.work);
    const double ceiling_us = ceiling(row.bytes);
    nlohmann::ordered_json line = {{"op", row.op},
                                   {"variant", row.variant},
                                   {"device", device_.is_cuda() ? "cuda" : "cpu"},
                                   {"dtype", row.dtype},
                                   {"shape", row.shape},
                                   {"median_us", ours.median_us},
                                   {"p10_us", ours.p10_us},
                                   {"p90_us", ours.p90_us},
                                   {"runs", ours.runs},
                                   {"bytes", row.bytes},
                                   {"GBps", gigabytes_per_second(row.bytes, ours.median_us)}};
    if (row.flops > 0) {
      line["flops"] = row.flops;
      line["TFLOPps"] = row.flops / ours.median_us * 1e-6;
    }
    line["ceiling_us"] = ceiling_us;
    line["ceiling_GBps"] = gigabytes_per_second(row.bytes, ceiling_us);
    line["share_of_ceiling"] = ceiling_us / ours.median_us;
    add_small_costs(line, row, ours.median_us);
    for (const Peer& peer : row.peers) {
      const Samples theirs = time(peer.work);
      line["peers"].push_back({{"name", peer.name},
                               {"median_us", theirs.median_us},
                               {"ratio", theirs.median_us / ours.median_us}});
    }
    const char* commit = std::getenv("GRAFT_BENCH_COMMIT");
    line["cold_L2"] = device_.is_cuda();
    line["commit"] = commit == nullptr ? "unknown" : commit;
    line["machine"] = machine_;
    std::printf("%s\n", line.dump().c_str());
    std::fflush(stdout);
    return true;
  }

  int exit_code() const { return failed_ ? 1 : 0; }

 private:
  static double gigabytes_per_second(int64_t bytes, double us) {
    return static_cast<double>(bytes) / us * 1e-3;
  }

  static std::string machine_name(at::Device device) {
#ifdef GRAFT_WITH_CUDA
    if (device.is_cuda()) {
      cudaDeviceProp properties;
      check_status(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
      int clock_khz = 0;
      cudaDeviceGetAttribute(&clock_khz, cudaDevAttrClockRate, 0);
      return std::string(properties.name) + ", " + std::to_string(clock_khz / 1000) + " MHz";
    }
#endif
    std::ifstream info("/proc/cpuinfo");
    for (std::string line; std::getline(info, line);) {
      if (line.rfind("model name", 0) == 0) {
        return line.substr(line.find(':') + 2) + ", " + std::to_string(at::get_num_threads()) +
               " threads";
      }
    }
    return "unknown processor";
  }

  Samples time(const Work& work) {
#ifdef GRAFT_WITH_CUDA
    if (device_.is_cuda()) {
      return gpu_time(work);
    }
#endif
    return cpu_time(work);
  }

  Samples cpu_time(const Work& work) const {
    using Clock = std::chrono::steady_clock;
    std::vector<double> times_us;
    work();
    const Clock::time_point begin = Clock::now();
    // Small work is timed in batches: one clock reading costs tens of nanoseconds.
    work();
    const double once_us = std::chrono::duration<double, std::micro>(Clock::now() - begin).count();
    const int batch = once_us > 50 ? 1 : static_cast<int>(50 / std::max(once_us, 0.1)) + 1;
    const double budget_us = is_small_run() ? 2e4 : 3e5;
    while (times_us.size() < 11 ||
           (std::chrono::duration<double, std::micro>(Clock::now() - begin).count() < budget_us &&
            times_us.size() < 1000)) {
      const Clock::time_point start = Clock::now();
      for (int call = 0; call < batch; ++call) {
        work();
      }
      times_us.push_back(std::chrono::duration<double, std::micro>(Clock::now() - start).count() /
                         batch);
    }
    return summarize(std::move(times_us));
  }

  // Time of a copy that moves `bytes` in all.
  double ceiling(int64_t bytes) {
    const auto known = ceilings_.find(bytes);
    if (known != ceilings_.end()) {
      return known->second;
    }
    const int64_t half = std::max<int64_t>(bytes / 32 * 16, 16);
    const at::Tensor from = at::ones({half}, at::TensorOptions(device_).dtype(at::kByte));
    at::Tensor to = at::empty_like(from);
    Work copy = [&] { to.copy_(from); };
#ifdef GRAFT_WITH_CUDA
    if (device_.is_cuda()) {
      copy = [&] { launch_copy(to.data_ptr(), from.data_ptr(), half, stream_->get()); };
    }
#endif
    return ceilings_[bytes] = time(copy).median_us;
  }

  // What matters for small work: time inside a chain of calls, and the host's cost of a call.
  void add_small_costs(nlohmann::ordered_json& line, const Row& row, double once_us) {
#ifdef GRAFT_WITH_CUDA
    if (device_.is_cuda()) {
      line["floor_us"] = floor_us_;
      // Work of milliseconds has no small costs; a few calls say so.
      const int calls = once_us < 1e3 ? 100 : 2;
      const CapturedGraph chain(*stream_, [&] {
        for (int call = 0; call < calls; ++call) {
          row.work();
        }
      });
      line["chained_us"] = replay_time(chain, false).median_us / calls;
      line["host_us"] = host_time(row.work, calls);
      line["host_floor_us"] = host_time([&] { launch_empty(stream_->get()); }, calls);
    }
#endif
    (void)line;
    (void)row;
    (void)once_us;
  }

#ifdef GRAFT_WITH_CUDA
  // What a call costs the host while the device is behind: the median of rounds, for launches stall now and then.
  double host_time(const Work& work, int calls) const {
    std::vector<double> times_us;
    for (int round = 0; round < (calls > 2 && !is_small_run() ? 11 : 1); ++round) {
      const auto start = std::chrono::steady_clock::now();
      for (int call = 0; call < calls; ++call) {
        work();
      }
      const std::chrono::duration<double, std::micro> elapsed =
          std::chrono::steady_clock::now() - start;
      times_us.push_back(elapsed.count() / calls);
      stream_->synchronize();
    }
    return summarize(std::move(times_us)).median_us;
  }

  Samples gpu_time(const Work& work) {
    for (int warm_up = 0; warm_up < 3; ++warm_up) {
      work();
    }
    stream_->synchronize();
    const CapturedGraph graph(*stream_, work);
    return replay_time(graph, true);
  }

  Samples replay_time(const CapturedGraph& graph, bool cold) {
    cudaEvent_t begin;
    cudaEvent_t end;
    check_status(cudaEventCreate(&begin), "cudaEventCreate");
    check_status(cudaEventCreate(&end), "cudaEventCreate");
    graph.launch();
    std::vector<double> times_us;
    for (int sample = 0; sample < (is_small_run() ? 5 : 51); ++sample) {
      if (cold) {
        junk_.zero_();
      }
      check_status(cudaEventRecord(begin, stream_->get()), "cudaEventRecord");
      graph.launch();
      check_status(cudaEventRecord(end, stream_->get()), "cudaEventRecord");
      stream_->synchronize();
      float elapsed_ms = 0;
      check_status(cudaEventElapsedTime(&elapsed_ms, begin, end), "cudaEventElapsedTime");
      times_us.push_back(elapsed_ms * 1e3);
    }
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
    return summarize(std::move(times_us));
  }

  std::unique_ptr<CurrentStream> stream_;
  at::Tensor junk_;
  double floor_us_ = 0;
#endif

  at::Device device_;
  std::string machine_;
  std::map<int64_t, double> ceilings_;
  bool failed_ = false;
};

// Runs `body` with a harness for each device that this machine has; the program's exit code.
template <typename Body>
int run_benchmarks(const Body& body) {
  const char* only = std::getenv("GRAFT_BENCH_DEVICE");  // cpu or cuda
  int code = 0;
  if (only == nullptr || std::string(only) == "cpu") {
    Harness harness{at::Device(at::kCPU)};
    body(harness);
    code |= harness.exit_code();
  }
  if (only == nullptr || std::string(only) == "cuda") {
    if (!why_no_cuda().empty()) {
      std::fprintf(stderr, "bench: cuda: skipped: %s\n", why_no_cuda().c_str());
      return code;
    }
    Harness harness{at::Device(at::kCUDA, 0)};
    body(harness);
    code |= harness.exit_code();
  }
  return code;
}

}  // namespace graft_kernels::testing
