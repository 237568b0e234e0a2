// `graft kernels aot`: hands a Python-only kernel to python/graft_kernels/aot.py.
#include <cstring>
#include <filesystem>
#include <system_error>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/wait.h>
#include <torch/headeronly/version.h>
#include <unistd.h>

#include "graft/core/env.h"
#include "graft/core/error.h"
#include "graft/core/file_status.h"
#include "graft/core/temporary_folder.h"
#include "graft/kernel/get_kernel.h"
#include "graft/kernel/load_gate.h"
#include "graft/kernel/package_source.h"

#include "cli/child_process.h"
#include "cli/kernel_text.h"
#include "cli/output.h"
#include "cli/run.h"

extern char** environ;

namespace graft::cli {

namespace {

namespace fs = std::filesystem;
using Words = std::vector<std::string>;

kernel::Resolution find_package(const kernel::LayerReference& reference,
                                const AotOptions& options) {
  KernelsOptions request;
  request.device = options.device;
  request.trust_remote_code = options.trust_remote_code;
  request.dry_run = options.dry_run;
  const std::string name =
      reference.ref.empty() ? reference.repository : reference.repository + "@" + reference.ref;
  auto wanted = kernel_argument(name, request);
  wanted.system.python_only = true;
  return kernel::resolve(wanted);
}

// Python's code runs with the caller's rights from its first line: no look at it beforehand and no
// isolated process could tell what it does. So a package of the Hub needs both what every package
// needs and the caller's word.
void require_word(const kernel::Resolution& found, const AotOptions& options) {
  kernel::require_loadable(found.repository, found, {.trust_all = options.trust_remote_code},
                           /*record=*/!options.dry_run);
  if (!found.commit.empty() && !options.trust_remote_code) {
    throw IntegrityError(
        "kernel.aot", "trust",
        fmt::format("`{}`: expected your word that its Python code may run here, with your rights "
                    "and with nothing to keep it in, got none",
                    found.repository),
        fmt::format("read `{}`, then add --trust-remote-code", found.folder.string()));
  }
}

// The files that will run are a copy that nobody else writes to, without bytecode, held against the
// digest.
fs::path take_copy(const kernel::Resolution& found, const fs::path& scratch) {
  const fs::path copy = scratch / "package";
  fs::copy(found.folder, copy, fs::copy_options::recursive);
  for (auto entry = fs::recursive_directory_iterator(copy); entry != end(entry); ++entry) {
    if (entry->path().filename() == "__pycache__") {
      entry.disable_recursion_pending();
      fs::remove_all(entry->path());
    }
  }
  kernel::require_published_files(found.repository, found, copy);
  return copy;
}

// Where a program lies, as the shell finds it; empty: nowhere.
fs::path find_program(const std::string& name) {
  if (name.find('/') != std::string::npos) {
    return is_file(name) ? fs::path(name) : fs::path();
  }
  const std::string folders = env::get("PATH").value_or("/usr/bin:/bin");
  for (size_t start = 0; start <= folders.size();) {
    const size_t end = std::min(folders.find(':', start), folders.size());
    const fs::path file = fs::path(folders.substr(start, end - start)) / name;
    if (access(file.c_str(), X_OK) == 0 && is_file(file)) {
      return file;
    }
    start = end + 1;
  }
  return {};
}

fs::path find_python(const AotOptions& options) {
  const std::string name =
      !options.python.empty() ? options.python : env::get("GRAFT_PYTHON").value_or("python3");
  const fs::path found = find_program(name);
  if (found.empty()) {
    throw NotFound("kernel.aot", "python",
                   fmt::format("expected a Python to compile the layer with, got no `{}`", name),
                   "name one that has torch (and Triton, for Triton kernels) with --python or "
                   "GRAFT_PYTHON");
  }
  return found;
}

void add(Words& words, const std::string& option, const std::vector<std::string>& values) {
  if (!values.empty()) {
    words.push_back(option);
    words.insert(words.end(), values.begin(), values.end());
  }
}

template <typename T>
Words texts(const std::vector<T>& values) {
  Words words;
  for (const T& value : values) {
    words.push_back(fmt::format("{}", value));
  }
  return words;
}

Words command_of(const kernel::LayerReference& reference, const kernel::Resolution& found,
                 const fs::path& package, const AotOptions& options) {
  const fs::path script = kernel::shared_folder() / "aot.py";
  if (!is_file(script)) {
    throw NotFound("kernel.aot", "script",
                   fmt::format("expected `{}`, got nothing there", script.string()));
  }
  Words words = {find_python(options).string(),
                 "-B",
                 "-X",
                 "faulthandler",
                 script.string(),
                 "--package",
                 package.string(),
                 "--layer",
                 reference.layer,
                 "--out",
                 fs::absolute(options.out).string(),
                 "--device",
                 options.device,
                 "--variant",
                 options.variant,
                 "--torch",
                 TORCH_VERSION};
  if (!found.commit.empty()) {
    add(words, "--source", {fmt::format("{}@{}", found.repository, found.commit)});
  }
  add(words, "--contract", options.contract.empty() ? Words() : Words{options.contract});
  add(words, "--dtype", options.dtypes);
  add(words, "--columns", texts(options.columns));
  add(words, "--eps", texts(options.eps));
  return words;
}

// Of variables that open doors elsewhere.
bool is_secret(std::string_view name) {
  return name.find("TOKEN") != std::string_view::npos ||
         name.find("SECRET") != std::string_view::npos ||
         name.find("PASSWORD") != std::string_view::npos;
}

struct Outcome {
  int status = 0;      // of waitpid
  std::string output;  // what it wrote to stdout; stderr is ours
};

Outcome run_program(const Words& words) {
  Outcome outcome;
  try {
    outcome.status = run_child(words, environment_without(is_secret),
                               [&](std::string_view piece) { outcome.output += piece; });
  } catch (const std::system_error& error) {
    throw Error("kernel.aot", "process",
                fmt::format("expected to start `{}`, got: {}", words[0], error.code().message()));
  }
  return outcome;
}

// The last line that the script wrote; the package's own code may have written others.
nlohmann::json answer_of(const Outcome& outcome, const std::string& python) {
  const size_t end = outcome.output.find_last_not_of('\n');
  const size_t start = end == std::string::npos ? end : outcome.output.rfind('\n', end);
  auto answer = nlohmann::json::parse(
      outcome.output.substr(start == std::string::npos ? 0 : start + 1), nullptr, false);
  const bool exited = WIFEXITED(outcome.status);
  if (answer.is_object() && answer.contains("error")) {
    const auto& error = answer.at("error");
    throw IncompatibleError("kernel.aot", error.at("reason").get<std::string>(),
                            error.at("message").get<std::string>(),
                            error.at("hint").get<std::string>());
  }
  if (!exited || WEXITSTATUS(outcome.status) != 0 || !answer.is_object()) {
    throw Error("kernel.aot", "compile",
                fmt::format("expected `{}` to compile the layer, got {} {}", python,
                            exited ? "exit status" : "signal",
                            exited ? WEXITSTATUS(outcome.status) : WTERMSIG(outcome.status)),
                "name a Python that has torch (and Triton, for Triton kernels) with --python or "
                "GRAFT_PYTHON");
  }
  return answer;
}

}  // namespace

int run_kernels_aot(const AotOptions& options) {
  const auto reference = kernel::parse_layer_reference(options.layer);
  const kernel::Resolution found = find_package(reference, options);
  if (options.dry_run) {
    const Words words = command_of(reference, found, found.folder, options);
    if (options.common.json) {
      print_json({{"dry_run", true}, {"command", words}});
    } else {
      write_stdout(fmt::format("{}\n", fmt::join(words, " ")));
    }
    return 0;
  }
  require_word(found, options);
  const TemporaryFolder scratch("graft-aot", [](const std::string&) {
    throw Error("kernel.aot", "process",
                fmt::format("expected a temporary folder, got: {}", std::strerror(errno)));
  });
  const Words words = command_of(reference, found, take_copy(found, scratch.path()), options);
  print_note(options.common, fmt::format("running Python code of `{}` in {}: it has your rights, "
                                         "and nothing keeps it in",
                                         found.repository, words[0]));
  const auto answer = answer_of(run_program(words), words[0]);
  const std::string contract = answer.at("contract"), package = fs::absolute(options.out).string();
  const std::string layer = fmt::format("{}:{}", package, reference.layer);
  if (options.common.json) {
    print_json({{"package", package},
                {"variant", answer.at("folder")},
                {"contract", contract},
                {"layer", layer},
                {"libraries", answer.at("libraries")}});
  } else {
    write_stdout(package + "\n");
    print_note(options.common,
               fmt::format("use it with --kernel-config '{{\"{}\": \"{}\"}}'", contract, layer));
  }
  return 0;
}

}  // namespace graft::cli
