// What the command line asked for. Filled by cmd_<name>.cpp without libtorch, read by
// run_<name>.cpp.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace graft::cli {

// Options that every command has.
struct CommonOptions {
  bool json = false;
  bool quiet = false;
  int verbosity = 0;
};

// Which model, on which device, with which kernels.
struct ModelOptions {
  std::string model;      // folder, .gguf file or Hub id; empty: the demo model
  std::string gguf_file;  // file inside a folder
  std::string revision;
  std::string device = "cpu";    // models/device_map.h
  std::string dtype = "auto";    // auto, float32, bfloat16, float16
  std::string weights = "auto";  // auto, packed, unpacked
  std::string attn_implementation = "sdpa";
  bool use_kernels = true;
  std::string kernel_config;  // JSON text or a file with it
};

struct GenerateOptions {
  CommonOptions common;
  ModelOptions model;
  std::optional<std::string> prompt;
  std::optional<std::string> prompt_file;  // `-`: stdin
  std::optional<std::string> chat;
  std::optional<std::string> system;
  std::optional<std::string> prompt_ids;  // comma-separated
  int64_t max_new_tokens = 128;
  std::optional<double> temperature;
  std::optional<int64_t> top_k;
  std::optional<double> top_p;
  std::optional<double> min_p;
  std::optional<double> repetition_penalty;
  std::optional<int64_t> num_beams;
  std::vector<std::string> stop;
  uint64_t seed = 0;
  bool ignore_eos = false;
  std::string cache = "dynamic";
  bool cuda_graph = true;  // with a static cache on CUDA
  bool stream = false;
};

struct LogitsOptions {
  CommonOptions common;
  ModelOptions model;
  std::string ids;
  std::string out;
};

struct ExplainOptions {
  CommonOptions common;
  ModelOptions model;
  std::string mode = "inference";
};

struct PlanOptions {
  CommonOptions common;
  ModelOptions model;
  std::string mode = "inference";
  bool trust_remote_code = false;
};

// What the commands below `kernels` that deal with packages share.
struct KernelsOptions {
  CommonOptions common;
  std::vector<std::string> kernels;  // `org/repo[@ref]` or the absolute path of a folder
  std::string lock;                  // a kernels.lock; of `lock`: the one to write
  std::string project;               // folder with pyproject.toml
  std::string other_lock;            // of `diff`
  std::string device = "cpu";
  bool trust_remote_code = false;
  bool allow_rollback = false;
  bool all = false;  // all versions
  bool dry_run = false;
};

struct AotOptions {
  CommonOptions common;
  std::string layer;  // `org/repo[@ref]:Layer` or `/folder:Layer`
  std::string out;
  std::string contract;  // empty: the layer's name
  std::string device = "cpu";
  std::vector<std::string> dtypes = {"float32"};
  std::vector<int64_t> columns;
  std::vector<double> eps = {1e-5};
  std::string variant = "cast_before_weight";
  std::string python;  // empty: GRAFT_PYTHON, else python3
  bool trust_remote_code = false;
  bool dry_run = false;
};

struct DoctorOptions {
  CommonOptions common;
};

struct DownloadOptions {
  CommonOptions common;
  std::string repo_id;
  std::string revision = "main";
  std::vector<std::string> include;
  bool kernel = false;
  bool dry_run = false;
};

struct HubServeOptions {
  CommonOptions common;
  std::string folder;
  std::string host = "127.0.0.1";
  int port = 0;
  std::string port_file;
  std::optional<int> large_file_port;
  std::string faults;
  uint64_t page_size = 1000;
};

struct TrustChangeOptions {
  CommonOptions common;
  std::vector<std::string> names;
  std::vector<std::string> commits;
  std::vector<std::string> signers;
  std::string note;
  bool dry_run = false;
};

struct TrustAskOptions {
  CommonOptions common;
  std::vector<std::string> publishers;  // empty: those whose kernels are in the cache
  bool dry_run = false;
};

struct TrustJournalOptions {
  CommonOptions common;
  std::string repository;
  size_t last = 0;  // 0: all
};

struct TrustCheckOptions {
  CommonOptions common;
  std::string folder;
  std::string repository;
  std::string commit;
  bool trusted_publisher = false;
};

struct TokenizeOptions {
  CommonOptions common;
  std::string model;
  std::optional<std::string> text;
  std::string file;  // `-`: stdin
  bool no_special_tokens = false;
};

struct InfoOptions {
  CommonOptions common;
  std::string model;
  std::string revision;
  bool tensors = false;
};

}  // namespace graft::cli
